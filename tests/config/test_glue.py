"""Tests of the GLUE tasks against the protocol of the paper, and of the rules for GLUE recipes."""

import math
from dataclasses import astuple

import pytest

from mosaicbert.config import ConfigError
from mosaicbert.config.glue import TASKS, GlueConfig, GlueRecipe, ProtocolChange

# Epochs, batch size, peak learning rate, decoupled weight decay, number of seeds, all training examples; initialization
# from MNLI; metrics.
# Source: mosaicml/examples, src/glue and its YAML files.
_PAPER = {
    "mnli": ((3, 48, 5e-5, 5e-6, 1, None), False, ("accuracy_matched", "accuracy_mismatched")),
    "qqp": ((5, 16, 3e-5, 3e-6, 1, None), False, ("accuracy", "f1")),
    "qnli": ((10, 16, 1e-5, 1e-6, 1, None), False, ("accuracy",)),
    "sst2": ((3, 16, 3e-5, 3e-6, 3, None), False, ("accuracy",)),
    "cola": ((10, 32, 5e-5, 5e-6, 4, None), False, ("matthews_correlation",)),
    "rte": ((3, 16, 1e-5, 1e-5, 5, None), True, ("accuracy",)),
    "mrpc": ((10, 32, 8e-5, 8e-6, 5, None), True, ("accuracy", "f1")),
    "stsb": ((10, 32, 3e-5, 3e-6, 5, None), True, ("spearman",)),
}


def test_the_tasks_follow_the_protocol_of_the_paper():
    tasks = {name: (astuple(task.protocol), task.from_mnli, task.metrics) for name, task in TASKS.items()}
    assert tasks == _PAPER
    assert [name for name, task in TASKS.items() if task.needs_fp32] == ["stsb"]
    assert {name: task.num_labels for name, task in TASKS.items() if task.num_labels != 2} == {"stsb": 1, "mnli": 3}


def test_a_recipe_changes_only_the_given_protocol_values():
    config = GlueConfig(model="m", protocol={"rte": ProtocolChange(epochs=7, peak_lr=1e-4)})
    assert astuple(config.protocol_of("rte")) == (7, 16, 1e-4, 1e-5, 5, None)
    assert config.protocol_of("cola") == TASKS["cola"].protocol


def test_weight_decay_can_be_zero():
    config = GlueConfig(model="m", protocol={"rte": ProtocolChange(weight_decay=0.0)})
    assert config.protocol_of("rte").weight_decay == 0.0


def test_initialization_from_mnli_can_be_disabled():
    assert [task for task in TASKS if GlueConfig(model="m").is_initialized_from_mnli(task)] == ["mrpc", "stsb", "rte"]
    assert not any(GlueConfig(model="m", init_from_mnli=False).is_initialized_from_mnli(task) for task in TASKS)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tasks": ["wnli"]}, r"`glue.tasks` must be distinct names among cola, .*, got \['wnli'\]"),
        ({"tasks": []}, r"`glue.tasks` must be non-empty, got \[\]"),
        ({"tasks": ["rte", "rte"]}, r"must be distinct names among .*, got \['rte', 'rte'\]"),
        ({"protocol": {"rt": ProtocolChange()}}, "`glue.protocol` must have keys among cola, .*, got 'rt'"),
        ({"protocol": {"rte": ProtocolChange(peak_lr=math.inf)}}, "peak_lr` must be a positive finite number, got inf"),
        ({"protocol": {"rte": ProtocolChange(weight_decay=1.0)}}, r"weight_decay` must be in \[0, 1\), got 1.0"),
        ({"protocol": {"rte": ProtocolChange(epochs=0)}}, "`glue.protocol.rte.epochs` must be at least 1, got 0"),
        ({"protocol": {"rte": ProtocolChange(num_seeds=6)}}, r"num_seeds` must be in \[1, 5\], got 6"),
        ({"max_seq_len": 3}, "`glue.max_seq_len` must be at least 4, got 3"),
        ({"num_processes": 0}, "`glue.num_processes` must be at least 1, got 0"),
    ],
)
def test_an_invalid_value_is_rejected(changes, message):
    with pytest.raises(ConfigError, match=message):
        GlueConfig(model="m", **changes)


def test_a_run_name_must_be_a_file_name():
    with pytest.raises(ConfigError, match="`run_name` must be a file name without slashes, got 'a/b'"):
        GlueRecipe(run_name="a/b", glue=GlueConfig(model="m"))
