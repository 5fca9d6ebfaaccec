"""What a run does at each step, and how far it has come: pure functions of its recipe."""

import math
from dataclasses import dataclass

from mosaicbert.config.duration import Duration
from mosaicbert.config.recipe import Recipe

_WARMUP_SIZES = 8  # a growing batch has so many sizes on its way: every new size brings new static shapes


@dataclass(frozen=True, kw_only=True)
class TrainPosition:
    """How far a run has come.

    Attributes:
        steps: done.
        samples: trained, all devices together.
        tokens: real ones among them.
        seconds: of wall-clock time since the first step, evaluations and checkpoints included, pauses not.
    """

    steps: int = 0
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def count(self, unit: str) -> float:
        """The steps, samples, tokens or seconds."""
        return {"steps": self.steps, "samples": self.samples, "tokens": self.tokens, "seconds": self.seconds}[unit]


def has_passed(interval: Duration, before: TrainPosition, after: TrainPosition) -> bool:
    """Whether a multiple of `interval` lies between two positions."""
    amount, unit = interval.amount, interval.unit
    return math.floor(after.count(unit) / amount) > math.floor(before.count(unit) / amount)


class TrainPlan:
    """The course of a run.

    Batches are numbered from 0. The batch of a step has the step's number, unless batches before it have been skipped.

    Args:
        recipe: of the run.
        tokens_per_sample: mean, real ones: what lengths in tokens are converted with where a number of steps is needed.

    Attributes:
        num_steps: of the run: exact if its duration is given in steps or samples, expected if it is given in tokens,
            None if it is a time.
    """

    def __init__(self, recipe: Recipe, tokens_per_sample: float) -> None:
        self.recipe = recipe
        self.length = recipe.train.length
        self._stages = _stages(recipe, tokens_per_sample)
        self.num_steps: int | None = None
        if self.length.unit == "steps":
            self.num_steps = int(self.length.amount)
        elif self.length.unit == "samples":
            self.num_steps = self._batches_within(int(self.length.amount))
        elif self.length.unit == "tokens":
            samples = math.ceil(self.length.amount / tokens_per_sample)
            self.num_steps = self._batches_within(samples - 1) + 1

    def first_sample(self, batch: int) -> int:
        """The place of a batch's first sample in the order of the run's samples."""
        stage = next(stage for stage in reversed(self._stages) if stage.first_batch <= batch)
        return stage.first_sample + (batch - stage.first_batch) * stage.size

    def mask_rate(self, step: int) -> float:
        """Of a training step: linear from data.mask_rate at the first to data.final_mask_rate at the last."""
        first, last = self.recipe.data.mask_rate, self.recipe.data.final_mask_rate
        if last is None or self.num_steps is None:
            return first
        share = min(1.0, step / max(1, self.num_steps - 1))
        return first * (1.0 - share) + last * share

    def share_done(self, position: TrainPosition) -> float:
        """How much of the run's duration has passed: 1.0 from its end on, in the unit that it is given in."""
        total = self.length.amount
        if self.length.unit == "samples":  # whole batches
            assert self.num_steps is not None
            total = self.first_sample(self.num_steps)
        return min(1.0, position.count(self.length.unit) / total)

    def is_done(self, position: TrainPosition) -> bool:
        """Whether the run's duration has passed."""
        return self.share_done(position) >= 1.0

    def _batches_within(self, samples: int) -> int:
        """How many whole batches `samples` make."""
        stage = next(stage for stage in reversed(self._stages) if stage.first_sample <= samples)
        return stage.first_batch + (samples - stage.first_sample) // stage.size


@dataclass(frozen=True)
class _Stage:
    """Batches of one size, up to the next stage."""

    first_batch: int
    first_sample: int
    size: int


def _stages(recipe: Recipe, tokens_per_sample: float) -> list[_Stage]:
    first, last = recipe.train.initial_batch_samples, recipe.train.global_batch_samples
    if first is None or recipe.train.batch_warmup_tokens is None:
        return [_Stage(0, 0, last)]
    samples_per_size = recipe.train.batch_warmup_tokens / tokens_per_sample / _WARMUP_SIZES
    stages: list[_Stage] = []
    batch = sample = 0
    for number in range(_WARMUP_SIZES):
        size = round(first + (last - first) * number / _WARMUP_SIZES)
        stages.append(_Stage(batch, sample, size))
        batches = max(1, round(samples_per_size / size))
        batch, sample = batch + batches, sample + batches * size
    return [*stages, _Stage(batch, sample, last)]
