"""Training plan: number of steps, batch sizes and mask rates of a run, computed from its recipe."""

import math
from dataclasses import dataclass

from mosaicbert.config.duration import Duration
from mosaicbert.config.recipe import DataConfig, TrainConfig

_NUM_WARMUP_SIZES = 8  # batch sizes before the final one; few, since every size adds static shapes


@dataclass(frozen=True, kw_only=True)
class TrainPosition:
    """Position in a run.

    Attributes:
        steps: Number of completed steps.
        samples: Number of samples of these steps, over all devices.
        tokens: Number of real tokens of these steps, over all devices.
        seconds: Wall-clock seconds since the first step, including evaluations and checkpoints, excluding pauses.
    """

    steps: int = 0
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def count(self, unit: str) -> float:
        """Return the position in steps, samples, tokens or seconds."""
        return {"steps": self.steps, "samples": self.samples, "tokens": self.tokens, "seconds": self.seconds}[unit]


def has_passed(interval: Duration, before: TrainPosition, after: TrainPosition) -> bool:
    """Return True if a multiple of the interval is after the first position, up to the second."""
    amount, unit = interval.amount, interval.unit
    return math.floor(after.count(unit) / amount) > math.floor(before.count(unit) / amount)


class TrainPlan:
    """Training plan of a run: the number of steps, the samples of each batch and the mask rate of each step.

    Batch indices start at 0. A step uses the batch with the same index, unless earlier batches have been skipped.

    Args:
        data: Data section of the recipe.
        train: Train section of the recipe.
        tokens_per_sample: Mean number of real tokens per sample, for the conversion of tokens to samples.

    Attributes:
        length: Parsed value of train.duration.
        num_steps: Number of steps of the run: exact for a duration in steps or samples, expected for tokens, None for
            a time.
    """

    def __init__(self, data: DataConfig, train: TrainConfig, tokens_per_sample: float) -> None:
        self.length = train.length
        self._mask_rates = data.mask_rate, data.final_mask_rate
        self._stages = _stages(train, tokens_per_sample)
        self.num_steps: int | None = None
        if self.length.unit == "steps":
            self.num_steps = int(self.length.amount)
        elif self.length.unit == "samples":
            self.num_steps = self._num_batches_within(int(self.length.amount))
        elif self.length.unit == "tokens":
            num_samples = math.ceil(self.length.amount / tokens_per_sample)
            self.num_steps = self._num_batches_within(num_samples - 1) + 1

    @property
    def exact_num_steps(self) -> int | None:
        """Number of steps for a duration in steps or samples, otherwise None."""
        return self.num_steps if self.length.unit in ("steps", "samples") else None

    @property
    def num_samples(self) -> int | None:
        """Number of samples of all steps, or None if num_steps is None."""
        return None if self.num_steps is None else self.first_sample(self.num_steps)

    def first_sample(self, batch: int) -> int:
        """Return the position of the first sample of a batch in the sample order of the run."""
        stage = next(stage for stage in reversed(self._stages) if stage.first_batch <= batch)
        return stage.first_sample + (batch - stage.first_batch) * stage.size

    def mask_rate(self, step: int) -> float:
        """Return the mask rate of a step, interpolated linearly from data.mask_rate to data.final_mask_rate."""
        first, last = self._mask_rates
        if last is None or self.num_steps is None:
            return first
        fraction = min(1.0, step / max(1, self.num_steps - 1))
        return first * (1.0 - fraction) + last * fraction

    def fraction_done(self, position: TrainPosition) -> float:
        """Return the completed fraction of the duration, in its unit and at most 1.0."""
        total = self.length.amount
        if self.length.unit == "samples":  # rounded down to whole batches
            assert self.num_samples is not None
            total = self.num_samples
        return min(1.0, position.count(self.length.unit) / total)

    def is_done(self, position: TrainPosition) -> bool:
        """Return True if the duration of the run has been reached."""
        return self.fraction_done(position) >= 1.0

    def _num_batches_within(self, num_samples: int) -> int:
        stage = next(stage for stage in reversed(self._stages) if stage.first_sample <= num_samples)
        return stage.first_batch + (num_samples - stage.first_sample) // stage.size


@dataclass(frozen=True)
class _Stage:
    first_batch: int
    first_sample: int
    size: int


def _stages(train: TrainConfig, tokens_per_sample: float) -> list[_Stage]:
    first, last = train.initial_batch_samples, train.global_batch_samples
    if first is None or train.batch_warmup_tokens is None:
        return [_Stage(0, 0, last)]
    samples_per_size = train.batch_warmup_tokens / tokens_per_sample / _NUM_WARMUP_SIZES
    stages: list[_Stage] = []
    batch = sample = 0
    for index in range(_NUM_WARMUP_SIZES):
        size = round(first + (last - first) * index / _NUM_WARMUP_SIZES)
        stages.append(_Stage(batch, sample, size))
        num_batches = max(1, round(samples_per_size / size))
        batch, sample = batch + num_batches, sample + num_batches * size
    return [*stages, _Stage(batch, sample, last)]
