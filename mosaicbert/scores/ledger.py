"""scores.jsonl: one line per checkpoint, task and seed that has been fine-tuned. It is the ledger of what is done."""

import json
import os
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mosaicbert.config import ConfigError

FILE_NAME = "scores.jsonl"


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """What a checkpoint had cost.

    Attributes:
        steps: of the optimizer.
        tokens: real ones, without padding.
        seconds: of training alone.
        wall_seconds: with evaluations and checkpoints.
        flops: of the model, by the run's mean sample length.
    """

    steps: int
    tokens: int
    seconds: float
    wall_seconds: float
    flops: float


@dataclass(frozen=True, kw_only=True)
class Score:
    """A line of scores.jsonl.

    Attributes:
        model: the folder or the Hub name of what was fine-tuned.
        step: of the run, for a checkpoint of one.
        task: see `mosaicbert.config.glue.TASKS`.
        seed: of head, order and dropout.
        metrics: by name, as fractions: 0.5 is 50.
        protocol: fingerprint of everything about the fine-tuning that changes a score, the model apart.
        start: "pretraining" or "mnli", the weights that it began with.
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
    start: str
    is_partial: bool
    seconds: float
    pretraining: Pretraining | None
    environment: dict[str, Any]
    finished: str

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
    for number, line in enumerate(path.read_text().split("\n")[:-1], start=1):
        try:
            fields: dict[str, Any] = json.loads(line)
            spent = fields.pop("pretraining")
            scores.append(Score(pretraining=None if spent is None else Pretraining(**spent), **fields))
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path}: line {number} is no score ({error}); mend it or take it out.") from error
    return scores


def append_score(path: Path, score: Score) -> None:
    """Adds a line, and waits until it is on the disk. One process may write at a time."""
    with path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)  # half a line, which a crash left
        file.write((json.dumps(asdict(score)) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())
