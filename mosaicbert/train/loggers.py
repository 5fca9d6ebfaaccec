"""Composer's loggers that a recipe asks for, beside metrics.jsonl and the console."""

import atexit
import importlib.util
import json
import re

from composer import Logger, State
from composer.loggers import LoggerDestination, TensorboardLogger, WandBLogger

from mosaicbert.config import ConfigError, Recipe
from mosaicbert.train.run import RunFolder

_PROJECT = "mosaicbert"


class _WandbLogger(WandBLogger):
    """Composer 0.32's, which asks for a method that wandb has no more."""

    def init(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        if self._enabled:
            import wandb  # an extra

            run = wandb.init(**self._init_kwargs)
            self.run_dir, self.run_url = run.dir, run.url
            atexit.register(self._set_is_in_atexit)


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
    started: str = json.loads(run.environment.read_text())["started"]
    loggers: list[LoggerDestination] = []
    for name in recipe.log.loggers:
        if name == "tensorboard":
            loggers.append(TensorboardLogger(log_dir=str(run.path / "tensorboard")))
        else:
            identity = re.sub(r"[^\w-]", "-", f"{recipe.run_name}-{started}")
            settings = {"id": identity, "resume": "allow", "dir": str(run.path)}
            loggers.append(_WandbLogger(project=_PROJECT, name=recipe.run_name, init_kwargs=settings))
    return loggers
