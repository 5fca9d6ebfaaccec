#!/usr/bin/env bash
# Accuracy against time on a CPU: a small MosaicBERT and a small BERT of the same width and depth, each pretrained for 5,
# 10 and 20 minutes, fine-tuned on the smaller tasks of GLUE, and drawn. Two to three hours on two cores, which nothing else
# may use meanwhile; it goes on where it was cut off.
#
#     scripts/pareto_cpu.sh TEXT GLUE [MINUTES ...]
#
# TEXT: a glob of English text, e.g. 'corpus/*/train-*.jsonl.zst'. GLUE: a folder, see docs/glue.md. Results lie in
# runs/pareto-cpu; the ledgers are runs/*-cpu-*min/scores.jsonl.
set -euo pipefail
(($# >= 2)) || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 2; }
text=$(realpath -m "$1")
glue=$(realpath -m "$2")
shift 2
cd "$(dirname "$0")/.."
(($#)) || set -- 5 10 20
command=${MOSAICBERT:-mosaicbert}
for minutes; do
    for architecture in mosaicbert bert; do
        "$command" pretrain "recipes/$architecture-cpu.yaml" "run_name=$architecture-cpu-${minutes}min" \
            "train.duration=${minutes}min" "data.sources.text.path=$text" data.store=runs/store-cpu
    done
done
for minutes; do
    for architecture in mosaicbert bert; do
        "$command" glue recipes/glue/glue-cpu.yaml "glue.model=runs/$architecture-cpu-${minutes}min" "glue.data=$glue"
    done
done
runs=$(printf "runs/mosaicbert-cpu-%smin," "$@")
others=$(printf "runs/bert-cpu-%smin," "$@")
series=("pareto.series.MosaicBERT.runs=[${runs%,}]" "pareto.series.BERT.runs=[${others%,}]")
"$command" pareto recipes/pareto/pareto-cpu.yaml "${series[@]}"
longest=${*: -1}
"$command" pareto recipes/pareto/pareto-cpu.yaml --compare "runs/mosaicbert-cpu-${longest}min" "runs/bert-cpu-${longest}min"
