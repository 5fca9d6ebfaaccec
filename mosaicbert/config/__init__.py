"""Recipes as frozen dataclasses, their validators and their strict YAML loader, without torch."""

from mosaicbert.config.duration import Duration, parse_duration
from mosaicbert.config.errors import ConfigError, TrainingFault
from mosaicbert.config.model import ModelConfig
from mosaicbert.config.recipe import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    FaultConfig,
    LogConfig,
    OptimizerConfig,
    Recipe,
    SourceConfig,
    TokenizerConfig,
    TrainConfig,
)

__all__ = [
    "CheckpointConfig",
    "ConfigError",
    "DataConfig",
    "Duration",
    "EvalConfig",
    "FaultConfig",
    "LogConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Recipe",
    "SourceConfig",
    "TokenizerConfig",
    "TrainConfig",
    "TrainingFault",
    "parse_duration",
]
