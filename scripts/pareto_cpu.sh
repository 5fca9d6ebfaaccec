#!/usr/bin/env bash
# Accuracy against time on a CPU: a small MosaicBERT and a small BERT of the same width and depth, each pretrained for
# 5, 10 and 20 minutes, fine-tuned on the smaller tasks of GLUE, and drawn; and what both score from random weights.
# Three hours on two cores, which nothing else may use meanwhile; it goes on where it was cut off.
#
#     scripts/pareto_cpu.sh TEXT GLUE [MINUTES ...]
#
# TEXT: a glob of English text, e.g. 'corpus/*/train-*.jsonl.zst'. GLUE: a folder, see docs/glue.md. Results lie in
# runs/pareto-cpu: the figure, its points, and whether the models look words up (scripts/copying.py). The ledgers are
# runs/*-cpu-*/scores.jsonl.
set -euo pipefail
(($# >= 2)) || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 2; }
text=$(realpath -m "$1")
glue=$(realpath -m "$2")
shift 2
cd "$(dirname "$0")/.."
(($#)) || set -- 5 10 20
python=${PYTHON:-python3}
names=(untrained "${@/%/min}")
ours=("${names[@]/#/runs/mosaicbert-cpu-}")
theirs=("${names[@]/#/runs/bert-cpu-}")
for name in "${names[@]}"; do
    for architecture in mosaicbert bert; do
        "$python" -m mosaicbert pretrain "recipes/$architecture-cpu.yaml" "run_name=$architecture-cpu-$name" \
            "train.duration=${name/untrained/1steps}" "data.sources.text.path=$text" data.store=runs/store-cpu
    done
done
for run in "${ours[@]}" "${theirs[@]}"; do
    "$python" -m mosaicbert glue recipes/glue/glue-cpu.yaml "glue.model=$run" "glue.data=$glue"
done
series() { (IFS=,; echo "pareto.series.$1.runs=[${*:2}]"); }
"$python" -m mosaicbert pareto recipes/pareto/pareto-cpu.yaml \
    "$(series MosaicBERT "${ours[@]:1}")" "$(series BERT "${theirs[@]:1}")"
"$python" -m mosaicbert pareto recipes/pareto/pareto-cpu.yaml --compare "${ours[$#]}" "${theirs[$#]}"
PYTHONPATH=. "$python" scripts/copying.py --output runs/pareto-cpu/copying.jsonl runs/store-cpu "${ours[@]}" "${theirs[@]}"
