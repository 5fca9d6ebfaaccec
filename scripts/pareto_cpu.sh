#!/usr/bin/env bash
# GLUE scores against pretraining time on a CPU, of a small MosaicBERT and a small BERT of the same width and depth. Both
# are pretrained for 5, 15 and 45 minutes, fine-tuned on the smaller tasks of GLUE, and compared with untrained baselines.
# The two models train side by side, one core each, so that other load slows both. Takes three hours on two cores.
# After an interruption the same command continues. A training that was killed (SIGKILL) starts from its beginning.
#
#     scripts/pareto_cpu.sh TEXT GLUE [MINUTES ...]
#
#   TEXT     glob of English text, e.g. 'corpus/*/train-*.jsonl.zst'
#   GLUE     folder of the GLUE tasks, see docs/glue.md
#   MINUTES  durations of the pretraining (default: 5 15 45)
#
# Results in runs/pareto-cpu: the figure and its points, copying.jsonl (scripts/copying.py) and probing.jsonl
# (scripts/probing.py). The score records are in runs/*-cpu-*/scores.jsonl.
set -euo pipefail -m # -m: each background job has its own process group, which can be terminated as a whole
(($# >= 2)) || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 2; }
text=$(realpath -m "$1")
glue=$(realpath -m "$2")
shift 2
cd "$(dirname "$0")/.."
(($#)) || set -- 5 15 45
python=${PYTHON:-python3}
read -ra cores < <("$python" -c 'import os; print(*sorted(os.sched_getaffinity(0)))')
((${#cores[@]} >= 2)) || { echo "scripts/pareto_cpu.sh needs two cores." >&2; exit 2; }
names=(untrained "${@/%/min}")
mosaicbert_runs=("${names[@]/#/runs/mosaicbert-cpu-}")
bert_runs=("${names[@]/#/runs/bert-cpu-}")
trap 'for id in $(jobs -p); do kill -- "-$id" || true; done; wait' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
run() { "$@" & wait "$!"; } # in the background: bash handles no signal while a foreground command runs
pretrain() { # ARCHITECTURE NAME CORE; exec: the background process becomes the training
    exec env OMP_NUM_THREADS=1 taskset --cpu-list "$3" "$python" -m mosaicbert pretrain "recipes/$1-cpu.yaml" \
        "run_name=$1-cpu-$2" "train.duration=${2/untrained/1steps}" "data.sources.text.path=$text" data.store=runs/store-cpu
}
require() { # NAME; check that both runs are finished
    for run in "runs/mosaicbert-cpu-$1" "runs/bert-cpu-$1"; do
        [[ -f $run/result.json ]] || { echo "$run was stopped." >&2; exit 1; }
    done
}
run pretrain mosaicbert untrained "${cores[0]}" # also prepares the text for all runs
run pretrain bert untrained "${cores[0]}"
require untrained
for name in "${names[@]:1}"; do
    pretrain mosaicbert "$name" "${cores[0]}" &
    mosaicbert_id=$!
    pretrain bert "$name" "${cores[1]}" &
    bert_id=$!
    wait -n "$mosaicbert_id" "$bert_id" # if the first to end has failed, the script exits and terminates the other
    wait "$mosaicbert_id"
    wait "$bert_id"
    require "$name"
done
for run in "${mosaicbert_runs[@]}" "${bert_runs[@]}"; do
    run "$python" -m mosaicbert glue recipes/glue/glue-cpu.yaml "glue.model=$run" "glue.data=$glue"
done
series() { (IFS=,; echo "pareto.series.$1.runs=[${*:2}]"); }
run "$python" -m mosaicbert pareto recipes/pareto/pareto-cpu.yaml \
    "$(series MosaicBERT "${mosaicbert_runs[@]:1}")" "$(series BERT "${bert_runs[@]:1}")"
run "$python" -m mosaicbert pareto recipes/pareto/pareto-cpu.yaml --compare "${mosaicbert_runs[$#]}" "${bert_runs[$#]}"
export PYTHONPATH=.
run "$python" scripts/copying.py --output runs/pareto-cpu/copying.jsonl runs/store-cpu "${mosaicbert_runs[@]}" "${bert_runs[@]}"
run "$python" scripts/probing.py --output runs/pareto-cpu/probing.jsonl "$glue" "${mosaicbert_runs[@]}" "${bert_runs[@]}"
