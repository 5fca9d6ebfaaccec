#!/usr/bin/env bash
# Tests and benchmarks that require a GPU, in less than nine minutes and without a network: the tests of kernels and
# model, a minute of pretraining Base and Large on real text, and the benchmarks.
#
# usage: scripts/gpu_suite.sh RESULTS_FOLDER [WHEELS_FOLDER] [TEXT]
#   RESULTS_FOLDER  folder for *.jsonl in the format of docs/benchmarks, and suite.log
#   WHEELS_FOLDER   folder written by scripts/gpu_wheels.sh, for a machine that has only torch, Triton and transformers
#   TEXT            .jsonl or .jsonl.zst file with a "text" column, or a folder of such files (default: documentation of
#                   the installed Python packages)
#
# A part that fails or times out does not stop the other parts; the exit code is then 1. The script installs nothing
# into the Python environment. SOURCE_COMMIT sets the commit of the records where the .git folder is missing.
set -uo pipefail

if [[ $# -lt 1 || $# -gt 3 ]]; then
    echo "usage: scripts/gpu_suite.sh RESULTS_FOLDER [WHEELS_FOLDER] [TEXT]" >&2
    exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1" || exit 2
results=$(cd "$1" && pwd)
wheels=${2:-}
text=${3:-installed-documentation}
[[ -e $text ]] && text=$(realpath "$text")
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
log=$results/suite.log
: > "$log"

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "scripts/gpu_suite.sh requires a GPU that torch can use, got none." >&2
    exit 2
fi

export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 WANDB_MODE=disabled
export BENCHMARKS_FOLDER=$work/benchmarks XDG_CACHE_HOME=$work/cache
export TRITON_CACHE_DIR=$work/triton TORCHINDUCTOR_CACHE_DIR=$work/inductor
export PYTHONPATH=$work/site:$root
mkdir -p "$BENCHMARKS_FOLDER" "$work/site"
if [[ -n $wheels ]]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$work/site" "$wheels"/*.whl >> "$log" 2>&1 ||
        { echo "$wheels: could not be installed; see $log" >&2; exit 2; }
fi
cd "$root" || exit 2

table=()
failed=0
most_seconds=530

# within SECONDS COMMAND...: run a command with a time limit, at most the time that is left for the suite, and print its
# output at the end. The output is not piped: the script would wait for every process that keeps the pipe open.
within() {
    local limit=$1 left=$((most_seconds - SECONDS)) status
    shift
    ((left < limit)) && limit=$((left > 1 ? left : 1))
    timeout --kill-after=2 "$limit" "$@" > "$work/part.log" 2>&1
    status=$?
    tee -a "$log" < "$work/part.log"
    return $status
}

# part NAME SECONDS COMMAND...: run a command and add a row to the summary.
part() {
    local name=$1 limit=$2 start=$SECONDS
    shift 2
    echo "== $name" | tee -a "$log"
    within "$limit" "$@"
    note "$name" $? $((SECONDS - start))
}

note() {
    local said=ok
    ((${2} == 124 || ${2} == 137)) && said="timed out"
    ((${2} != 0)) && failed=1 && [[ $said == ok ]] && said="failed ($2)"
    table+=("$(printf '%-20s %4d s  %s' "$1" "$3" "$said")")
}

keys=(
    "runs_folder=$work/runs" "data.num_partitions=1" "data.validation_fraction=0.02"
    "data.sources.c4.path=$text" "data.sources.c4.subset=null" "data.sources.c4.validation_split=null"
    "train.duration=60s" "train.global_batch_samples=1024" "train.compile=true"
    "checkpoint.interval=100000 steps" "checkpoint.keep_last=1" "checkpoint.keep_every=null"
    "eval.interval=100000 steps" "eval.max_samples=512" "eval.fill_mask=[]" "log.interval_steps=5" "log.loggers=[]"
)
short=("${keys[@]}" "data.store=$work/store" "tokenizer.source=train")
# The same text with samples of up to 512 tokens, for benchmarks with real document lengths.
long=("${keys[@]}" "data.store=$work/store-512" "data.max_seq_len=512" "tokenizer.source=$work/store/tokenizer.json")
prepare=("$python" -m mosaicbert prepare recipes/mosaicbert-base-c4.yaml)

# pretraining RECIPE MICRO_BATCH_TOKENS SECONDS: train for a minute. The limit may interrupt the export at the end.
pretraining() {
    local run=$1 budget=$2 start=$SECONDS
    echo "== pretraining $run" | tee -a "$log"
    within "$3" "$python" -m mosaicbert pretrain "recipes/$run.yaml" "${short[@]}" "train.micro_batch_tokens=$budget"
    within 15 "$python" scripts/bench/pretraining.py "$work/runs/$run"
    note "$run" $? $((SECONDS - start))
}

# The sum of the limits below is at most most_seconds. The text is prepared during the tests, which leave CPUs idle. The
# autotuning results of the tests are not kept: six processes run at once, so their timings are not valid.
timeout --kill-after=2 80 "${prepare[@]}" "${short[@]}" > "$work/prepare.log" 2>&1 &
preparing=$!
workers=()
"$python" -c 'import xdist' 2> /dev/null && workers=(-n 6)
part tests 85 env XDG_CACHE_HOME="$work/tests" \
    "$python" -m pytest -o addopts= -p no:cacheprovider -q -rf "${workers[@]}" tests/ops tests/model \
    tests/train/test_trainer.py
wait "$preparing"
note prepare $? "$SECONDS"
cat "$work/prepare.log" >> "$log"
part prepare_512 20 "${prepare[@]}" "${long[@]}"
pretraining mosaicbert-base-c4 65536 85
pretraining mosaicbert-large-c4 32768 85
store=()
[[ -e $work/store-512 ]] && store=(--store "$work/store-512")
part attention 60 "$python" scripts/bench/attention.py "${store[@]}"
bench=("$python" -m mosaicbert bench recipes/mosaicbert-base-c4.yaml --steps 8 --seconds 36 --output "$BENCHMARKS_FOLDER")
part training_step 45 "${bench[@]}" "${short[@]}" train.micro_batch_tokens=65536 train.global_batch_samples=512
part training_step_512 45 "${bench[@]}" "${long[@]}" train.micro_batch_tokens=65536 train.global_batch_samples=256
part profile_step 30 "$python" scripts/bench/profile_step.py
part cross_entropy 25 "$python" scripts/bench/cross_entropy.py
part layer_norm 25 "$python" scripts/bench/layer_norm.py
part geglu 25 "$python" scripts/bench/geglu.py

find "$BENCHMARKS_FOLDER" -name '*.jsonl' -exec cp {} "$results" \;
{
    echo "== summary, $SECONDS s"
    printf '%s\n' "${table[@]}"
} | tee -a "$log"
exit "$failed"
