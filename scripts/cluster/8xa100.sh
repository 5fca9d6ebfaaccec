#!/usr/bin/env bash
# One machine with eight A100s. The plain command takes all of them; this shows what may be set around it.
# scripts/cluster/8xa100.sh [recipe] [section.key=value ...]
set -euo pipefail
recipe=${1:-recipes/mosaicbert-base-c4.yaml}
shift || true

# The text becomes a token store first, on this machine's cores; nothing is done if that has been done.
mosaicbert prepare "$recipe" "$@"
mosaicbert check "$recipe" "$@"

# SIGTERM (a pre-emption notice, `kill`, Ctrl-C) lets it finish the step and write a checkpoint; this same line continues.
exec mosaicbert pretrain "$recipe" "$@"
