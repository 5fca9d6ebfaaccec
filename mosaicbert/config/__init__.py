"""Every knob of a run: frozen dataclasses and the strict loader of YAML recipes. Imports no torch."""

from mosaicbert.config.errors import ConfigError
from mosaicbert.config.model import ModelConfig
from mosaicbert.config.recipe import (
    DataConfig,
    EvalConfig,
    OptimizerConfig,
    Recipe,
    SourceConfig,
    TokenizerConfig,
    TrainConfig,
)

__all__ = [
    "ConfigError",
    "DataConfig",
    "EvalConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Recipe",
    "SourceConfig",
    "TokenizerConfig",
    "TrainConfig",
]
