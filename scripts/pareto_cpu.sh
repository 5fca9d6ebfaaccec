#!/usr/bin/env bash
# Validation loss, BLiMP and GLUE against pretraining time on a CPU, of a small MosaicBERT and a small BERT of the same
# width and depth. Both are pretrained for 10, 30 and 120 minutes, for 30 minutes with three seeds, and compared with
# random weights. The two models of a pair train side by side, one core each, so that other load slows both: stop other
# work. Each pair is scored before the next one is trained. Takes about 14 hours on two cores (estimate).
# After an interruption the same command continues. A pair whose training was interrupted is trained again.
#
#     scripts/pareto_cpu.sh [--quick] TEXT GLUE BLIMP
#
#   TEXT     glob of English text, e.g. 'corpus/*/train-*.jsonl.zst'
#   GLUE     folder of the GLUE tasks, see docs/glue.md
#   BLIMP    folder of the minimal pairs, see docs/glue.md
#   --quick  pretraining of half a minute and of two minutes, few examples and pairs: 20 minutes, for a test
#
# Results in runs/pareto-cpu (--quick: runs/pareto-cpu-quick): the figure, its points and tables, copying.jsonl
# (scripts/copying.py), and the records of all runs (scripts/collect_records.py).
set -euo pipefail -m # -m: each background job has its own process group, which can be terminated as a whole
usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 2; }
times=(10min 30min 120min) repeated=30min seeds=(18 19) figure=recipes/pareto/pareto-cpu.yaml
glue_options=() blimp_options=()
if [[ ${1:-} == --quick ]]; then
    shift
    times=(30s 120s) repeated=30s seeds=(18) figure=recipes/pareto/pareto-cpu-quick.yaml
    blimp_options=(pairs_per_paradigm=10)
    for task in mnli qqp qnli sst2 cola mrpc rte stsb; do
        glue_options+=("glue.protocol.$task.epochs=1" "glue.protocol.$task.num_seeds=2" "glue.protocol.$task.train_examples=300")
    done
fi
(($# == 3)) || usage
text=$(realpath -m "$1") glue=$(realpath -m "$2") blimp=$(realpath -m "$3")
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
read -ra cores < <("$python" -c 'import os; print(*sorted(os.sched_getaffinity(0)))')
((${#cores[@]} >= 2)) || { echo "scripts/pareto_cpu.sh needs two cores." >&2; exit 2; }
trap 'for id in $(jobs -p); do kill -- "-$id" || true; done; wait' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
run() { "$@" & wait "$!"; } # in the background: bash handles no signal while a foreground command runs
on_core() { # CORE ARGUMENTS; exec: the background process becomes the command
    exec env OMP_NUM_THREADS=1 taskset --cpu-list "$1" "$python" -m mosaicbert "${@:2}"
}
pretrain() { # CORE ARCHITECTURE NAME DURATION [OVERRIDES]
    on_core "$1" pretrain "recipes/$2-cpu.yaml" "run_name=$2-cpu-$3" "train.duration=$4" \
        "data.sources.text.path=$text" data.store=runs/store-cpu "${@:5}"
}
blimp() { on_core "$1" blimp "$2" "data=$blimp" "${blimp_options[@]}"; } # CORE RUN
glue() { # CORE RUN
    local recipe=glue-cpu
    [[ $2 != *-untrained ]] || recipe=glue-cpu-untrained
    on_core "$1" glue "recipes/glue/$recipe.yaml" "glue.model=$2" "glue.data=$glue" "${glue_options[@]}"
}
side_by_side() { # COMMAND ARGUMENT_OF_FIRST ARGUMENT_OF_SECOND; with one core each
    "$1" "${cores[0]}" "$2" &
    local first=$!
    "$1" "${cores[1]}" "$3" &
    local second=$!
    wait -n "$first" "$second" # if the first to end has failed, the script exits and terminates the other
    wait "$first"
    wait "$second"
}
train_pair() { # NAME DURATION [OVERRIDES]
    local mosaicbert=runs/mosaicbert-cpu-$1 bert=runs/bert-cpu-$1
    [[ -f $mosaicbert/result.json && -f $bert/result.json ]] && return
    rm -rf "$mosaicbert" "$bert" # the models of a pair train at the same time
    pretrain "${cores[0]}" mosaicbert "$@" &
    local mosaicbert_id=$!
    pretrain "${cores[1]}" bert "$@" &
    local bert_id=$!
    wait -n "$mosaicbert_id" "$bert_id"
    wait "$mosaicbert_id"
    wait "$bert_id"
    for folder in "$mosaicbert" "$bert"; do
        [[ -f $folder/result.json ]] || { echo "$folder was stopped." >&2; exit 1; }
    done
}
score_pair() { # RUN RUN
    side_by_side blimp "$1" "$2"
    side_by_side glue "$1" "$2"
}
run "$python" -m mosaicbert prepare recipes/mosaicbert-cpu.yaml "data.sources.text.path=$text" data.store=runs/store-cpu
for time in "${times[@]}"; do
    train_pair "$time" "$time"
    score_pair "runs/mosaicbert-cpu-$time" "runs/bert-cpu-$time"
done
for seed in "${seeds[@]}"; do
    train_pair "$repeated-seed$seed" "$repeated" "seed=$seed"
    score_pair "runs/mosaicbert-cpu-$repeated-seed$seed" "runs/bert-cpu-$repeated-seed$seed"
done
train_pair untrained 1steps
score_pair runs/mosaicbert-cpu-untrained runs/bert-cpu-untrained
# Control: BERT with the mask rate of MosaicBERT. The other core is idle.
control=runs/bert-cpu-$repeated-mask30
[[ -f $control/result.json ]] || run pretrain "${cores[1]}" bert "$repeated-mask30" "$repeated" data.mask_rate=0.30
run blimp "${cores[1]}" "$control"
run glue "${cores[1]}" "$control"
results=runs/$(basename "$figure" .yaml)
export PYTHONPATH=.
[[ -f runs/bag-of-words/scores.jsonl ]] ||
    run "$python" scripts/glue_baselines.py recipes/glue/glue-cpu.yaml "glue.data=$glue" "${glue_options[@]}"
run "$python" -m mosaicbert pareto "$figure"
join() { (IFS=,; echo "$*"); }
for time in "${times[@]}"; do
    mosaicbert=(runs/mosaicbert-cpu-$time) bert=(runs/bert-cpu-$time)
    if [[ $time == "$repeated" ]]; then
        mosaicbert+=("${seeds[@]/#/runs/mosaicbert-cpu-$repeated-seed}")
        bert+=("${seeds[@]/#/runs/bert-cpu-$repeated-seed}")
    fi
    run "$python" -m mosaicbert pareto "$figure" --compare "$(join "${mosaicbert[@]}")" "$(join "${bert[@]}")"
done
run "$python" scripts/copying.py --output "$results/copying.jsonl" runs/store-cpu \
    runs/mosaicbert-cpu-* runs/bert-cpu-*
run "$python" scripts/collect_records.py "$results/records" runs/mosaicbert-cpu-* runs/bert-cpu-* \
    runs/majority-answer runs/bag-of-words
