"""Summary of a task dataset before training: classes, text lengths, and what may be wrong with the data."""

from collections import Counter, defaultdict
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from mosaicbert.finetune.metrics import REGRESSION
from mosaicbert.finetune.tables import Examples
from mosaicbert.finetune.task.dataset import TaskDataset, text_keys

_MAX_TOKENIZED = 10_000  # examples whose tokens are counted
_MAX_LISTED_CLASSES = 10
_UNKNOWN_WARNING = 0.02  # fraction of unknown tokens; text of the language of the tokenizer has less


def summarize_data(data: TaskDataset, tokenizer: PreTrainedTokenizerBase, max_seq_len: int) -> dict[str, Any]:
    """Count what a user should know about the data before training.

    Args:
        data: Dataset of the task.
        tokenizer: Tokenizer of the model.
        max_seq_len: Maximum number of tokens of an example.

    Returns:
        For the training examples, `classes` (number of examples by class) or `labels` (mean, standard_deviation,
        minimum and maximum), `empty_texts`, and of the first 10,000 examples `median_tokens`, `longest_tokens`,
        `truncated_fraction` and `unknown_token_fraction`. For the validation examples, `validation_in_training`, the
        number of those whose texts are also training texts. `similar_classes` lists classes that differ only in case.
    """
    train, label_set = data.train, data.label_set
    summary: dict[str, Any] = {}
    if label_set.problem_type == REGRESSION:
        labels = np.array(train.labels, dtype=np.float64)
        summary["labels"] = {
            "mean": float(labels.mean()),
            "standard_deviation": float(labels.std()),
            "minimum": float(labels.min()),
            "maximum": float(labels.max()),
        }
    else:
        counts = np.zeros(len(label_set.names), dtype=np.int64)
        for label in train.labels or []:
            if isinstance(label, list):
                counts += np.array(label)
            else:
                counts[int(label)] += 1
        summary["classes"] = dict(zip(label_set.names, counts.tolist(), strict=True))
    training_keys = set(text_keys(train))
    by_folded: defaultdict[str, list[str]] = defaultdict(list)
    for name in label_set.names:
        by_folded[" ".join(name.casefold().split())].append(name)
    return summary | {
        "empty_texts": sum(not text.strip() for column in train.texts for text in column),
        **_count_tokens(train, tokenizer, max_seq_len),
        "validation_in_training": sum(key in training_keys for key in text_keys(data.validation)),
        "similar_classes": [names for names in by_folded.values() if len(names) > 1],
    }


def _count_tokens(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_seq_len: int) -> dict[str, Any]:
    texts = [column[:_MAX_TOKENIZED] for column in examples.texts]
    pair = texts[1] if len(texts) == 2 else None
    encoded: Any = tokenizer(texts[0], pair, truncation=False, verbose=False)["input_ids"]
    lengths = [len(ids) for ids in encoded]
    special = {value for value in tokenizer.all_special_ids if value != tokenizer.unk_token_id}
    counts = Counter(token for ids in encoded for token in ids if token not in special)
    unknown = 0 if tokenizer.unk_token_id is None else counts[tokenizer.unk_token_id]
    return {
        "median_tokens": int(np.median(lengths)),
        "longest_tokens": max(lengths),
        "truncated_fraction": sum(length > max_seq_len for length in lengths) / len(lengths),
        "unknown_token_fraction": unknown / max(1, counts.total()),
    }


def summary_lines(summary: dict[str, Any], num_validation: int) -> list[str]:
    """Format a summary for the console and the report, what may be wrong as lines that begin with "warning: ".

    Args:
        summary: Return value of `summarize_data`.
        num_validation: Number of validation examples.
    """
    lines = [_format_classes(summary["classes"]) if "classes" in summary else _format_labels(summary["labels"])]
    lines.append(
        f"texts: {summary['median_tokens']:,} tokens in the median, {summary['longest_tokens']:,} in the longest, "
        f"{summary['truncated_fraction']:.1%} truncated, {summary['unknown_token_fraction']:.1%} unknown tokens"
    )
    if summary["unknown_token_fraction"] > _UNKNOWN_WARNING:
        lines.append(
            f"warning: {summary['unknown_token_fraction']:.1%} of the tokens are not in the vocabulary of the model. "
            "Choose a model that was pretrained on this language or kind of text."
        )
    if summary["empty_texts"]:
        lines.append(f"warning: {summary['empty_texts']:,} training texts are empty.")
    if summary["validation_in_training"]:
        lines.append(
            f"warning: {summary['validation_in_training']:,} of {num_validation:,} validation texts are also training "
            "texts, so the metrics are too high for new texts."
        )
    for names in summary["similar_classes"]:
        lines.append(f"warning: the classes {', '.join(map(repr, names))} differ only in case or spaces.")
    absent = [name for name, count in summary.get("classes", {}).items() if not count]
    if absent:
        lines.append(f"warning: no training example has the class {absent[0]!r}.")
    return lines


def _format_classes(classes: dict[str, int]) -> str:
    total = max(1, sum(classes.values()))
    largest = sorted(classes.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{name} {count:,} ({count / total:.1%})" for name, count in largest[:_MAX_LISTED_CLASSES])
    rest = len(largest) - _MAX_LISTED_CLASSES
    return f"classes: {listed}" + (f", and {rest:,} more" if rest > 0 else "")


def _format_labels(labels: dict[str, float]) -> str:
    return (
        f"labels: mean {labels['mean']:.4g}, standard deviation {labels['standard_deviation']:.4g}, "
        f"from {labels['minimum']:.4g} to {labels['maximum']:.4g}"
    )
