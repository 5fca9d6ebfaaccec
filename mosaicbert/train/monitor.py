"""What a run says while it runs: metrics.jsonl, and one live line with progress, loss, speed and time left."""

import json
import math
import time
from collections import deque
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from composer import Callback, Logger, State
from composer.utils import dist
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from mosaicbert.accounting import training_flops
from mosaicbert.batch import Step
from mosaicbert.config import Recipe

_WINDOW_STEPS = 20  # speed is averaged over so many steps
_LINES_WITHOUT_TERMINAL = 20


class SeededSteps(Callback):
    """Makes the noise of dropout a function of (seed, step, rank), so that a resumed run draws what it would have."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def batch_start(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        torch.manual_seed(hash((self.seed, state.timestamp.batch.value, dist.get_global_rank())) % 2**63)


class Monitor(Callback):
    """Writes one JSON line per step and per evaluation, and keeps the console up to date. Only rank 0 writes.

    Args:
        recipe: of the run.
        path: of metrics.jsonl.
        peak_flops: of one process' device, FLOP/s.
        console: to print to.
    """

    def __init__(self, recipe: Recipe, path: Path, peak_flops: float, console: Console) -> None:
        self.recipe = recipe
        self.path = path
        self.peak_flops = peak_flops
        self.console = console
        self.steps = recipe.train.total_steps
        self._recent: deque[tuple[float, int, float]] = deque(maxlen=_WINDOW_STEPS)  # seconds, tokens, FLOPs
        self._step_flops = 0.0
        self._learning_rate = 0.0
        self._masked = 0
        self._fill_rate = 0.0
        self._asked_at = 0.0
        self._data_wait = 0.0
        self._tokens_before = 0
        self._eval_loss = math.nan
        self._progress = Progress(
            BarColumn(bar_width=8),  # the whole line fits 80 columns
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[measures]}"),
            console=console,
            disable=not (console.is_terminal and dist.get_global_rank() == 0),
        )
        self._task = self._progress.add_task("pretraining", total=self.steps, measures="")

    def fit_start(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        self._tokens_before = state.timestamp.token.value
        if dist.get_global_rank() == 0:
            self._forget_after(state.timestamp.batch.value)
            self._progress.start()

    def before_dataloader(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        self._asked_at = time.perf_counter()

    def after_dataloader(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        self._data_wait = time.perf_counter() - self._asked_at

    def batch_start(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        self._learning_rate = state.optimizers[0].param_groups[0]["lr"]  # at the step's end it is the next one's
        # This rank's share is as good as any other's: steps are dealt out evenly.
        step: Step = state.batch
        tokens = sum(step.num_tokens)
        ends = zip(step.cu_seqlens, step.num_sequences, strict=True)
        squares = sum(int(row[: number + 1].diff().long().square().sum()) for row, number in ends)
        masked = sum(step.num_masked)
        self._masked = step.global_masked
        self._fill_rate = tokens / step.input_ids.numel()
        self._step_flops = training_flops(self.recipe.model, tokens=tokens, squared_lengths=squares, masked=masked)

    def batch_end(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        now = state.timestamp
        seconds = now.batch_wct.total_seconds() if now.batch_wct else math.nan
        self._recent.append((seconds, now.token.value - self._tokens_before, self._step_flops))
        self._tokens_before = now.token.value
        window, tokens, flops = (sum(column) for column in zip(*self._recent, strict=True))
        record = {
            "step": now.batch.value,
            "samples": now.sample.value,
            "tokens": now.token.value,
            "seconds": round(now.total_wct.total_seconds() if now.total_wct else math.nan, 3),
            "loss": float(state.total_loss_dict["loss/train/total"]),
            "lr": self._learning_rate,
            "masked": self._masked,
            "fill_rate": round(self._fill_rate, 4),
            "data_wait_seconds": round(self._data_wait, 5),
            "tokens_per_second": round(tokens / window, 1),
            "mfu": round(flops / window / self.peak_flops, 4),
        }
        self._write(record)
        self._show(record, seconds_left=window / len(self._recent) * (self.steps - record["step"]))

    def eval_end(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        values = {name: float(metric.compute()) for name, metric in state.eval_metrics["eval"].items()}
        self._eval_loss = values["loss"]
        self._write(
            {
                "step": state.timestamp.batch.value,
                "tokens": state.timestamp.token.value,
                "seconds": round(state.timestamp.total_wct.total_seconds() if state.timestamp.total_wct else 0.0, 3),
                "eval_loss": values["loss"],
                "eval_accuracy": values["accuracy"],
            }
        )

    def fit_end(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        self._stop_progress()

    def close(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        self._stop_progress()

    def _stop_progress(self) -> None:
        if self._progress.live.is_started:
            self._progress.stop()

    def _write(self, record: dict[str, Any]) -> None:
        if dist.get_global_rank() == 0:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")

    def _forget_after(self, step: int) -> None:
        """Drops what an interrupted run wrote after the checkpoint that this one continues from."""
        if self.path.exists():
            kept = [line for line in read_metrics(self.path) if line["step"] <= step]
            partial = self.path.with_suffix(".partial")
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
            partial.replace(self.path)

    def _show(self, record: dict[str, Any], seconds_left: float) -> None:
        if dist.get_global_rank() != 0:
            return
        evaluated = "" if math.isnan(self._eval_loss) else f", held-out {self._eval_loss:.2f}"
        measures = (
            f"loss {record['loss']:.2f}{evaluated}  {record['tokens_per_second'] / 1e3:,.1f}k tokens/s  "
            f"MFU {record['mfu']:.0%}  {timedelta(seconds=round(seconds_left))} left"
        )
        self._progress.update(self._task, completed=record["step"], measures=measures)
        every = max(1, self.steps // _LINES_WITHOUT_TERMINAL)
        if not self.console.is_terminal and (record["step"] % every == 0 or record["step"] in (1, self.steps)):
            self.console.print(f"step {record['step']}/{self.steps}  {measures}", highlight=False)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without a last one that a crash cut off."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]
