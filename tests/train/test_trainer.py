"""What a step asks of the device that it runs on."""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mosaicbert.train.trainer import StepTrainer
from tests.recipes import TINY_MODEL, tiny_recipe
from tests.train.running import train_here

_STEPS = 8
_READS = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.equal.default"}


class _Operations(TorchDispatchMode):
    """Collects the names of all operations within it, those of gradients included."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def _without_waiting():
    """On a GPU, an error for any operation that makes the host wait for it."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _train(recipe, monkeypatch, context):
    """Trains; returns for each step whether it was due, and what its `context` was."""
    honest, steps = StepTrainer._train_batch, []

    def train_batch(self, use_grad_scaling):
        within = context(self.course.position.steps + 1)
        with within:
            given = honest(self, use_grad_scaling)
        steps.append((self.course.is_due, within))
        return given

    monkeypatch.setattr(StepTrainer, "_train_batch", train_batch)
    train_here(recipe)
    return steps


def _recipe(folder, source, optimizer="decoupled_adamw", **train):
    return tiny_recipe(
        folder,
        source,
        model=TINY_MODEL | {"hidden_dropout_prob": 0.1},
        optimizer={"name": optimizer},
        train={"duration": f"{_STEPS} steps"} | train,
        log={"interval_steps": 6},
        checkpoint={"interval": "1000 steps"},
        eval={"interval": "1000 steps", "fill_mask": []},
    )


def test_a_step_after_which_nothing_is_due_reads_nothing_of_the_device(source, tmp_path, monkeypatch):
    steps = _train(_recipe(tmp_path, source), monkeypatch, lambda _: _Operations())
    assert [is_due for is_due, _ in steps] == [True, True, False, False, False, True, False, True]
    for _, operations in steps[1:]:  # the first tries out which ways of computing there are
        assert "aten._fused_adamw_.default" in operations.names
        assert not operations.names & _READS


@pytest.mark.parametrize("optimizer", ["stable_adamw", "muon"])
def test_an_optimizer_that_cannot_withhold_an_update_looks_first(optimizer, source, tmp_path, monkeypatch):
    steps = _train(_recipe(tmp_path, source, optimizer), monkeypatch, lambda _: _Operations())
    assert all(operations.names & _READS for _, operations in steps)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu_a_step_after_which_nothing_is_due_waits_for_nothing(compiled, source, tmp_path, monkeypatch):
    recipe = _recipe(tmp_path, source, compile=compiled, precision="bf16")
    _train(recipe, monkeypatch, lambda step: _without_waiting() if step in (3, 4, 5, 7) else contextlib.nullcontext())
