"""Score records in scores.jsonl, one line per scored checkpoint, task and seed."""

import fcntl
import json
import os
import re
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from mosaicbert.config import ConfigError

_Record = TypeVar("_Record")
SCORES_FILE = "scores.jsonl"
_VERSION = re.compile("@[0-9a-f]{12}$")  # suffix of the name of a model that is not a run folder
BLIMP_PREFIX = "blimp/"  # of the task names of BLiMP, before the phenomenon
PRETRAINED = "pretraining"  # value of initialized_from without a previous fine-tuning


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """Pretraining cost of a checkpoint.

    Attributes:
        steps: Number of optimizer steps.
        tokens: Number of real tokens, without padding.
        seconds: Training time in seconds, excluding evaluations and checkpoints.
        wall_seconds: Wall-clock seconds, including evaluations and checkpoints, excluding steps that were lost when the
            process was killed.
        flops: FLOPs of the model, computed from the mean sample length of the run.
        device: Name of the device, e.g. NVIDIA H200.
        num_devices: Number of devices of the first session; all CPU cores together count as one.
        cpu_seconds: CPU time of the training process of rank 0 in seconds; None if it was not recorded.
        eval_loss: Validation loss of the checkpoint in nats per masked token; None if it was not evaluated.
        eval_bits_per_byte: Validation loss in bits per byte of text: eval_loss / ln(2) x tokens per byte of the
            validation texts; None if one of them is not known.
        seed: Seed of the pretraining; None if it was not recorded.
    """

    steps: int
    tokens: int
    seconds: float
    wall_seconds: float
    flops: float
    device: str
    num_devices: int
    cpu_seconds: float | None = None
    eval_loss: float | None = None
    eval_bits_per_byte: float | None = None
    seed: int | None = None

    def is_same_training(self, other: "Pretraining") -> bool:
        """Return whether both checkpoints are from the same training steps, without a rollback between them."""
        return (self.steps, self.tokens, self.wall_seconds) == (other.steps, other.tokens, other.wall_seconds)


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score of one checkpoint on one task, a line of scores.jsonl.

    Attributes:
        model: Folder or Hub name of the model, followed by @ and a version if it is not a run folder.
        step: Step of a checkpoint of a run; None for other models.
        task: Name of the task: one of `mosaicbert.config.glue.TASKS`, or `BLIMP_PREFIX` and a phenomenon.
        seed: Seed of the head, the data order and dropout; 0 for BLiMP, which has no seed.
        metrics: Metrics by name, as fractions from 0 to 1. For BLiMP the accuracy of each paradigm.
        protocol: Fingerprint of `settings`.
        settings: All settings that affect the score, except for the model and the seed.
        initialized_from: Initial weights: `PRETRAINED`, or the name of a task for weights fine-tuned on it.
        is_partial: True if the data were smaller than the official data.
        seconds: Duration of the fine-tuning and evaluation in seconds.
        pretraining: Pretraining cost of the checkpoint; None if the model is not a run folder.
        environment: Device, versions and commit.
        finished: UTC time of completion in ISO 8601 format.
    """

    model: str
    step: int | None
    task: str
    seed: int
    metrics: dict[str, float]
    protocol: str
    settings: dict[str, Any]
    initialized_from: str
    is_partial: bool
    seconds: float
    pretraining: Pretraining | None
    environment: dict[str, Any]
    finished: str

    @property
    def model_name(self) -> str:
        """Model without its version."""
        return _VERSION.sub("", self.model)

    @property
    def value(self) -> float:
        """Mean of the metrics in percent, from 0 to 100, or from -100 for Matthews and Spearman correlations."""
        return 100.0 * statistics.fmean(self.metrics.values())

    @property
    def is_blimp(self) -> bool:
        return self.task.startswith(BLIMP_PREFIX)


def read_scores(path: Path) -> list[Score]:
    """Read the scores of a scores.jsonl file, except for a truncated last line.

    Args:
        path: Path of the file. A missing file has no scores.

    Raises:
        ConfigError: If a line is not a valid score.
    """
    return read_records(path, _parse_score, "a score record")


def _parse_score(fields: dict[str, Any]) -> Score:
    cost = fields.pop("pretraining")
    return Score(pretraining=None if cost is None else Pretraining(**cost), **fields)


def read_records(path: Path, parse: Callable[[dict[str, Any]], _Record], kind: str) -> list[_Record]:
    """Read the records of a JSON Lines file, except for a truncated last line.

    Args:
        path: Path of the file. A missing file has no records.
        parse: Function that converts the fields of a line to a record.
        kind: Name of a record with its article, for the error message.

    Raises:
        ConfigError: If a line is not a valid record.
    """
    if not path.exists():
        return []
    records: list[_Record] = []
    for number, line in enumerate(_complete_lines(path.read_bytes()), start=1):
        try:
            records.append(parse(dict(json.loads(line))))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"{path}, line {number}, must be {kind}, got an invalid one ({error}). Fix or delete the line."
            ) from error
    return records


def append_score(path: Path, score: Score) -> None:
    """Append a score and flush it to disk. Several processes may write at a time."""
    append_line(path, json.dumps(asdict(score)))


def append_line(path: Path, line: str) -> None:
    """Append a line to a JSON Lines file and flush it to disk. A truncated last line is removed.

    The file is locked, because `mosaicbert glue` and `mosaicbert blimp` may score one run at the same time.

    Args:
        path: Path of the file, which need not exist.
        line: JSON text without a line break.
    """
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        last = file.read().rpartition(b"\n")[2]
        if _is_complete(last):
            file.write(b"\n")  # complete last line without a line break, e.g. after an edit
        else:
            file.truncate(file.tell() - len(last))  # truncated last line, e.g. after a crash
        file.write((line + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def _complete_lines(content: bytes) -> list[bytes]:
    *lines, last = content.split(b"\n")
    return [*lines, last] if _is_complete(last) else lines


def _is_complete(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
