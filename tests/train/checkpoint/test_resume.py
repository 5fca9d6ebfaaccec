"""Stopped or killed and continued: nothing is lost, nothing is trained twice, whatever has changed around the run."""

import itertools
import signal
import time
from dataclasses import replace

import pytest

from mosaicbert.config import ConfigError
from mosaicbert.filesystem import lock_folder
from mosaicbert.train.checkpoint.disk_space import check_disk_space
from mosaicbert.train.checkpoint.format import list_checkpoints, step_of
from mosaicbert.train.run_folder import RunFolder
from tests.data.loaders import train_loader_of
from tests.recipes import TINY_MODEL, tiny_recipe
from tests.train.running import (
    assert_equal_but_for_summation,
    assert_same_end,
    finish,
    losses_of,
    pretrain_here,
    start,
    steps_of,
    train_here,
    train_on_ranks,
    wait_for,
)

# fp32 sums of another order, amplified by 20 steps of AdamW, whose first steps are of the size of the learning rate
# however small the gradient is; relative to the largest weight of each tensor. Measured on one processor: 6e-7.
_SUMMATION = 1e-5

_STEPS = 20


def _recipe(folder, source, **changes):
    """Twenty steps with everything that could be remembered wrongly: dropout, workers, a changing mask rate."""
    sections = {
        "data": {"final_mask_rate": 0.15},
        "model": TINY_MODEL | {"hidden_dropout_prob": 0.1},
        "train": {"duration": f"{_STEPS} steps"},
        "checkpoint": {"interval": "5 steps"},
        "eval": {"interval": "4 steps", "fill_mask": []},
    }
    for name, fields in changes.items():
        sections[name] = sections.get(name, {}) | fields
    return tiny_recipe(folder, source, **sections)


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory):
    return train_here(_recipe(tmp_path_factory.mktemp("undisturbed"), source))


@pytest.fixture(scope="module")
def without_noise(source, tmp_path_factory):
    """A run on one rank without dropout, whose noise depends on the number of ranks."""
    return train_here(_recipe(tmp_path_factory.mktemp("noiseless"), source, model={"hidden_dropout_prob": 0.0}))


def test_a_killed_run_continues_to_the_same_bits(undisturbed, source, tmp_path):
    recipe = _recipe(tmp_path, source, data={"num_workers": 2}, checkpoint={"interval": "10 steps", "keep_last": 1})
    process = start(recipe)
    wait_for((recipe.run_folder / "checkpoints" / "step-10").exists, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (recipe.run_folder / "result.json").exists()
    printed = finish(start(recipe))
    assert "resuming from" in printed
    assert_same_end(RunFolder(recipe.run_folder), undisturbed)


@pytest.mark.parametrize("sittings", [[1], [10], [5, 1, 9], [19]], ids=str)
def test_a_stopped_run_continues_to_the_same_bits(sittings, undisturbed, source, tmp_path):
    recipe = _recipe(tmp_path, source)
    for steps in sittings:
        run = train_here(recipe, stop_after=steps)
    assert step_of(list_checkpoints(run.checkpoints)[-1]) == sum(sittings)
    assert_same_end(train_here(recipe), undisturbed)


def test_a_run_that_is_seldom_looked_at_stops_a_step_later_and_continues_to_the_same_bits(
    undisturbed, source, tmp_path
):
    recipe = _recipe(tmp_path, source, log={"interval_steps": 1000}, checkpoint={"interval": "1000 steps"})
    run = train_here(recipe, stop_after=7)
    assert step_of(list_checkpoints(run.checkpoints)[-1]) == 8
    run = train_here(recipe)
    logged = {line["step"] for line in steps_of(run)}
    assert_same_end(run, undisturbed, but_for_lines_of=set(range(1, _STEPS + 1)) - logged)


@pytest.mark.parametrize("optimizer", ["decoupled_adamw", "stable_adamw", "muon"])
@pytest.mark.parametrize("duration", ["320 samples", "9_000 tokens"])
def test_every_optimizer_and_unit_continues_to_the_same_bits(optimizer, duration, source, tmp_path):
    def recipe(name):
        return _recipe(
            tmp_path / name,
            source,
            optimizer={"name": optimizer, "schedule": "warmup_stable_decay", "decay_fraction": 0.3},
            train={"duration": duration, "initial_batch_samples": 4, "batch_warmup_tokens": 3_000},
            eval={"interval": "1_000 tokens"},
            checkpoint={"interval": "100 samples"},
        )

    whole = train_here(recipe("whole"))
    assert len({line["batch_samples"] for line in steps_of(whole)}) > 2
    train_here(recipe("parts"), stop_after=7)
    assert_same_end(train_here(recipe("parts")), whole)


def test_bf16_continues_to_the_same_bits(source, tmp_path):
    whole = train_here(_recipe(tmp_path / "whole", source, train={"precision": "bf16"}))
    train_here(_recipe(tmp_path / "parts", source, train={"precision": "bf16"}), stop_after=11)
    assert_same_end(train_here(_recipe(tmp_path / "parts", source, train={"precision": "bf16"})), whole)


def test_other_workers_and_micro_batches_continue_with_the_same_batches(without_noise, source, tmp_path):
    noiseless = {"hidden_dropout_prob": 0.0}
    train_here(_recipe(tmp_path, source, model=noiseless), stop_after=10)
    moved = _recipe(tmp_path, source, model=noiseless, data={"num_workers": 3}, train={"micro_batch_tokens": 100})
    _assert_same_batches(train_here(moved), without_noise)
    assert_equal_but_for_summation(RunFolder(moved.run_folder), without_noise, _SUMMATION)


@pytest.mark.parametrize("sharding, num_ranks", [("ddp", 4), ("fsdp", 2)])
def test_another_number_of_ranks_continues_with_the_same_batches(sharding, num_ranks, without_noise, source, tmp_path):
    recipe = _recipe(tmp_path, source, model={"hidden_dropout_prob": 0.0}, train={"sharding": sharding})
    train_here(recipe, stop_after=7)
    train_on_ranks(num_ranks, replace(recipe, data=replace(recipe.data, num_workers=1)), stop_after=6)
    run = train_here(recipe)
    _assert_same_batches(run, without_noise)
    assert_equal_but_for_summation(run, without_noise, _SUMMATION)
    assert losses_of(run) == pytest.approx(losses_of(without_noise), rel=1e-5)


def test_ranks_that_share_weights_out_also_make_the_forward_passes_that_only_others_need(source, tmp_path):
    # Seven sequences, each a micro-batch, on two ranks: four and three.
    model = TINY_MODEL | {"architecture": "bert"}
    changes = {"duration": "2 steps", "global_batch_samples": 7, "micro_batch_tokens": 33}
    recipes = [
        _recipe(
            tmp_path / name, source, model=model, train=changes | {"sharding": name}, data={"validation_fraction": 0.1}
        )
        for name in ("ddp", "fsdp")
    ]
    alone, shared = train_here(recipes[0]), train_on_ranks(2, recipes[1])
    assert losses_of(shared) == pytest.approx(losses_of(alone), rel=1e-5)


def _assert_same_batches(ours, theirs):
    for key in ("samples", "tokens", "num_masked", "mask_rate", "lr", "batch_samples"):
        assert [line[key] for line in steps_of(ours)] == [line[key] for line in steps_of(theirs)], key


def test_a_resumed_run_reads_nothing_that_it_has_trained_already(source, tmp_path):
    recipe = _recipe(tmp_path, source)
    train_here(recipe, stop_after=10)
    loader = train_loader_of(recipe, 0, 1, first_step=10)
    assert next(iter(loader)).batch == 10


def test_asked_to_stop_a_run_writes_a_checkpoint_and_says_how_to_continue(source, tmp_path):
    recipe = _recipe(tmp_path, source, checkpoint={"interval": "1000 steps"}, log={"interval_steps": 1})
    long = _with_duration(recipe, "1000000 steps")
    process = start(long)
    wait_for((recipe.run_folder / "metrics.jsonl").exists, process)
    process.send_signal(signal.SIGINT)
    printed = finish(process)
    run = RunFolder(recipe.run_folder)
    assert "stopped by SIGINT" in printed
    assert f"to resume: mosaicbert pretrain {tmp_path / 'recipe.yaml'}" in printed
    (checkpoint,) = list_checkpoints(run.checkpoints)
    assert steps_of(run)[-1]["step"] == step_of(checkpoint)


def _with_duration(recipe, duration):
    return replace(recipe, train=replace(recipe.train, duration=duration))


def test_several_processes_stop_together(source, tmp_path):
    recipe = _recipe(
        tmp_path, source, train={"num_processes": 2, "duration": "1000000 steps"}, data={"final_mask_rate": None}
    )
    process = start(recipe)
    wait_for((recipe.run_folder / "metrics.jsonl").exists, process)
    process.terminate()
    assert "stopped by SIGTERM" in finish(process)
    run = RunFolder(recipe.run_folder)
    assert step_of(list_checkpoints(run.checkpoints)[-1]) == steps_of(run)[-1]["step"]


def test_several_processes_end_with_the_one_that_started_them(source, tmp_path):
    recipe = _recipe(
        tmp_path, source, train={"num_processes": 2, "duration": "1000000 steps"}, data={"final_mask_rate": None}
    )
    process = start(recipe)
    metrics = recipe.run_folder / "metrics.jsonl"
    wait_for(metrics.exists, process)
    process.kill()
    process.wait()
    time.sleep(1)
    length = metrics.stat().st_size
    time.sleep(1)
    assert metrics.stat().st_size == length


@pytest.mark.parametrize("harm", ["truncated", "changed", "missing"])
def test_a_damaged_checkpoint_is_passed_over_and_said(harm, undisturbed, source, tmp_path):
    recipe = _recipe(tmp_path, source)
    run = train_here(recipe, stop_after=12)
    newest = list_checkpoints(run.checkpoints)[-1] / "optimizer.safetensors"
    content = bytearray(newest.read_bytes())
    newest.unlink()
    if harm == "truncated":
        newest.write_bytes(content[:-100])
    elif harm == "changed":
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
    said = []
    assert_same_end(train_here(recipe, said=said), undisturbed)
    assert any("checkpoint skipped" in line and str(newest) in line for line in said)
    assert any(line.endswith("step-10") for line in said)


def test_a_run_whose_checkpoints_are_all_damaged_begins_again(undisturbed, source, tmp_path):
    recipe = _recipe(tmp_path, source)
    run = train_here(recipe, stop_after=7)
    for path in list_checkpoints(run.checkpoints):
        (path / "state.json").write_text("{")
    assert_same_end(train_here(recipe), undisturbed)


def test_the_last_checkpoints_and_every_nth_are_kept(source, tmp_path):
    run = train_here(_recipe(tmp_path, source, checkpoint={"interval": "2 steps", "keep_last": 2, "keep_every": 3}))
    assert [step_of(path) for path in list_checkpoints(run.checkpoints)] == [6, 12, 18, 20]


def test_a_disk_that_is_full_costs_the_checkpoints_and_not_the_run(source, tmp_path):
    recipe = _recipe(tmp_path, source)
    train_here(recipe, stop_after=3)

    # The system refuses to make files longer than this: longer than the metrics, shorter than the weights.
    limited = start(recipe, command=("-c", _LIMITED), LIMIT=str(100_000))
    printed = finish(limited, code=1)
    run = RunFolder(recipe.run_folder)
    assert "could not be written" in printed
    assert "Free disk space" in printed
    assert steps_of(run)[-1]["step"] == _STEPS
    assert [step_of(path) for path in list_checkpoints(run.checkpoints)] == [3]
    assert not list(run.checkpoints.glob("*.partial"))


_LIMITED = """
import os, resource, sys
limit = int(os.environ["LIMIT"])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from mosaicbert.cli import main
main(["pretrain", *sys.argv[1:]])
"""


def test_a_disk_without_room_is_found_before_the_run_begins(source, tmp_path):
    run = train_here(_recipe(tmp_path, source), stop_after=1)
    with pytest.raises(ConfigError, match=r"3 checkpoints with their exports need .* GiB free\. Free disk space"):
        check_disk_space(run, num_parameters=10**15, keep_last=2)


def test_a_run_is_trained_by_one_process_at_a_time(source, tmp_path, console):
    recipe = _recipe(tmp_path, source)
    run = train_here(recipe, stop_after=1)
    with lock_folder(run.path), pytest.raises(ConfigError, match="must be trained by one process group at a time"):
        pretrain_here(recipe, console)


def test_a_run_of_so_many_seconds_goes_through_its_whole_schedule(source, tmp_path):
    run = train_here(
        _recipe(
            tmp_path,
            source,
            train={"duration": "4s"},
            data={"final_mask_rate": None},
            eval={"interval": "1s"},
            checkpoint={"interval": "2s"},
        )
    )
    lines = steps_of(run)
    share = [line["lr"] / 1e-3 for line in lines]
    assert max(share) > 0.95
    longest = max(later["wall_seconds"] - line["wall_seconds"] for line, later in itertools.pairwise(lines))
    assert share[-1] <= 0.02 + 2 * longest / 4
    assert 4 - 2 * longest <= lines[-1]["wall_seconds"] <= 4 + longest
