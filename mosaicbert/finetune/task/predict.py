"""Command `mosaicbert predict`: batch inference with a fine-tuned classifier, from a table to a table."""

import csv
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet
import torch
from rich.console import Console
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from mosaicbert.config import ConfigError
from mosaicbert.config.finetune import FinetuneRecipe
from mosaicbert.config.load import load_recipe
from mosaicbert.console import print_line
from mosaicbert.filesystem import partial_path
from mosaicbert.finetune.collator import ClassificationCollator, EncodedExample, encode
from mosaicbert.finetune.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL, predict_labels
from mosaicbert.finetune.model import is_unpadded, max_input_length, pad_token_id_of
from mosaicbert.finetune.tables import TABLE_SUFFIXES, Examples, get_text_columns, read_file
from mosaicbert.finetune.task.labels import DEFAULT_SEPARATOR, LabelSet
from mosaicbert.finetune.task.report import class_names
from mosaicbert.model.pretrained import first_line, load_pretrained_tokenizer
from mosaicbert.train.device import choose_precision

_CHUNK = 10_000  # rows that are tokenized at a time; the token ids of a Python list need about 40 bytes each
_BATCH_TOKENS = 4_096  # tokens of a batch, padding included if the model is padded
_DEFAULT_LENGTH = 512  # tokens, for tokenizers without a maximum length
_NO_LENGTH = 10**6  # the maximum length of such a tokenizer is larger
_PREDICTED, _PROBABILITIES = "predicted", "probabilities"


class _Writer(Protocol):
    """Writer of predictions."""

    def write(self, rows: pa.Table, predictions: list[Any], probabilities: list[dict[str, float]] | None) -> None:
        """Append rows with their predictions."""
        ...

    def close(self) -> None:
        """Finish the file."""
        ...


def predict_file(
    model_name: str,
    path: Path,
    console: Console,
    *,
    output: Path | None = None,
    text_columns: Sequence[str] | None = None,
) -> Path:
    """Predict the labels of the texts of a table, and write the table with the predictions.

    The column `predicted` has the class, the list of classes or the number. `probabilities` has the probability of each
    class; in a CSV file, it is a column `probability of CLASS` for each class.

    Args:
        model_name: Folder of a fine-tuning run, Hugging Face folder of a classifier, or name on the Hub.
        path: .csv, .jsonl or .parquet file.
        console: Console for the progress.
        output: New or existing file with one of these suffixes; None for FILE.predictions in the format of the input.
        text_columns: Names of one or two text columns; None for those of the fine-tuning run, or `text`.

    Returns:
        Path of the output.

    Raises:
        ConfigError: If the model cannot be loaded, or the table cannot be read or has the columns of the predictions.
    """
    output = path.with_suffix(f".predictions{path.suffix}") if output is None else output
    if output.suffix.lower() not in TABLE_SUFFIXES:
        raise ConfigError(f"`--output` must be one of {', '.join(TABLE_SUFFIXES)}, got {output}. Change the suffix.")
    logging.disable_progress_bar()
    folder, columns = _resolve(model_name, text_columns)
    table = read_file(path, _csv_columns(path) if path.suffix.lower() == ".csv" else columns)
    texts = get_text_columns(table, columns, str(path))
    if not len(table):
        raise ConfigError(f"{path} must have at least one row, got none. Add texts.")
    model, label_set = _load(folder)
    tokenizer = load_pretrained_tokenizer(folder)
    longest = tokenizer.model_max_length if tokenizer.model_max_length < _NO_LENGTH else _DEFAULT_LENGTH
    max_length = max_input_length(model, longest)
    new_columns = [_PREDICTED, _PROBABILITIES, *(_probability_column(name) for name in label_set.names)]
    clashes = [name for name in new_columns if name in table.column_names]
    if clashes:
        raise ConfigError(f"{path} must have no column {clashes[0]!r}, which the predictions have. Rename the column.")
    partial = partial_path(output)
    writer = _open_writer(partial, output.suffix.lower(), label_set)
    start = time.monotonic()
    for first in range(0, len(table), _CHUNK):
        chunk = Examples(texts=tuple(column[first : first + _CHUNK] for column in texts), labels=None)
        logits = _predict(model, tokenizer, chunk, max_length)
        labels = predict_labels(label_set.problem_type, logits).tolist()
        rows = table.slice(first, _CHUNK)
        writer.write(rows, [class_names(label_set, label) for label in labels], _probabilities(label_set, logits))
        done = first + len(rows)
        print_line(console, f"{done:,}/{len(table):,} rows, {done / (time.monotonic() - start):,.0f} per second")
    writer.close()
    partial.replace(output)
    return output


def _resolve(name: str, text_columns: Sequence[str] | None) -> tuple[str, tuple[str, ...]]:
    """Return the folder of the classifier and the names of the text columns."""
    run = Path(name)
    folder = run / "hf" if (run / "hf" / "config.json").exists() else run
    recipe_path = folder.parent / "recipe.yaml"
    columns = list(text_columns or ["text"])
    if text_columns is None and folder.name == "hf" and recipe_path.exists():
        columns = load_recipe(recipe_path, [], FinetuneRecipe).data.text_columns
    if len(columns) not in (1, 2):
        raise ConfigError(f"`--text-columns` must be one or two column names, got {', '.join(columns)}.")
    return str(folder), tuple(columns)


def _load(name: str) -> tuple[PreTrainedModel, LabelSet]:
    try:
        model = AutoModelForSequenceClassification.from_pretrained(name).eval()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{name} must be a fine-tuned classifier, got {first_line(error)}. Run `mosaicbert finetune` first."
        ) from error
    config = model.config
    problem_type = config.problem_type or (REGRESSION if config.num_labels == 1 else SINGLE_LABEL)
    names = () if problem_type == REGRESSION else tuple(config.id2label[index] for index in range(config.num_labels))
    if torch.cuda.is_available():
        model = model.cuda()
    return model, LabelSet(problem_type=problem_type, names=names)


@torch.inference_mode()
def _predict(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int) -> Tensor:
    """Return the logits of examples, (N, L) fp32 on the CPU. Batches consist of examples of similar length."""
    encoded = encode(tokenizer, examples, max_length)
    order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index].ids["input_ids"]))
    collate = ClassificationCollator(is_unpadded=is_unpadded(model), pad_token_id=pad_token_id_of(tokenizer))
    # A predicted number has about three significant digits in bf16.
    precision, _ = choose_precision("fp32" if model.config.problem_type == REGRESSION else "auto")
    on_gpu = model.device.type == "cuda"
    logits: list[Tensor] = []
    for indices in _cut(order, encoded, count_padding=not is_unpadded(model)):
        batch = {
            name: value.to(model.device) if isinstance(value, Tensor) else value
            for name, value in collate([encoded[index] for index in indices]).items()
        }
        with torch.autocast("cuda", precision, enabled=on_gpu and precision == torch.bfloat16):
            logits.append(model(**batch).logits.float().cpu())
    return torch.cat(logits)[torch.tensor(order).argsort()]


def _cut(order: list[int], encoded: list[EncodedExample], *, count_padding: bool) -> Iterator[list[int]]:
    """Yield batches of at most `_BATCH_TOKENS` tokens, one example at least. The first example is the longest."""
    batch: list[int] = []
    tokens = 0
    for index in order:
        length = len(encoded[(batch or [index])[0] if count_padding else index].ids["input_ids"])
        if batch and tokens + length > _BATCH_TOKENS:
            yield batch
            batch, tokens, length = [], 0, len(encoded[index].ids["input_ids"])
        batch.append(index)
        tokens += length
    yield batch


def _probabilities(label_set: LabelSet, logits: Tensor) -> list[dict[str, float]] | None:
    if label_set.problem_type == REGRESSION:
        return None
    values = logits.sigmoid() if label_set.problem_type == MULTI_LABEL else logits.softmax(dim=1)
    return [dict(zip(label_set.names, row, strict=True)) for row in values.tolist()]


def _probability_column(name: str) -> str:
    return f"probability of {name}"


def _csv_columns(path: Path) -> list[str]:
    """Return the columns of a CSV file, so that all of them are read, and written again, as text."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return next(csv.reader(file), [])
    except OSError:
        return []  # `read_file` raises the error


def _open_writer(path: Path, suffix: str, label_set: LabelSet) -> _Writer:
    writers: dict[str, type[Any]] = {".jsonl": _JsonLinesWriter, ".csv": _CsvWriter, ".parquet": _ParquetWriter}
    return writers[suffix](path, label_set)


class _JsonLinesWriter:
    def __init__(self, path: Path, label_set: LabelSet) -> None:
        del label_set
        self.file = path.open("w", encoding="utf-8")

    def write(self, rows: pa.Table, predictions: list[Any], probabilities: list[dict[str, float]] | None) -> None:
        for index, row in enumerate(rows.to_pylist()):
            line = row | {_PREDICTED: predictions[index]}
            if probabilities is not None:
                line[_PROBABILITIES] = {name: round(value, 6) for name, value in probabilities[index].items()}
            self.file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")

    def close(self) -> None:
        self.file.close()


class _CsvWriter:
    def __init__(self, path: Path, label_set: LabelSet) -> None:
        self.label_set, self.is_new = label_set, True
        self.file = path.open("w", encoding="utf-8", newline="")
        self.writer = csv.writer(self.file)

    def write(self, rows: pa.Table, predictions: list[Any], probabilities: list[dict[str, float]] | None) -> None:
        if self.is_new:
            columns = [] if probabilities is None else [_probability_column(name) for name in self.label_set.names]
            self.writer.writerow([*rows.column_names, _PREDICTED, *columns])
            self.is_new = False
        for index, row in enumerate(rows.to_pylist()):
            predicted = predictions[index]
            cell = DEFAULT_SEPARATOR.join(predicted) if isinstance(predicted, list) else predicted
            values = [] if probabilities is None else [round(value, 6) for value in probabilities[index].values()]
            self.writer.writerow([*row.values(), cell, *values])

    def close(self) -> None:
        self.file.close()


class _ParquetWriter:
    def __init__(self, path: Path, label_set: LabelSet) -> None:
        self.path, self.label_set = path, label_set
        self.writer: Any = None  # opened for the schema of the first rows

    def write(self, rows: pa.Table, predictions: list[Any], probabilities: list[dict[str, float]] | None) -> None:
        text = pa.string()
        types = {SINGLE_LABEL: text, MULTI_LABEL: pa.list_(text), REGRESSION: pa.float64()}
        table = rows.append_column(_PREDICTED, pa.array(predictions, types[self.label_set.problem_type]))
        if probabilities is not None:
            fields = pa.struct([(name, pa.float32()) for name in self.label_set.names])
            table = table.append_column(_PROBABILITIES, pa.array(probabilities, fields))
        if self.writer is None:
            self.writer = pyarrow.parquet.ParquetWriter(self.path, table.schema)
        self.writer.write_table(table)

    def close(self) -> None:
        self.writer.close()
