"""What a run says while it runs: metrics.jsonl, Composer's loggers, and one live line with progress, loss and speed."""

import contextlib
import json
import math
import os
import resource
import sys
import time
from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from mosaicbert.batch import StepBatch
from mosaicbert.config import Recipe
from mosaicbert.estimate import training_flops
from mosaicbert.report.metrics import read_metrics
from mosaicbert.train.composer import Callback, Logger, State, dist
from mosaicbert.train.progress import Clock, Course, StepReport

_WINDOW_STEPS = 20  # speed is averaged over so many steps, or since the line before if that is longer ago
_LINES_WITHOUT_TERMINAL = 20
_BAR_PARTS = 1000


class SeededSteps(Callback):
    """Makes the noise of dropout a function of (seed, step, rank), so that a resumed run draws what it would have."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def batch_start(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        torch.manual_seed(hash((self.seed, state.timestamp.batch.value, dist.get_global_rank())) % 2**63)


class Monitor(Callback):
    """Measures every step; writes a line of JSON for every so-manieth and every evaluation. Only rank 0 writes.

    What concerns one process (how full its micro-batches were, its wait for data, its memory, its share of the peak) is
    that of rank 0, which is as good as any other: steps are dealt out evenly.

    Args:
        recipe: of the run.
        path: of metrics.jsonl.
        course: of the run.
        clock: of this process.
        num_rollbacks: that the run has made so far.
        peak_flops: of one process' device, FLOP/s.
        console: to print to.
    """

    def __init__(
        self,
        recipe: Recipe,
        path: Path,
        course: Course,
        clock: Clock,
        num_rollbacks: int,
        peak_flops: float,
        console: Console,
    ) -> None:
        self.recipe = recipe
        self.path = path
        self.course = course
        self.clock = clock
        self.num_rollbacks = num_rollbacks
        self.peak_flops = peak_flops
        self.console = console
        self._is_first = dist.get_global_rank() == 0
        self._marks: deque[_Mark] = deque()
        self._tokens = 0
        self._flops = 0.0
        self._asked_at = 0.0
        self._data_wait = 0.0
        self._speed: dict[str, float] = {}
        self._seconds_per_step = 0.0
        self._shown_share = -1.0
        self._eval_loss = math.nan
        self._can_write = True
        self._progress = Progress(
            BarColumn(bar_width=8),  # the whole line fits 80 columns
            TextColumn("{task.fields[measures]}"),
            console=console,
            disable=not (console.is_terminal and self._is_first),
        )
        self._task = self._progress.add_task("pretraining", total=_BAR_PARTS, measures="")

    def fit_start(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        self.clock.start(self.course.position.seconds)
        self._marks.append(self._mark())
        if self._is_first:
            _forget_after(self.path, self.course.position.steps)
            self._progress.start()

    def before_dataloader(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        self._asked_at = time.perf_counter()

    def after_dataloader(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        is_busy = torch.cuda.is_available() and not torch.cuda.current_stream().query()
        if not is_busy:  # a device that still has work has lost nothing
            self._data_wait += time.perf_counter() - self._asked_at

    def batch_end(self, state: State, logger: Logger) -> None:
        step: StepBatch = state.batch
        report = self.course.report
        assert report is not None  # the first step of a sitting is settled at once
        if not self._is_first:
            return
        shape = _Shape.of(step)
        self._tokens += step.global_tokens
        self._flops += training_flops(
            self.recipe.model,
            tokens=shape.tokens,
            squared_lengths=shape.squared_lengths,
            masked=sum(step.num_masked),
        )
        if self.course.is_settled:
            self._measure_speed()
        if self.course.is_logged:
            record = self._measure(step, report, shape) | self._speed
            self._write(record)
            logger.log_metrics({f"train/{name}": value for name, value in record.items() if value is not None})
        self._show(report)

    def eval_before_all(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        self.clock.pause()

    def eval_after_all(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        self.clock.resume()

    def eval_end(self, state: State, logger: Logger) -> None:
        values = {name: float(metric.compute()) for name, metric in state.eval_metrics["eval"].items()}
        self._eval_loss = values["loss"]
        course = self.course
        record = {
            "step": course.position.steps,
            "tokens": course.position.tokens,
            "seconds": round(course.training_seconds, 3),
            "wall_seconds": round(self.clock.seconds, 3),
            "eval_loss": values["loss"],
            "eval_accuracy": values["accuracy"],
        }
        if self._is_first:
            self._write(record)
            logger.log_metrics({f"eval/{name}": record[f"eval_{name}"] for name in ("loss", "accuracy")})

    def fit_end(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        self.stop()

    def close(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        self.stop()

    def stop(self) -> None:
        """Ends the live line."""
        if self._progress.live.is_started:
            self._progress.stop()

    def _mark(self) -> "_Mark":
        return _Mark(self.course.position.steps, self.course.training_seconds, self._tokens, self._flops)

    def _measure_speed(self) -> None:
        now, marks = self._mark(), self._marks
        while len(marks) > 1 and now.steps - marks[1].steps >= _WINDOW_STEPS:
            marks.popleft()
        seconds = now.seconds - marks[0].seconds
        self._seconds_per_step = seconds / (now.steps - marks[0].steps)
        self._speed = {
            "tokens_per_second": round((now.tokens - marks[0].tokens) / seconds, 1),
            "mfu": round((now.flops - marks[0].flops) / seconds / self.peak_flops, 4),
        }
        marks.append(now)
        if not marks[0].tokens:
            marks.popleft()  # the first step of a sitting compiles, and fills caches

    def _measure(self, step: StepBatch, report: StepReport, shape: "_Shape") -> dict[str, Any]:
        course = self.course
        waited, self._data_wait = self._data_wait, 0.0
        return {
            "step": course.position.steps,
            "samples": course.position.samples,
            "tokens": course.position.tokens,
            "seconds": round(course.training_seconds, 3),
            "wall_seconds": round(course.position.seconds, 3),
            "progress": round(course.plan.share_done(course.position), 6),
            "loss": _finite(report.loss),
            "accuracy": report.accuracy,
            "grad_norm": _finite(report.grad_norm),
            "lr": self.recipe.optimizer.peak_lr * report.learning_rate_share,
            "mask_rate": step.mask_rate,
            "masked": step.global_masked,
            "batch_samples": step.global_samples,
            "fill_rate": round(shape.tokens / shape.room, 4),
            "padding_rate": round(1.0 - shape.tokens / shape.rectangle, 4),
            "data_wait_seconds": round(waited, 5),
            "memory_gib": round(_peak_memory() / 2**30, 3),
            "skipped_steps": course.guard.num_skipped,
            "rollbacks": self.num_rollbacks,
        }

    def _seconds_left(self) -> float:
        course = self.course
        if course.plan.length.unit == "seconds":
            return course.plan.length.amount - course.position.seconds
        done = course.plan.share_done(course.position)
        steps = course.plan.num_steps or 0
        return (1.0 - done) * steps * self._seconds_per_step

    def _write(self, record: dict[str, Any]) -> None:
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:  # a full disk costs the line, not the run
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)  # or the next line would stand behind a part of this one
            if self._can_write:
                self.console.print(
                    f"{self.path}: cannot be written ({error.strerror}). The run goes on.", highlight=False
                )
            self._can_write = False

    def _show(self, report: StepReport) -> None:
        position, num_steps = self.course.position, self.course.plan.num_steps
        evaluated = "" if math.isnan(self._eval_loss) else f", held-out {self._eval_loss:.2f}"
        steps = f"{position.steps}" if num_steps is None else f"{position.steps}/{max(num_steps, position.steps)}"
        speed, seconds_left = self._speed, timedelta(seconds=max(0, round(self._seconds_left())))
        measures = (
            f"step {steps}  loss {report.loss:.2f}{evaluated}  {speed['tokens_per_second'] / 1e3:,.1f}k tokens/s  "
            f"MFU {speed['mfu']:.0%}  {seconds_left} left"
        )
        done = self.course.plan.share_done(position)
        self._progress.update(self._task, completed=done * _BAR_PARTS, measures=measures)
        is_due = math.floor(done * _LINES_WITHOUT_TERMINAL) > math.floor(self._shown_share * _LINES_WITHOUT_TERMINAL)
        if not self.console.is_terminal and (is_due or self.course.is_done):
            self._shown_share = done
            self.console.print(measures, highlight=False)


@dataclass(frozen=True)
class _Mark:
    """What a sitting had done at a settled step.

    Attributes:
        steps: of the run.
        seconds: of training, of the run.
        tokens: of this sitting.
        flops: of this sitting, by rank 0.
    """

    steps: int
    seconds: float
    tokens: int
    flops: float


@dataclass(frozen=True)
class _Shape:
    """Sizes of one rank's share of a step.

    Attributes:
        tokens: real ones.
        squared_lengths: sum over documents of the length squared.
        room: for tokens in the micro-batches.
        rectangle: tokens that the same documents take when each is padded to the longest of its micro-batch.
    """

    tokens: int
    squared_lengths: int
    room: int
    rectangle: int

    @classmethod
    def of(cls, step: StepBatch) -> "_Shape":
        squares = rectangle = 0
        for ends, number in zip(step.cu_seqlens, step.num_sequences, strict=True):
            seqlens = ends[: number + 1].diff().long()
            squares += int(seqlens.square().sum())
            rectangle += int(seqlens.max()) * number if number else 0
        return cls(sum(step.num_tokens), squares, step.input_ids.numel(), rectangle)


def _forget_after(path: Path, step: int) -> None:
    """Drops what an interrupted sitting wrote after the checkpoint that this one continues from."""
    if path.exists():
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        partial.replace(path)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _peak_memory() -> int:
    """Bytes that this process has taken at most: of its GPU, or of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
