"""Small recipe for tests."""

from pathlib import Path

from mosaicbert.config import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    FaultConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    Recipe,
    SourceConfig,
    TokenizerConfig,
    TrainConfig,
)

TINY_MODEL = {
    "vocab_size": 512,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "hidden_dropout_prob": 0.0,
}


def tiny_recipe(folder: Path, source: Path, **changes) -> Recipe:
    """Create the recipe of a run of a few seconds.

    Args:
        folder: Folder of the runs.
        source: File of texts.
        changes: Fields of the recipe and of its sections, e.g. train={"duration": "4 steps"}.
    """
    sections = {
        "data": {
            "sources": {"text": SourceConfig(path=str(source))},
            "max_seq_len": 32,
            "validation_fraction": 0.2,
            "num_workers": 0,
        },
        "tokenizer": {"source": "train"},
        "model": TINY_MODEL,
        "optimizer": {"peak_lr": 1e-3},
        "train": {
            "duration": "6 steps",
            "global_batch_samples": 16,
            "micro_batch_tokens": 256,
            "precision": "fp32",
            "num_processes": 1,
        },
        "checkpoint": {"interval": "3 steps"},
        "faults": {},
        "log": {"interval_steps": 1},
        "eval": {"interval": "3 steps", "fill_mask": ["Return the [MASK] of the object."]},
    }
    classes = {
        "data": DataConfig,
        "tokenizer": TokenizerConfig,
        "model": ModelConfig,
        "optimizer": OptimizerConfig,
        "train": TrainConfig,
        "checkpoint": CheckpointConfig,
        "faults": FaultConfig,
        "log": LogConfig,
        "eval": EvalConfig,
    }
    built = {name: classes[name](**(fields | changes.pop(name, {}))) for name, fields in sections.items()}
    return Recipe(**({"run_name": "tiny", "runs_folder": str(folder)} | changes), **built)
