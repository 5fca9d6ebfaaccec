"""Measurements of a run: metrics.jsonl, and Composer's loggers."""

import contextlib
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mosaicbert.batch import StepBatch
from mosaicbert.config import ModelConfig
from mosaicbert.estimate import training_flops
from mosaicbert.filesystem import write_file
from mosaicbert.report.metrics import read_metrics
from mosaicbert.train.callbacks.throughput import StepSizes, ThroughputMeter
from mosaicbert.train.composer import Callback, Logger, State, dist
from mosaicbert.train.faults.spike_detector import SpikeDetector
from mosaicbert.train.progress.clock import TrainingClock
from mosaicbert.train.progress.run_progress import RunProgress, StepReport


class MetricsLogger(Callback):
    """Measure every step, and write a line of JSON for every Nth step and every evaluation. Only rank 0 writes.

    Measurements of one process (fill rate, data wait, memory, MFU) are those of rank 0. Steps are balanced over the
    ranks, so they are representative.

    Args:
        path: Path of metrics.jsonl.
        model: Model section of the recipe, for the FLOPs of a step.
        peak_lr: Peak learning rate.
        progress: Progress of the run.
        clock: Training clock of this process.
        spike_detector: Spike detector of the run, for the number of skipped steps.
        num_rollbacks: Number of rollbacks of the run so far.
        peak_flops: Peak of one process's device in FLOP/s.
        log: Function that prints a line.

    Attributes:
        throughput: Throughput of the session.
        eval_loss: Loss of the last evaluation of this session in nats, NaN before the first.
    """

    throughput: ThroughputMeter

    def __init__(
        self,
        path: Path,
        *,
        model: ModelConfig,
        peak_lr: float,
        progress: RunProgress,
        clock: TrainingClock,
        spike_detector: SpikeDetector,
        num_rollbacks: int,
        peak_flops: float,
        log: Callable[[str], None],
    ) -> None:
        self.path = path
        self.model = model
        self.peak_lr = peak_lr
        self.progress = progress
        self.clock = clock
        self.spike_detector = spike_detector
        self.num_rollbacks = num_rollbacks
        self.peak_flops = peak_flops
        self.log = log
        self.eval_loss = math.nan
        self._is_rank_zero = dist.get_global_rank() == 0
        self._data_wait = self._requested_at = 0.0
        self._can_write = True

    def fit_start(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        progress = self.progress
        self.clock.start(progress.position.seconds)
        self.throughput = ThroughputMeter(progress.position.steps, progress.training_seconds, self.peak_flops)
        if self._is_rank_zero:
            _truncate_after(self.path, progress.position.steps)

    def before_dataloader(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        self._requested_at = time.perf_counter()

    def after_dataloader(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        is_busy = torch.cuda.is_available() and not torch.cuda.current_stream().query()
        if not is_busy:  # a busy device has not waited for data
            self._data_wait += time.perf_counter() - self._requested_at

    def batch_end(self, state: State, logger: Logger) -> None:
        step: StepBatch = state.batch
        report, progress = self.progress.report, self.progress
        assert report is not None  # the first step of a session is finalized at once
        if not self._is_rank_zero:
            return
        sizes = StepSizes.of(step)
        flops = training_flops(
            self.model,
            num_tokens=sizes.num_tokens,
            squared_lengths=sizes.squared_lengths,
            num_masked=sum(step.num_masked),
        )
        self.throughput.add(step.global_num_tokens, flops)
        if progress.is_finalized:
            self.throughput.measure(progress.position.steps, progress.training_seconds)
        if progress.is_logged:
            record = self._record(step, report, sizes)
            self._write(record)
            logger.log_metrics({f"train/{name}": value for name, value in record.items() if value is not None})

    def eval_before_all(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        self.clock.pause()

    def eval_after_all(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        self.clock.resume()

    def eval_end(self, state: State, logger: Logger) -> None:
        values = {name: float(metric.compute()) for name, metric in state.eval_metrics["eval"].items()}
        self.eval_loss = values["loss"]
        progress = self.progress
        record = {
            "step": progress.position.steps,
            "tokens": progress.position.tokens,
            "seconds": round(progress.training_seconds, 3),
            "wall_seconds": round(self.clock.seconds, 3),
            "eval_loss": values["loss"],
            "eval_accuracy": values["accuracy"],
        }
        if self._is_rank_zero:
            self._write(record)
            logger.log_metrics({f"eval/{name}": record[f"eval_{name}"] for name in ("loss", "accuracy")})

    def _record(self, step: StepBatch, report: StepReport, sizes: StepSizes) -> dict[str, Any]:
        progress = self.progress
        data_wait, self._data_wait = self._data_wait, 0.0
        return {
            "step": progress.position.steps,
            "samples": progress.position.samples,
            "tokens": progress.position.tokens,
            "seconds": round(progress.training_seconds, 3),
            "cpu_seconds": round(progress.cpu_seconds, 3),
            "wall_seconds": round(progress.position.seconds, 3),
            "progress": round(progress.plan.fraction_done(progress.position), 6),
            "loss": _finite_or_none(report.loss),
            "accuracy": report.accuracy,
            "grad_norm": _finite_or_none(report.grad_norm),
            "lr": self.peak_lr * report.lr_fraction,
            "mask_rate": step.mask_rate,
            "num_masked": step.global_num_masked,
            "batch_samples": step.global_num_samples,
            "fill_rate": round(sizes.num_tokens / sizes.capacity, 4),
            "padding_rate": round(1.0 - sizes.num_tokens / sizes.num_padded_tokens, 4),
            "data_wait_seconds": round(data_wait, 5),
            "memory_gib": round(_peak_memory() / 2**30, 3),
            "skipped_steps": self.spike_detector.num_skipped,
            "rollbacks": self.num_rollbacks,
            "tokens_per_second": round(self.throughput.tokens_per_second, 1),
            "mfu": round(self.throughput.mfu, 4),
        }

    def _write(self, record: dict[str, Any]) -> None:
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:  # a full disk does not stop the run
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)  # otherwise the next line would be appended to an incomplete one
            if self._can_write:
                self.log(f"{self.path} cannot be written ({error.strerror}). The run continues.")
            self._can_write = False


def _truncate_after(path: Path, step: int) -> None:
    """Remove the lines that an interrupted session wrote after the checkpoint that this session resumes from."""
    if path.exists():
        lines = [json.dumps(line) + "\n" for line in read_metrics(path) if line["step"] <= step]
        write_file(path, "".join(lines).encode())


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _peak_memory() -> int:
    """Return the peak memory of this process in bytes, on its GPU if there is one, otherwise on the host."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
