#!/usr/bin/env bash
# Accuracy against time on a CPU: a small MosaicBERT and a small BERT of the same width and depth, each pretrained for 5,
# 10 and 20 minutes, fine-tuned on the smaller tasks of GLUE, and drawn. About three hours on two cores, which nothing
# else may use; it goes on where it was cut off.
#
#     scripts/pareto_cpu.sh TEXT GLUE
#
# TEXT: a glob of English text, e.g. 'corpus/*/train-*.jsonl.zst'. GLUE: a folder, see docs/glue.md.
set -euo pipefail
cd "$(dirname "$0")/.."
text=$1
glue=$2
command=(${MOSAICBERT:-mosaicbert})
for minutes in ${MINUTES:-5 10 20}; do
    for architecture in mosaicbert bert; do
        "${command[@]}" pretrain "recipes/$architecture-cpu.yaml" "run_name=$architecture-cpu-${minutes}min" \
            "train.duration=${minutes}min" "data.sources.text.path=$text" data.store=runs/store-cpu
    done
done
for minutes in ${MINUTES:-5 10 20}; do
    for architecture in mosaicbert bert; do
        "${command[@]}" glue recipes/glue/glue-cpu.yaml "glue.model=runs/$architecture-cpu-${minutes}min" "glue.data=$glue"
    done
done
"${command[@]}" pareto recipes/pareto/pareto-cpu.yaml
"${command[@]}" pareto recipes/pareto/pareto-cpu.yaml --compare runs/mosaicbert-cpu-20min runs/bert-cpu-20min
