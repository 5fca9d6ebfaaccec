"""Training with injected faults: non-finite steps are skipped, and spikes cause a rollback."""

import gc
import json
import math

import pytest
import torch

from mosaicbert.config import TrainingFault
from mosaicbert.data.prepare.pipeline import prepare
from mosaicbert.train.checkpoint.format import checkpoint_path, list_checkpoints, read_checkpoint, step_of
from mosaicbert.train.composer_model import MaskedLmComposerModel
from mosaicbert.train.faults.log import Fault, FaultLog
from mosaicbert.train.run_folder import RunFolder, create_run_folder
from tests.data.corpus import short_texts, write_jsonl
from tests.data.loaders import train_loader_of
from tests.recipes import tiny_recipe
from tests.train.running import (
    assert_same_end,
    last_checkpoint,
    losses_of,
    steps_of,
    train_here,
    train_on_ranks,
)


def _recipe(folder, source, **changes):
    sections = {
        "train": {"duration": "24 steps"},
        "checkpoint": {"interval": "4 steps", "keep_last": 10},
        "faults": {"window_steps": 10, "spike_deviations": 10.0, "max_skipped_steps": 2, "max_rollbacks": 2},
        "eval": {"interval": "100 steps", "fill_mask": []},
    }
    names = {**sections, **changes}
    return tiny_recipe(folder, source, **{name: sections.get(name, {}) | changes.get(name, {}) for name in names})


@pytest.fixture
def scale_losses(monkeypatch):
    """Return a function that multiplies the loss of some batches of a recipe by a factor.

    Batches are recognized by their tokens. `max_times` limits how many times each batch is scaled.
    """

    def scale_losses(recipe, batches, factor, max_times=math.inf):
        prepare(recipe)
        dataset = train_loader_of(recipe, 0, 1).dataset
        scaled = [micro_batch.input_ids for batch in batches for micro_batch in dataset[batch].micro_batches]
        original_loss = MaskedLmComposerModel.loss
        num_left = max_times * len(scaled)

        def loss(self, outputs, batch, *others):
            nonlocal num_left
            value = original_loss(self, outputs, batch, *others)
            if num_left > 0 and any(torch.equal(batch.input_ids, input_ids) for input_ids in scaled):
                num_left -= 1
                return value * factor
            return value

        monkeypatch.setattr(MaskedLmComposerModel, "loss", loss)
        return dataset

    return scale_losses


def _faults(run, kind):
    return [fault for fault in FaultLog(run.faults).read() if fault.kind == kind]


@pytest.mark.parametrize("factor", [math.nan, math.inf], ids=str)
def test_a_non_finite_step_is_skipped_counted_and_logged(factor, scale_losses, source, tmp_path):
    recipe = _recipe(tmp_path, source, checkpoint={"interval": "1 steps", "keep_last": 30})
    dataset = scale_losses(recipe, [5], factor)
    run = train_here(recipe)
    before, after = (read_checkpoint(checkpoint_path(run.checkpoints, step)) for step in (5, 6))
    for name, weight in before.model.items():
        assert torch.equal(after.model[name], weight), name
    for name, tensors in before.optimizer.items():
        assert all(torch.equal(after.optimizer[name][key], value) for key, value in tensors.items())
    (fault,) = _faults(run, "skipped")
    epochs, samples = dataset.samples_of(5)
    assert (fault.step, fault.batches) == (6, [5])
    assert fault.samples == [list(pair) for pair in zip(epochs.tolist(), samples.tolist(), strict=True)]
    lines = steps_of(run)
    assert [line["skipped_steps"] for line in lines] == [0] * 5 + [1] * 19
    assert lines[5]["loss"] is None
    assert all(math.isfinite(line["loss"]) for line in lines[:5] + lines[6:])
    assert all(bool(torch.isfinite(weight).all()) for weight in last_checkpoint(run).model.values())


@pytest.mark.parametrize("optimizer", ["decoupled_adamw", pytest.param("stable_adamw", marks=pytest.mark.slow), "muon"])
def test_runs_with_few_and_many_sync_steps_have_equal_results(optimizer, scale_losses, source, tmp_path):
    def recipe(name, interval):
        return _recipe(
            tmp_path / name,
            source,
            log={"interval_steps": interval},
            checkpoint={"interval": "12 steps"},
            optimizer={"name": optimizer},
        )

    many_syncs, few_syncs = recipe("many-syncs", 1), recipe("few-syncs", 1000)
    # A single step, the step before a checkpoint, and two steps in a row.
    scale_losses(many_syncs, [6, 10, 20, 21], math.nan)
    scale_losses(many_syncs, [16], 3.0)
    many_syncs, few_syncs = train_here(many_syncs), train_here(few_syncs)
    assert FaultLog(few_syncs.faults).read() == FaultLog(many_syncs.faults).read()
    assert [fault.step for fault in _faults(few_syncs, "skipped")] == [7, 11, 20, 21]
    assert [(fault.step, fault.batches) for fault in _faults(few_syncs, "rollback")] == [(17, [16])]
    all_steps, logged_steps = ([line["step"] for line in steps_of(run)] for run in (many_syncs, few_syncs))
    assert logged_steps == [1, 24]
    assert_same_end(few_syncs, many_syncs, ignored_steps=set(all_steps) - set(logged_steps))


def test_too_many_non_finite_steps_roll_back_to_the_same_step_with_few_sync_steps(scale_losses, source, tmp_path):
    recipe = _recipe(tmp_path, source, log={"interval_steps": 1000}, checkpoint={"interval": "6 steps"})
    scale_losses(recipe, [7, 8, 9], math.nan)
    run = train_here(recipe)
    (fault,) = _faults(run, "rollback")
    assert (fault.step, fault.batches, fault.resumed_step) == (10, [7, 8, 9], 6)
    assert [fault.step for fault in _faults(run, "skipped")] == [8, 9]


def test_a_run_with_a_skipped_first_step_resumes_bit_for_bit(scale_losses, source, tmp_path):
    scale_losses(_recipe(tmp_path / "uninterrupted", source), [0], math.nan)
    uninterrupted = train_here(_recipe(tmp_path / "uninterrupted", source))
    train_here(_recipe(tmp_path / "resumed", source), stop_after=1)
    assert_same_end(train_here(_recipe(tmp_path / "resumed", source)), uninterrupted)


def test_a_spike_causes_a_rollback_that_skips_only_its_batch(scale_losses, source, tmp_path):
    recipe = _recipe(tmp_path / "spiking", source)
    scale_losses(recipe, [14], 3.0)
    log_lines = []
    run = train_here(recipe, log_lines=log_lines)
    (fault,) = _faults(run, "rollback")
    assert (fault.step, fault.batches, fault.resumed_step) == (15, [14], 12)
    assert any("Rolling back to step 12 and skipping 1 batch(es)" in line for line in log_lines)
    # The result is equal to that of a run that skips the batch from the beginning.
    expected = _recipe(tmp_path / "expected", source)
    faults = FaultLog(create_run_folder(expected, prepare(expected)).faults)
    faults.write(Fault(kind="rollback", step=1, reason="test", batches=[14], resumed_step=0))
    assert_same_end(run, train_here(expected), ignored_fields={"rollbacks"})
    assert steps_of(run)[-1]["rollbacks"] == 1


def test_a_spike_before_the_first_checkpoint_restarts_the_run(scale_losses, source, tmp_path):
    recipe = _recipe(tmp_path, source, checkpoint={"interval": "20 steps"})
    scale_losses(recipe, [12], 3.0)
    run = train_here(recipe)
    assert _faults(run, "rollback")[0].resumed_step == 0
    assert [line["step"] for line in steps_of(run)] == list(range(1, 25))


def test_a_resumed_run_still_skips_the_batches_of_a_rollback(scale_losses, source, tmp_path):
    recipe = _recipe(tmp_path / "uninterrupted", source)
    scale_losses(recipe, [14], 3.0)
    uninterrupted = train_here(recipe)
    resumed = _recipe(tmp_path / "resumed", source)
    train_here(resumed, stop_after=16)  # including the steps before the rollback
    assert_same_end(train_here(resumed), uninterrupted)


def test_too_many_rollbacks_stop_the_run_with_an_explanation(scale_losses, source, tmp_path):
    recipe = _recipe(tmp_path, source)
    scale_losses(recipe, range(14, 24), 3.0)
    with pytest.raises(TrainingFault, match=r"after 2 rollbacks \(`faults.max_rollbacks`\), .*\. Lower `optimizer"):
        train_here(recipe)
    run = RunFolder(recipe.run_folder)
    assert [fault.batches for fault in _faults(run, "rollback")] == [[14], [15]]


def test_each_nearby_spike_rolls_back_to_an_earlier_checkpoint(scale_losses, source, tmp_path):
    recipe = _recipe(tmp_path, source)
    scale_losses(recipe, [14, 15], 3.0)
    run = train_here(recipe)
    assert [fault.resumed_step for fault in _faults(run, "rollback")] == [12, 8]
    assert len(losses_of(run)) == 24


def test_too_many_non_finite_steps_in_a_row_cause_a_rollback(scale_losses, source, tmp_path):
    recipe = _recipe(tmp_path, source)
    scale_losses(recipe, [9, 10, 11], math.nan)
    run = train_here(recipe)
    (fault,) = _faults(run, "rollback")
    assert (fault.step, fault.batches, fault.resumed_step) == (12, [9, 10, 11], 8)
    assert [line["step"] for line in steps_of(run)] == list(range(1, 25))
    assert None not in losses_of(run)


def test_a_steady_run_has_no_faults(source, tmp_path):
    run = train_here(_recipe(tmp_path, source, train={"duration": "60 steps"}))
    assert FaultLog(run.faults).read() == []


def test_checkpoints_that_a_rollback_has_undone_are_replaced(scale_losses, source, tmp_path):
    recipe = _recipe(tmp_path, source)
    scale_losses(recipe, [14], 3.0, max_times=1)
    run = train_here(recipe)
    assert [step_of(path) for path in list_checkpoints(run.checkpoints)] == [4, 8, 12, 16, 20, 24]
    states = [json.loads((path / "state.json").read_text())["state"] for path in list_checkpoints(run.checkpoints)]
    assert [state["position"]["steps"] for state in states] == [4, 8, 12, 16, 20, 24]


@pytest.mark.parametrize("log_interval, sharding", [pytest.param(1, "ddp", marks=pytest.mark.slow), (1000, "fsdp")])
def test_all_ranks_skip_a_step_that_is_not_finite_on_one_rank(log_interval, sharding, source, tmp_path):
    recipe = _recipe(
        tmp_path,
        source,
        checkpoint={"interval": "1000 steps"},
        train={"duration": "8 steps", "sharding": sharding},
        log={"interval_steps": log_interval},
    )
    run = train_on_ranks(2, recipe, module="tests.train.faults.poisoned")
    assert [fault.step for fault in _faults(run, "skipped")] == [3]
    assert all(bool(torch.isfinite(weight).all()) for weight in last_checkpoint(run).model.values())


def test_steps_without_a_masked_token_are_skipped(tmp_path):
    source = write_jsonl(tmp_path / "short.jsonl", short_texts(60))
    recipe = _recipe(
        tmp_path,
        source,
        data={"mask_rate": 0.02, "validation_fraction": 0.2},
        train={"duration": "12 steps", "global_batch_samples": 1},
        faults={"max_skipped_steps": 100},
    )
    run = train_here(recipe)
    lines = steps_of(run)
    assert len(lines) == 12
    num_empty = sum(line["num_masked"] == 0 for line in lines)
    assert 0 < num_empty < 12
    assert lines[-1]["skipped_steps"] == num_empty


def test_a_rollback_frees_the_memory_of_the_previous_model(scale_losses, source, tmp_path):
    recipe = _recipe(tmp_path, source)
    scale_losses(recipe, [12, 18], 3.0)
    train_here(recipe)
    gc.collect()
    assert sum(isinstance(item, MaskedLmComposerModel) for item in gc.get_objects()) <= 1
