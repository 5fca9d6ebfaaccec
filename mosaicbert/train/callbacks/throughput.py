"""Throughput of a session: tokens per second, model FLOPs utilization, seconds per step."""

from collections import deque
from dataclasses import dataclass

from mosaicbert.batch import StepBatch

_WINDOW_STEPS = 20  # throughput is averaged over this many steps, or more if measurements are less frequent


@dataclass(frozen=True)
class StepSizes:
    """Sizes of a step on one rank.

    Attributes:
        num_tokens: Number of real tokens.
        squared_lengths: Sum over documents of the squared length in tokens.
        capacity: Capacity of the micro-batches in tokens, padding included.
        num_padded_tokens: Number of tokens if each document were padded to the longest one of its micro-batch.
    """

    num_tokens: int
    squared_lengths: int
    capacity: int
    num_padded_tokens: int

    @classmethod
    def of(cls, step: StepBatch) -> "StepSizes":
        """Compute the sizes of a step."""
        squared_lengths = num_padded_tokens = 0
        for ends, num_sequences in zip(step.cu_seqlens, step.num_sequences, strict=True):
            seqlens = ends[: num_sequences + 1].diff().long()
            squared_lengths += int(seqlens.square().sum())
            num_padded_tokens += int(seqlens.max()) * num_sequences if num_sequences else 0
        return cls(sum(step.num_tokens), squared_lengths, step.input_ids.numel(), num_padded_tokens)


@dataclass(frozen=True)
class _Snapshot:
    """Totals at a finalized step.

    Attributes:
        steps: Number of steps of the run.
        seconds: Training time of the run in seconds.
        num_tokens: Number of real tokens of this session.
        flops: FLOPs of this session on rank 0.
    """

    steps: int
    seconds: float
    num_tokens: int
    flops: float


class ThroughputMeter:
    """Moving averages over the last steps of a session. The first step of a session, which compiles, is excluded.

    Args:
        steps: Number of steps of the run before the session.
        seconds: Training time of the run before the session in seconds.
        peak_flops: Peak of one process's device in FLOP/s.

    Attributes:
        tokens_per_second: Real tokens per second of all ranks together.
        mfu: Model FLOPs utilization: FLOP/s of rank 0 as a fraction of the peak.
        seconds_per_step: Duration of a step in seconds.
    """

    def __init__(self, steps: int, seconds: float, peak_flops: float) -> None:
        self.peak_flops = peak_flops
        self.tokens_per_second = self.mfu = self.seconds_per_step = 0.0
        self._num_tokens = 0
        self._flops = 0.0
        self._snapshots = deque([_Snapshot(steps, seconds, 0, 0.0)])

    def add(self, num_tokens: int, flops: float) -> None:
        """Count a step, which may still be pending.

        Args:
            num_tokens: Number of real tokens of the global batch.
            flops: FLOPs of the step on rank 0.
        """
        self._num_tokens += num_tokens
        self._flops += flops

    def measure(self, steps: int, seconds: float) -> None:
        """Update the averages at a finalized step.

        Args:
            steps: Number of steps of the run.
            seconds: Training time of the run in seconds.
        """
        now, snapshots = _Snapshot(steps, seconds, self._num_tokens, self._flops), self._snapshots
        while len(snapshots) > 1 and now.steps - snapshots[1].steps >= _WINDOW_STEPS:
            snapshots.popleft()
        elapsed = now.seconds - snapshots[0].seconds
        self.seconds_per_step = elapsed / (now.steps - snapshots[0].steps)
        self.tokens_per_second = (now.num_tokens - snapshots[0].num_tokens) / elapsed
        self.mfu = (now.flops - snapshots[0].flops) / elapsed / self.peak_flops
        snapshots.append(now)
        if not snapshots[0].num_tokens:
            snapshots.popleft()  # the first step of a session is slower, because it compiles and fills caches
