#!/usr/bin/env bash
# Pretraining on two machines with eight GPUs each, with torchrun. Run it on both, with NODE_RANK=0 on the first machine
# and NODE_RANK=1 on the second.
# usage: NODE_RANK=0 MASTER_ADDR=first.example scripts/cluster/two-nodes.sh [RECIPE] [section.key=value ...]
# The token store and the runs folder must be on a file system that both machines share: set data.store and runs_folder.
# Prepare the store beforehand, on one of the machines: mosaicbert prepare RECIPE
set -euo pipefail
: "${NODE_RANK:?must be 0 on the first machine and 1 on the second}"
: "${MASTER_ADDR:?must be the host name of the first machine}"
recipe=${1:-recipes/mosaicbert-large-c4.yaml}
shift || true

# The same with Composer's launcher: composer --nproc 8 --world_size 16 --node_rank "$NODE_RANK" --base_rank $((8 * NODE_RANK)) \
#   --master_addr "$MASTER_ADDR" --master_port 29500 --module_mode mosaicbert pretrain "$recipe" "$@"
exec torchrun --nnodes 2 --node-rank "$NODE_RANK" --nproc-per-node 8 \
    --master-addr "$MASTER_ADDR" --master-port 29500 \
    --module mosaicbert pretrain "$recipe" "$@"
