"""Training plan: steps, batches and mask rates of a run, as pure functions of its recipe."""

import math
from dataclasses import dataclass

from mosaicbert.config.duration import Duration
from mosaicbert.config.recipe import DataConfig, TrainConfig

_WARMUP_SIZES = 8  # sizes of a growing batch before the last one: every new size brings new static shapes


@dataclass(frozen=True, kw_only=True)
class TrainPosition:
    """Position of a run.

    Attributes:
        steps: Number of finished steps.
        samples: Number of samples trained on, over all devices.
        tokens: Number of real tokens in them.
        seconds: Wall-clock time since the first step in seconds, evaluations and checkpoints included, pauses excluded.
    """

    steps: int = 0
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def count(self, unit: str) -> float:
        """Return the position in one unit: steps, samples, tokens or seconds."""
        return {"steps": self.steps, "samples": self.samples, "tokens": self.tokens, "seconds": self.seconds}[unit]


def has_passed(interval: Duration, before: TrainPosition, after: TrainPosition) -> bool:
    """Return True if a multiple of `interval` lies between two positions."""
    amount, unit = interval.amount, interval.unit
    return math.floor(after.count(unit) / amount) > math.floor(before.count(unit) / amount)


class TrainPlan:
    """Training plan of a run: its number of steps, the samples of each batch and the mask rate of each step.

    Batches are numbered from 0. A step trains on the batch of its number, unless batches before it have been skipped.

    Args:
        data: Data section of the recipe.
        train: Train section of the recipe.
        tokens_per_sample: Mean number of real tokens per sample, which converts lengths in tokens to steps.

    Attributes:
        length: Length of the run in the unit of train.duration.
        num_steps: Number of steps of the run: exact for a duration in steps or samples, expected for one in tokens,
            None for a time.
    """

    def __init__(self, data: DataConfig, train: TrainConfig, tokens_per_sample: float) -> None:
        self.length = train.length
        self._mask_rates = data.mask_rate, data.final_mask_rate
        self._stages = _stages(train, tokens_per_sample)
        self.num_steps: int | None = None
        if self.length.unit == "steps":
            self.num_steps = int(self.length.amount)
        elif self.length.unit == "samples":
            self.num_steps = self._batches_within(int(self.length.amount))
        elif self.length.unit == "tokens":
            samples = math.ceil(self.length.amount / tokens_per_sample)
            self.num_steps = self._batches_within(samples - 1) + 1

    @property
    def exact_num_steps(self) -> int | None:
        """Number of steps of the run if its duration is given in steps or samples, otherwise None."""
        return self.num_steps if self.length.unit in ("steps", "samples") else None

    @property
    def num_samples(self) -> int | None:
        """Number of samples of all steps, or None if the number of steps is None."""
        return None if self.num_steps is None else self.first_sample(self.num_steps)

    def first_sample(self, batch: int) -> int:
        """Return the position of a batch's first sample in the sample order of the run."""
        stage = next(stage for stage in reversed(self._stages) if stage.first_batch <= batch)
        return stage.first_sample + (batch - stage.first_batch) * stage.size

    def mask_rate(self, step: int) -> float:
        """Return the mask rate of a step, which changes linearly from data.mask_rate to data.final_mask_rate."""
        first, last = self._mask_rates
        if last is None or self.num_steps is None:
            return first
        fraction = min(1.0, step / max(1, self.num_steps - 1))
        return first * (1.0 - fraction) + last * fraction

    def fraction_done(self, position: TrainPosition) -> float:
        """Return the fraction of the run's duration that has passed, in the duration's unit; 1.0 from its end on."""
        total = self.length.amount
        if self.length.unit == "samples":  # whole batches
            assert self.num_samples is not None
            total = self.num_samples
        return min(1.0, position.count(self.length.unit) / total)

    def is_done(self, position: TrainPosition) -> bool:
        """Return True if the run's duration has passed."""
        return self.fraction_done(position) >= 1.0

    def _batches_within(self, samples: int) -> int:
        stage = next(stage for stage in reversed(self._stages) if stage.first_sample <= samples)
        return stage.first_batch + (samples - stage.first_sample) // stage.size


@dataclass(frozen=True)
class _Stage:
    first_batch: int
    first_sample: int
    size: int


def _stages(train: TrainConfig, tokens_per_sample: float) -> list[_Stage]:
    first, last = train.initial_batch_samples, train.global_batch_samples
    if first is None or train.batch_warmup_tokens is None:
        return [_Stage(0, 0, last)]
    samples_per_size = train.batch_warmup_tokens / tokens_per_sample / _WARMUP_SIZES
    stages: list[_Stage] = []
    batch = sample = 0
    for number in range(_WARMUP_SIZES):
        size = round(first + (last - first) * number / _WARMUP_SIZES)
        stages.append(_Stage(batch, sample, size))
        batches = max(1, round(samples_per_size / size))
        batch, sample = batch + batches, sample + batches * size
    return [*stages, _Stage(batch, sample, last)]
