#!/usr/bin/env bash
# Measure the table of docs/performance.md on a CPU: the training step of MosaicBERT, BERT and ModernBERT at two widths,
# with documents of 128 tokens, and with documents of real lengths up to 512. About 45 minutes on two cores.
#
# Run: scripts/bench/training_table.sh TEXT OUTPUT [section.key=value ...]
# TEXT: JSON lines with web documents, e.g. a part of C4, or a pattern of files. OUTPUT: folder of records and charts.
set -euo pipefail
text=$1
output=$2
shift 2

measure() { # NAME WIDTH HEADS VOCABULARY DOCUMENTS MICRO_BATCH_TOKENS LENGTH SAMPLING [section.key=value ...]
    local name=$1 width=$2 heads=$3 vocabulary=$4 documents=$5 tokens=$6 length=$7 sampling=$8
    shift 8
    mosaicbert bench mosaicbert-cpu --steps 4 --seconds 700 --output "$output/$name" \
        run_name="$name" data.sources.text.path="$text" data.sampling="$sampling" data.max_seq_len="$length" \
        model.vocab_size="$vocabulary" model.hidden_size="$width" model.num_attention_heads="$heads" \
        model.intermediate_size=$((4 * width)) train.global_batch_samples="$documents" \
        train.micro_batch_tokens="$tokens" "$@"
}

measure 4x256-full 256 4 8192 32 4096 128 chunk "$@"
measure 4x256-real 256 4 8192 32 4096 512 truncate "$@"
measure 4x768-full 768 12 30528 8 1024 128 chunk "$@"
measure 4x768-real 768 12 30528 8 2048 512 truncate "$@"
