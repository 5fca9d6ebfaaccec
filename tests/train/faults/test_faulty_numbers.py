"""Numbers that go wrong, made to do so: a step is skipped, or the run goes back and leaves the batch out."""

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
def harm(monkeypatch):
    """Multiplies the loss of chosen batches of a recipe, recognised by their tokens, each time or only so often."""

    def harm(recipe, batches, factor, times=math.inf):
        prepare(recipe)
        dataset = train_loader_of(recipe, 0, 1).dataset
        marked = [micro.input_ids for batch in batches for micro in dataset[batch].micro_batches]
        honest = MaskedLmComposerModel.loss
        left = [times * len(marked)]

        def loss(self, outputs, batch, *others):
            value = honest(self, outputs, batch, *others)
            if left[0] > 0 and any(torch.equal(batch.input_ids, tokens) for tokens in marked):
                left[0] -= 1
                return value * factor
            return value

        monkeypatch.setattr(MaskedLmComposerModel, "loss", loss)
        return dataset

    return harm


def _faults(run, kind):
    return [fault for fault in FaultLog(run.faults).read() if fault.kind == kind]


@pytest.mark.parametrize("factor", [math.nan, math.inf], ids=str)
def test_a_step_that_is_not_finite_is_skipped_counted_and_written_down(factor, harm, source, tmp_path):
    recipe = _recipe(tmp_path, source, checkpoint={"interval": "1 steps", "keep_last": 30})
    dataset = harm(recipe, [5], factor)
    run = train_here(recipe)
    before, after = (read_checkpoint(checkpoint_path(run.checkpoints, step)) for step in (5, 6))
    for name, weight in before.model.items():
        assert torch.equal(after.model[name], weight), name
    for name, kept in before.optimizer.items():
        assert all(torch.equal(after.optimizer[name][key], value) for key, value in kept.items())
    (fault,) = _faults(run, "skipped")
    epochs, samples = dataset.samples_of(5)
    assert (fault.step, fault.batches) == (6, [5])
    assert fault.samples == [list(pair) for pair in zip(epochs.tolist(), samples.tolist(), strict=True)]
    lines = steps_of(run)
    assert [line["skipped_steps"] for line in lines] == [0] * 5 + [1] * 19
    assert lines[5]["loss"] is None
    assert all(math.isfinite(line["loss"]) for line in lines[:5] + lines[6:])
    assert all(bool(torch.isfinite(weight).all()) for weight in last_checkpoint(run).model.values())


@pytest.mark.parametrize("optimizer", ["decoupled_adamw", "stable_adamw", "muon"])
def test_it_does_not_matter_when_the_numbers_of_a_step_are_read(optimizer, harm, source, tmp_path):
    def recipe(name, interval):
        return _recipe(
            tmp_path / name,
            source,
            log={"interval_steps": interval},
            checkpoint={"interval": "12 steps"},
            optimizer={"name": optimizer},
        )

    at_once, late = recipe("at-once", 1), recipe("late", 1000)
    # Alone, in the step before a checkpoint, and in a row.
    harm(at_once, [6, 10, 20, 21], math.nan)
    harm(at_once, [16], 3.0)
    at_once, late = train_here(at_once), train_here(late)
    assert FaultLog(late.faults).read() == FaultLog(at_once.faults).read()
    assert [fault.step for fault in _faults(late, "skipped")] == [7, 11, 20, 21]
    assert [(fault.step, fault.batches) for fault in _faults(late, "rollback")] == [(17, [16])]
    everything, little = ([line["step"] for line in steps_of(run)] for run in (at_once, late))
    assert little == [1, 24]
    assert_same_end(late, at_once, but_for_lines_of=set(everything) - set(little))


def test_too_many_steps_in_a_row_go_back_to_the_same_step_when_they_are_read_late(harm, source, tmp_path):
    recipe = _recipe(tmp_path, source, log={"interval_steps": 1000}, checkpoint={"interval": "6 steps"})
    harm(recipe, [7, 8, 9], math.nan)
    run = train_here(recipe)
    (fault,) = _faults(run, "rollback")
    assert (fault.step, fault.batches, fault.resumed_step) == (10, [7, 8, 9], 6)
    assert [fault.step for fault in _faults(run, "skipped")] == [8, 9]


def test_a_skipped_first_step_continues_to_the_same_bits(harm, source, tmp_path):
    harm(_recipe(tmp_path / "whole", source), [0], math.nan)
    whole = train_here(_recipe(tmp_path / "whole", source))
    train_here(_recipe(tmp_path / "parts", source), stop_after=1)
    assert_same_end(train_here(_recipe(tmp_path / "parts", source)), whole)


def test_a_spike_goes_back_and_leaves_out_exactly_its_batch(harm, source, tmp_path):
    recipe = _recipe(tmp_path / "spiking", source)
    harm(recipe, [14], 3.0)
    said = []
    run = train_here(recipe, said=said)
    (fault,) = _faults(run, "rollback")
    assert (fault.step, fault.batches, fault.resumed_step) == (15, [14], 12)
    assert any("Rolling back to step 12 and skipping 1 batch(es)" in line for line in said)
    # The same as a run that had known from the start.
    wise = _recipe(tmp_path / "wise", source)
    forewarned = create_run_folder(wise, prepare(wise))
    FaultLog(forewarned.faults).write(Fault(kind="rollback", step=1, reason="known", batches=[14], resumed_step=0))
    assert_same_end(run, train_here(wise), but_for={"rollbacks"})
    assert steps_of(run)[-1]["rollbacks"] == 1


def test_a_spike_before_the_first_checkpoint_begins_again(harm, source, tmp_path):
    recipe = _recipe(tmp_path, source, checkpoint={"interval": "20 steps"})
    harm(recipe, [12], 3.0)
    run = train_here(recipe)
    assert _faults(run, "rollback")[0].resumed_step == 0
    assert [line["step"] for line in steps_of(run)] == list(range(1, 25))


def test_what_was_left_out_stays_left_out_when_the_run_is_continued(harm, source, tmp_path):
    whole = _recipe(tmp_path / "whole", source)
    harm(whole, [14], 3.0)
    straight = train_here(whole)
    parts = _recipe(tmp_path / "parts", source)
    train_here(parts, stop_after=16)  # counts the steps before going back, too
    assert_same_end(train_here(parts), straight)


def test_spikes_again_and_again_stop_the_run_with_an_explanation(harm, source, tmp_path):
    recipe = _recipe(tmp_path, source)
    harm(recipe, range(14, 24), 3.0)
    with pytest.raises(TrainingFault, match=r"after 2 rollbacks \(`faults.max_rollbacks`\). Lower `optimizer.peak"):
        train_here(recipe)
    run = RunFolder(recipe.run_folder)
    assert [fault.batches for fault in _faults(run, "rollback")] == [[14], [15]]


def test_each_spike_at_one_place_goes_back_further(harm, source, tmp_path):
    recipe = _recipe(tmp_path, source)
    harm(recipe, [14, 15], 3.0)
    run = train_here(recipe)
    assert [fault.resumed_step for fault in _faults(run, "rollback")] == [12, 8]
    assert len(losses_of(run)) == 24


def test_too_many_steps_in_a_row_that_are_not_finite_go_back(harm, source, tmp_path):
    recipe = _recipe(tmp_path, source)
    harm(recipe, [9, 10, 11], math.nan)
    run = train_here(recipe)
    (fault,) = _faults(run, "rollback")
    assert (fault.step, fault.batches, fault.resumed_step) == (12, [9, 10, 11], 8)
    assert [line["step"] for line in steps_of(run)] == list(range(1, 25))
    assert None not in losses_of(run)


def test_a_steady_run_is_left_alone(source, tmp_path):
    run = train_here(_recipe(tmp_path, source, train={"duration": "60 steps"}))
    assert FaultLog(run.faults).read() == []


def test_checkpoints_and_exports_of_the_way_that_went_wrong_are_removed(harm, source, tmp_path):
    recipe = _recipe(tmp_path, source)
    harm(recipe, [14], 3.0, times=1)
    run = train_here(recipe)
    assert [step_of(path) for path in list_checkpoints(run.checkpoints)] == [4, 8, 12, 16, 20, 24]
    states = [json.loads((path / "state.json").read_text())["state"] for path in list_checkpoints(run.checkpoints)]
    assert [state["position"]["steps"] for state in states] == [4, 8, 12, 16, 20, 24]


@pytest.mark.parametrize("log_interval, sharding", [(1, "ddp"), (1000, "fsdp")])
def test_all_ranks_skip_a_step_that_one_of_them_cannot_compute(log_interval, sharding, source, tmp_path):
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


def test_a_step_without_a_masked_token_changes_nothing_and_the_run_goes_on(tmp_path):
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
    empty = [line for line in lines if not line["num_masked"]]
    assert 0 < len(empty) < 12
    assert lines[-1]["skipped_steps"] == len(empty)


def test_going_back_lets_go_of_the_model_before(harm, source, tmp_path):
    recipe = _recipe(tmp_path, source)
    harm(recipe, [12, 18], 3.0)
    train_here(recipe)
    gc.collect()
    assert sum(isinstance(thing, MaskedLmComposerModel) for thing in gc.get_objects()) <= 1
