"""Composer's loggers that a recipe asks for, beside metrics.jsonl and the console."""

import importlib.util
import json
import re
import warnings
from collections.abc import Callable
from typing import Any

from mosaicbert.config import ConfigError, Recipe
from mosaicbert.train.composer import Event, Logger, LoggerDestination, State, TensorboardLogger, WandBLogger
from mosaicbert.train.run_folder import RunFolder

_PROJECT = "mosaicbert"


class _TensorboardLogger(TensorboardLogger):
    """Composer's, which a full disk silences instead of ending the run."""

    _is_silent = False

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self._try(super().log_metrics, metrics, step)

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        self._try(super().run_event, event, state, logger)

    def _try(self, call: Callable[..., None], *arguments: Any) -> None:
        if self._is_silent:
            return
        try:
            call(*arguments)
        except OSError as error:
            self._is_silent = True
            warnings.warn(f"TensorBoard: cannot be written ({error.strerror}). The run goes on.", stacklevel=2)


def require_loggers(recipe: Recipe) -> None:
    """Refuses loggers whose package is not there.

    Raises:
        ConfigError: one is not installed.
    """
    for name in recipe.log.loggers:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"log.loggers={recipe.log.loggers}: {name} is not installed; pip install {name}.")


def build_loggers(recipe: Recipe, run: RunFolder) -> list[LoggerDestination]:
    """The loggers of a recipe; a continued run goes on in the same TensorBoard folder, and the same W&B run."""
    loggers: list[LoggerDestination] = []
    for name in recipe.log.loggers:
        if name == "tensorboard":
            loggers.append(_TensorboardLogger(log_dir=str(run.path / "tensorboard")))
        else:
            started: str = json.loads(run.environment.read_text())["started"]
            identity = re.sub(r"[^\w-]", "-", f"{recipe.run_name}-{started}")
            settings = {"id": identity, "resume": "allow", "dir": str(run.path)}
            loggers.append(WandBLogger(project=_PROJECT, name=recipe.run_name, init_kwargs=settings))
    return loggers
