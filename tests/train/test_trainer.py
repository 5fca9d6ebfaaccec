"""What a step asks of the device that it runs on."""

import contextlib

import pytest
import torch

from mosaicbert.train.trainer import StepTrainer
from tests.recipes import TINY_MODEL, tiny_recipe
from tests.train.running import train_here

_STEPS = 8


@contextlib.contextmanager
def _without_waiting():
    """On a GPU, an error for any operation that makes the host wait for it."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextlib.contextmanager
def _count_reads(counts):
    """Appends how often the host has read floating-point numbers off a tensor; lengths are whole numbers."""
    ways = {name: getattr(torch.Tensor, name) for name in ("tolist", "item", "numpy", "__bool__", "__float__")}
    reads = 0

    def spy(honest):
        def read(tensor, *arguments, **options):
            nonlocal reads
            reads += tensor.is_floating_point()
            return honest(tensor, *arguments, **options)

        return read

    with pytest.MonkeyPatch.context() as patch:
        for name, honest in ways.items():
            patch.setattr(torch.Tensor, name, spy(honest))
        yield
    counts.append(reads)


def _train(recipe, monkeypatch, context):
    """Trains with each step in `context(number)`; returns for each whether it was due."""
    honest, due = StepTrainer._train_batch, []

    def train_batch(self, use_grad_scaling):
        with context(self.progress.position.steps + 1):
            given = honest(self, use_grad_scaling)
        due.append(self.progress.is_sync_step)
        return given

    monkeypatch.setattr(StepTrainer, "_train_batch", train_batch)
    train_here(recipe)
    return due


def _recipe(folder, source, optimizer="decoupled_adamw", **train):
    return tiny_recipe(
        folder,
        source,
        model=TINY_MODEL | {"hidden_dropout_prob": 0.1},
        optimizer={"name": optimizer},
        train={"duration": f"{_STEPS} steps", "compile": False} | train,
        log={"interval_steps": 6},
        checkpoint={"interval": "1000 steps"},
        eval={"interval": "1000 steps", "fill_mask": []},
    )


# By step, of which the first two, the sixth and the last are due; those read themselves, and the others the one before.
_SETTLED = [1, 1, 0, 1, 1, 2, 0, 2]


def test_only_numbers_of_the_step_before_are_read_unless_something_is_due(source, tmp_path, monkeypatch):
    reads = []
    due = _train(_recipe(tmp_path, source), monkeypatch, lambda _: _count_reads(reads))
    assert due == [True, True, False, False, False, True, False, True]
    assert reads[1:] == _SETTLED[1:]  # the first step also tries out which ways of computing there are


@pytest.mark.parametrize("optimizer, of_its_own", [("stable_adamw", 31), ("muon", 0)])
def test_an_optimizer_that_cannot_withhold_an_update_looks_first(optimizer, of_its_own, source, tmp_path, monkeypatch):
    reads = []
    _train(_recipe(tmp_path, source, optimizer), monkeypatch, lambda _: _count_reads(reads))
    assert reads[1:] == [settled + 1 + of_its_own for settled in _SETTLED[1:]]


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu_a_step_after_which_nothing_is_due_waits_for_nothing(compiled, source, tmp_path, monkeypatch):
    recipe = _recipe(tmp_path, source, compile=compiled, precision="bf16")
    _train(recipe, monkeypatch, lambda step: _without_waiting() if step in (3, 4, 5, 7) else contextlib.nullcontext())
