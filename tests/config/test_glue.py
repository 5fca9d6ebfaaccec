"""The table of tasks against the paper's protocol, and what a GLUE recipe may ask."""

import math
from dataclasses import astuple

import pytest

from mosaicbert.config import ConfigError
from mosaicbert.config.glue import TASKS, GlueConfig, GlueRecipe, ProtocolChange

# epochs, batch, lr, decoupled weight decay, seeds; start; metrics: mosaicml/examples, src/glue and its YAML files.
_PAPER = {
    "mnli": ((3, 48, 5e-5, 5e-6, 1), False, ("accuracy_matched", "accuracy_mismatched")),
    "qqp": ((5, 16, 3e-5, 3e-6, 1), False, ("accuracy", "f1")),
    "qnli": ((10, 16, 1e-5, 1e-6, 1), False, ("accuracy",)),
    "sst2": ((3, 16, 3e-5, 3e-6, 3), False, ("accuracy",)),
    "cola": ((10, 32, 5e-5, 5e-6, 4), False, ("matthews_correlation",)),
    "rte": ((3, 16, 1e-5, 1e-5, 5), True, ("accuracy",)),
    "mrpc": ((10, 32, 8e-5, 8e-6, 5), True, ("accuracy", "f1")),
    "stsb": ((10, 32, 3e-5, 3e-6, 5), True, ("spearman",)),
}


def test_the_table_is_the_papers():
    found = {name: (astuple(task.protocol), task.from_mnli, task.metrics) for name, task in TASKS.items()}
    assert found == _PAPER
    assert [name for name, task in TASKS.items() if task.needs_fp32] == ["stsb"]
    assert {name: task.num_labels for name, task in TASKS.items() if task.num_labels != 2} == {"stsb": 1, "mnli": 3}


def test_a_recipe_changes_only_what_it_names():
    config = GlueConfig(model="m", protocol={"rte": ProtocolChange(epochs=7, peak_lr=1e-4)})
    assert astuple(config.protocol_of("rte")) == (7, 16, 1e-4, 1e-5, 5)
    assert config.protocol_of("cola") == TASKS["cola"].protocol


def test_a_task_may_go_without_weight_decay():
    config = GlueConfig(model="m", protocol={"rte": ProtocolChange(weight_decay=0.0)})
    assert config.protocol_of("rte").weight_decay == 0.0


def test_the_chain_is_a_switch():
    assert [task for task in TASKS if GlueConfig(model="m").starts_from_mnli(task)] == ["mrpc", "stsb", "rte"]
    assert not any(GlueConfig(model="m", init_from_mnli=False).starts_from_mnli(task) for task in TASKS)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"tasks": ["wnli"]}, r"`glue.tasks` must be distinct names out of cola, .*, got \['wnli'\]"),
        ({"tasks": []}, r"`glue.tasks` must be non-empty, got \[\]"),
        ({"tasks": ["rte", "rte"]}, r"must be distinct names out of .*, got \['rte', 'rte'\]"),
        ({"protocol": {"rt": ProtocolChange()}}, "`glue.protocol` must be keyed by names out of cola, .*, got 'rt'"),
        ({"protocol": {"rte": ProtocolChange(peak_lr=math.inf)}}, "peak_lr` must be a positive finite number, got inf"),
        ({"protocol": {"rte": ProtocolChange(weight_decay=1.0)}}, r"weight_decay` must be in \[0, 1\), got 1.0"),
        ({"protocol": {"rte": ProtocolChange(epochs=0)}}, "`glue.protocol.rte.epochs` must be at least 1, got 0"),
        ({"protocol": {"rte": ProtocolChange(num_seeds=6)}}, r"num_seeds` must be in \[1, 5\], got 6"),
        ({"max_seq_len": 3}, "`glue.max_seq_len` must be at least 4, got 3"),
        ({"num_processes": 0}, "`glue.num_processes` must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        GlueConfig(model="m", **changes)


def test_a_run_name_is_a_folder_name():
    with pytest.raises(ConfigError, match="`run_name` must be a file name without slashes, got 'a/b'"):
        GlueRecipe(run_name="a/b", glue=GlueConfig(model="m"))
