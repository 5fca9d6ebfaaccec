"""Composer's loggers that a recipe enables, in addition to metrics.jsonl and the console."""

import json
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from mosaicbert.train.composer import Event, Logger, LoggerDestination, State, TensorboardLogger, WandBLogger
from mosaicbert.train.run_folder import RunFolder

_WANDB_PROJECT = "mosaicbert"


class _TensorboardLogger(TensorboardLogger):
    """Composer's TensorBoard logger, disabled when the disk is full so that the run continues."""

    _is_disabled = False

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self._try(super().log_metrics, metrics, step)

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        self._try(super().run_event, event, state, logger)

    def _try(self, call: Callable[..., None], *arguments: Any) -> None:
        if self._is_disabled:
            return
        try:
            call(*arguments)
        except OSError as error:
            self._is_disabled = True
            warnings.warn(f"TensorBoard files cannot be written ({error.strerror}). The run continues.", stacklevel=2)


def build_loggers(names: Sequence[str], run: RunFolder, run_name: str) -> list[LoggerDestination]:
    """Build loggers. A resumed run continues in the same TensorBoard folder, and as the same W&B run.

    Args:
        names: Names of the loggers, "tensorboard" or "wandb".
        run: Run folder.
        run_name: Name of the run.
    """
    loggers: list[LoggerDestination] = []
    for name in names:
        if name == "tensorboard":
            loggers.append(_TensorboardLogger(log_dir=str(run.path / "tensorboard")))
        else:
            started: str = json.loads(run.environment.read_text())["started"]
            run_id = re.sub(r"[^\w-]", "-", f"{run_name}-{started}")
            settings = {"id": run_id, "resume": "allow", "dir": str(run.path)}
            loggers.append(WandBLogger(project=_WANDB_PROJECT, name=run_name, init_kwargs=settings))
    return loggers
