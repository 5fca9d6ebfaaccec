"""scores.jsonl: one line per checkpoint, task and seed that has been fine-tuned. It is the ledger of what is done."""

import json
import os
import re
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mosaicbert.config import ConfigError

SCORES_FILE = "scores.jsonl"
_VERSION = re.compile("@[0-9a-f]{12}$")  # behind the name of a model that is no run of ours
PRETRAINED = "pretraining"  # what a fine-tuning begins with, if not with the weights of another one


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """What a checkpoint had cost.

    Attributes:
        steps: of the optimizer.
        tokens: real ones, without padding.
        seconds: of training alone.
        wall_seconds: with the evaluations and checkpoints before it; not what was lost when the run was killed.
        flops: of the model, by the run's mean sample length.
        device: name of what it was trained on, e.g. NVIDIA H200.
        num_devices: that the run began with; all cores of a machine without GPUs are one.
    """

    steps: int
    tokens: int
    seconds: float
    wall_seconds: float
    flops: float
    device: str
    num_devices: int

    def is_same_training(self, other: "Pretraining") -> bool:
        """Whether both are of one course of a run; one that went back has trained a step again, in another time."""
        return (self.steps, self.tokens, self.wall_seconds) == (other.steps, other.tokens, other.wall_seconds)


@dataclass(frozen=True, kw_only=True)
class Score:
    """A line of scores.jsonl.

    Attributes:
        model: the folder or the Hub name of what was fine-tuned; with @ and a version, if it is no run of ours.
        step: of the run, for a checkpoint of one.
        task: see `mosaicbert.config.glue.TASKS`.
        seed: of head, order and dropout.
        metrics: by name, as fractions: 0.5 is 50.
        protocol: fingerprint of `settings`.
        settings: everything about the fine-tuning that changes a score, the model and the seed apart.
        initialized_from: Initial weights: `PRETRAINED`, or the name of the task that they were fine-tuned on.
        is_partial: whether the data were less than the official.
        seconds: that the fine-tuning took.
        pretraining: None for a model that is no run of ours.
        environment: device, versions and commit.
        finished: when, ISO 8601, UTC.
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
        """The model without its version."""
        return _VERSION.sub("", self.model)

    @property
    def value(self) -> float:
        """The score, 0 to 100 (Matthews and Spearman from -100): the mean of the metrics."""
        return 100.0 * statistics.fmean(self.metrics.values())


def read_scores(path: Path) -> list[Score]:
    """The lines of a scores.jsonl, without a last one that a crash cut off; none if there is no file.

    Raises:
        ConfigError: a line is no score.
    """
    if not path.exists():
        return []
    scores: list[Score] = []
    for number, line in enumerate(_whole_lines(path.read_bytes()), start=1):
        try:
            fields = dict(json.loads(line))
            spent = fields.pop("pretraining")
            scores.append(Score(pretraining=None if spent is None else Pretraining(**spent), **fields))
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path}: line {number} is no score ({error}); mend it or take it out.") from error
    return scores


def append_score(path: Path, score: Score) -> None:
    """Adds a line, and waits until it is on the disk. One process may write at a time."""
    with path.open("a+b") as file:
        file.seek(0)
        last = file.read().rpartition(b"\n")[2]
        if _is_whole(last):
            file.write(b"\n")  # an editor has left it without its end
        else:
            file.truncate(file.tell() - len(last))  # half a line, which a crash left
        file.write((json.dumps(asdict(score)) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def _whole_lines(content: bytes) -> list[bytes]:
    *lines, last = content.split(b"\n")
    return [*lines, last] if _is_whole(last) else lines


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
