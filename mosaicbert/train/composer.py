"""Adapter to Composer: the only module that imports it.

The last version of Composer is 0.32.1. This module re-exports what the package uses, and contains workarounds for bugs
that will not be fixed upstream. To replace Composer, only this module must be replaced.
"""

import atexit
import gc
from collections.abc import Callable
from typing import Any

import torch
from composer import (
    Callback,
    ComposerModel,
    DataSpec,
    Engine,
    Event,
    Logger,
    State,
    Time,
    Timestamp,
    TimeUnit,
    Trainer,
)
from composer.core import get_precision_context
from composer.core.types import TrainerMode
from composer.loggers import LoggerDestination, TensorboardLogger
from composer.loggers import WandBLogger as _WandBLogger
from composer.metrics import LanguageCrossEntropy, MaskedAccuracy
from composer.utils import dist
from composer.utils.parallelism import FSDP2Config
from torch.distributed.checkpoint import state_dict

__all__ = [
    "Callback",
    "ComposerModel",
    "DataSpec",
    "Event",
    "FSDP2Config",
    "LanguageCrossEntropy",
    "Logger",
    "LoggerDestination",
    "MaskedAccuracy",
    "State",
    "TensorboardLogger",
    "Time",
    "TimeUnit",
    "Timestamp",
    "Trainer",
    "TrainerMode",
    "WandBLogger",
    "dist",
    "get_precision_context",
    "release_memory",
]


class WandBLogger(_WandBLogger):
    """W&B logger of Composer without the call to `wandb.Run.get_url`, which newer versions of wandb do not have."""

    def init(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        if self._enabled:
            import wandb  # an optional dependency

            run: Any = wandb.init(**self._init_kwargs)
            self.run_dir, self.run_url = run.dir, run.url
            atexit.register(self._set_is_in_atexit)


def release_memory() -> None:
    """Free the memory of a closed trainer, whose model Composer and PyTorch reference until the process ends."""
    atexit.unregister(Engine._close)
    clear_names: Callable[[], None] | None = getattr(state_dict._get_fqns, "cache_clear", None)
    if clear_names is not None:
        clear_names()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
