#!/usr/bin/env bash
# Two machines with eight GPUs each, by torchrun. Run it on both, with NODE_RANK=0 on the first and 1 on the second:
#   NODE_RANK=0 MASTER_ADDR=first.example scripts/cluster/two-nodes.sh recipes/mosaicbert-large-c4.yaml
# Both must see the same token store and the same runs folder, on a shared file system: give data.store= and runs_folder=.
# Prepare the store beforehand, on one of them: mosaicbert prepare RECIPE.
set -euo pipefail
: "${NODE_RANK:?0 on the first machine, 1 on the second}" "${MASTER_ADDR:?name of the first machine}"
recipe=${1:-recipes/mosaicbert-large-c4.yaml}
shift || true

# Composer's launcher does the same: composer --nproc 8 --world_size 16 --node_rank "$NODE_RANK" --base_rank $((8 * NODE_RANK)) \
#   --master_addr "$MASTER_ADDR" --master_port 29500 --module_mode mosaicbert pretrain "$recipe" "$@"
exec torchrun --nnodes 2 --node-rank "$NODE_RANK" --nproc-per-node 8 \
    --master-addr "$MASTER_ADDR" --master-port 29500 \
    --module mosaicbert pretrain "$recipe" "$@"
