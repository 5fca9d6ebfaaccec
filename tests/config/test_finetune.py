"""Tests of the rules for fine-tuning recipes."""

import pytest

from mosaicbert.config import ConfigError
from mosaicbert.config.finetune import FinetuneConfig, FinetuneRecipe, TaskDataConfig


@pytest.mark.parametrize(
    "section, changes, message",
    [
        (
            TaskDataConfig,
            {"train": "a.csv", "text_columns": []},
            r"`data.text_columns` must be one column name, or two .*, got \[\]",
        ),
        (
            TaskDataConfig,
            {"train": "a.csv", "text_columns": ["a", "b", "c"]},
            "must be one column name, or two for text pairs",
        ),
        (
            TaskDataConfig,
            {"train": "a.csv", "validation_fraction": 1.0},
            r"`data.validation_fraction` must be in \(0, 1\), got 1\.0",
        ),
        (FinetuneConfig, {"epochs": 0}, r"`train\.epochs` must be at least 1, got 0"),
        (FinetuneConfig, {"peak_lr": float("nan")}, r"`train\.peak_lr` must be a positive finite number, got nan"),
        (FinetuneConfig, {"weight_decay": 1.0}, r"`train\.weight_decay` must be in \[0, 1\), got 1\.0"),
        (FinetuneConfig, {"max_seq_len": 3}, r"`train\.max_seq_len` must be at least 4, got 3"),
        (
            FinetuneRecipe,
            {"run_name": "a", "model": "m", "data": TaskDataConfig(train="a.csv"), "seed": -1},
            "`seed` must be at least 0, got -1",
        ),
        (
            FinetuneRecipe,
            {"run_name": "a/b", "model": "m", "data": TaskDataConfig(train="a.csv")},
            "file name without slashes",
        ),
    ],
)
def test_an_invalid_value_is_rejected(section, changes, message):
    with pytest.raises(ConfigError, match=message):
        section(**changes)
