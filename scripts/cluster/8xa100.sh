#!/usr/bin/env bash
# Pretraining on one machine with eight A100 GPUs. `mosaicbert pretrain` uses all GPUs of the machine by default.
# usage: scripts/cluster/8xa100.sh [RECIPE] [section.key=value ...]
set -euo pipefail
recipe=${1:-recipes/mosaicbert-base-c4.yaml}
shift || true

# Prepare the token store on the CPUs of this machine. A complete store is not prepared again.
mosaicbert prepare "$recipe" "$@"
mosaicbert check "$recipe" "$@"

# After SIGTERM (preemption, `kill`) or Ctrl-C the run finishes its step and writes a checkpoint. The same command
# resumes it.
exec mosaicbert pretrain "$recipe" "$@"
