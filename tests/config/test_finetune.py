"""What a fine-tuning recipe may ask."""

import pytest

from mosaicbert.config import ConfigError
from mosaicbert.config.finetune import FinetuneConfig, FinetuneRecipe, TaskDataConfig


@pytest.mark.parametrize(
    "section, changes, said",
    [
        (TaskDataConfig, {"train": "a.csv", "text_columns": []}, "name one column, or two"),
        (TaskDataConfig, {"train": "a.csv", "text_columns": ["a", "b", "c"]}, "name one column, or two"),
        (TaskDataConfig, {"train": "a.csv", "validation_fraction": 1.0}, r"validation_fraction=1\.0 is no fraction"),
        (FinetuneConfig, {"epochs": 0}, r"train\.epochs=0; give a number above zero"),
        (FinetuneConfig, {"peak_lr": float("nan")}, r"train\.peak_lr=nan"),
        (FinetuneConfig, {"weight_decay": 1.0}, "is no decay"),
        (FinetuneConfig, {"max_seq_len": 3}, "leaves no room"),
        (FinetuneRecipe, {"run_name": "a", "model": "m", "data": TaskDataConfig(train="a.csv"), "seed": -1}, "seed=-1"),
        (FinetuneRecipe, {"run_name": "a/b", "model": "m", "data": TaskDataConfig(train="a.csv")}, "without slashes"),
    ],
)
def test_what_cannot_be_is_refused(section, changes, said):
    with pytest.raises(ConfigError, match=said):
        section(**changes)
