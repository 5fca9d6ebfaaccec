"""Training step: reads from the device and waiting for it."""

import contextlib

import pytest
import torch

from mosaicbert.train.trainer import StepTrainer
from tests.recipes import TINY_MODEL, tiny_recipe
from tests.train.running import train_here

_STEPS = 8


@contextlib.contextmanager
def _without_waiting():
    """Raise an error for any operation that makes the host wait for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextlib.contextmanager
def _count_reads(counts):
    """Append the number of times that the host has read a floating-point tensor. Lengths are integers."""
    methods = {name: getattr(torch.Tensor, name) for name in ("tolist", "item", "numpy", "__bool__", "__float__")}
    num_reads = 0

    def with_counter(original):
        def read(tensor, *arguments, **options):
            nonlocal num_reads
            num_reads += tensor.is_floating_point()
            return original(tensor, *arguments, **options)

        return read

    with pytest.MonkeyPatch.context() as patch:
        for name, original in methods.items():
            patch.setattr(torch.Tensor, name, with_counter(original))
        yield
    counts.append(num_reads)


def _train(recipe, monkeypatch, context):
    """Train with each step in `context(step)`. Return for each step whether it was a synchronization step."""
    original, is_sync_step = StepTrainer._train_batch, []

    def train_batch(self, use_grad_scaling):
        with context(self.progress.position.steps + 1):
            metrics = original(self, use_grad_scaling)
        is_sync_step.append(self.progress.is_sync_step)
        return metrics

    monkeypatch.setattr(StepTrainer, "_train_batch", train_batch)
    train_here(recipe)
    return is_sync_step


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


# Reads by step. Synchronization steps, here 1, 2, 6 and 8, read their own results, and each step those still pending.
_NUM_READS = [1, 1, 0, 1, 1, 2, 0, 2]


def test_a_step_reads_only_the_results_of_the_previous_step_unless_it_is_a_sync_step(source, tmp_path, monkeypatch):
    reads = []
    is_sync_step = _train(_recipe(tmp_path, source), monkeypatch, lambda _: _count_reads(reads))
    assert is_sync_step == [True, True, False, False, False, True, False, True]
    assert reads[1:] == _NUM_READS[1:]  # the first step also probes the attention backends


@pytest.mark.parametrize("optimizer, num_own_reads", [("stable_adamw", 31), ("muon", 0)])
def test_other_optimizers_read_on_the_host_whether_to_skip_the_update(
    optimizer, num_own_reads, source, tmp_path, monkeypatch
):
    reads = []
    _train(_recipe(tmp_path, source, optimizer), monkeypatch, lambda _: _count_reads(reads))
    assert reads[1:] == [num_reads + 1 + num_own_reads for num_reads in _NUM_READS[1:]]


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_that_is_not_a_sync_step_does_not_wait_for_the_gpu(compiled, source, tmp_path, monkeypatch):
    recipe = _recipe(tmp_path, source, compile=compiled, precision="bf16")
    _train(recipe, monkeypatch, lambda step: _without_waiting() if step in (3, 4, 5, 7) else contextlib.nullcontext())
