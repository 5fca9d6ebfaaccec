"""Resumption after a stop or a crash: equal weights, states and metrics, also with other ranks and workers."""

import itertools
import signal
from dataclasses import replace

import pytest

from mosaicbert.train.checkpoint.format import list_checkpoints, step_of
from mosaicbert.train.run_folder import RunFolder
from tests.data.loaders import train_loader_of
from tests.fork_server import forking
from tests.recipes import TINY_MODEL, tiny_recipe
from tests.train.running import (
    assert_same_end,
    assert_weights_close,
    finish,
    losses_of,
    start,
    steps_of,
    train_here,
    train_on_ranks,
    wait_for,
)

# Maximum difference relative to the largest weight of a tensor, when fp32 sums are computed in a different order. 20
# steps of AdamW amplify it, since its first steps do not depend on the scale of the gradient. Measured on a CPU: 6e-7.
_SUMMATION_TOLERANCE = 1e-5

_NUM_STEPS = 20


def _recipe(folder, source, **changes):
    """Return a recipe of twenty steps with dropout and a changing mask rate."""
    sections = {
        "data": {"final_mask_rate": 0.15},
        "model": TINY_MODEL | {"hidden_dropout_prob": 0.1},
        "train": {"duration": f"{_NUM_STEPS} steps"},
        "checkpoint": {"interval": "5 steps"},
        "eval": {"interval": "4 steps", "fill_mask": []},
    }
    for name, fields in changes.items():
        sections[name] = sections.get(name, {}) | fields
    return tiny_recipe(folder, source, **sections)


@pytest.fixture(scope="module")
def uninterrupted(source, tmp_path_factory):
    return train_here(_recipe(tmp_path_factory.mktemp("uninterrupted"), source))


@pytest.fixture(scope="module")
def without_dropout(source, tmp_path_factory):
    """Train on one rank without dropout, since dropout masks depend on the number of ranks."""
    return train_here(_recipe(tmp_path_factory.mktemp("no-dropout"), source, model={"hidden_dropout_prob": 0.0}))


@pytest.mark.parametrize("resume", ["here", pytest.param("as a command", marks=pytest.mark.slow)])
def test_a_killed_run_resumes_bit_for_bit(resume, uninterrupted, source, tmp_path):
    recipe = _recipe(tmp_path, source, data={"num_workers": 2}, checkpoint={"interval": "10 steps", "keep_last": 1})
    process = start(recipe)
    wait_for((recipe.run_folder / "checkpoints" / "step-10").exists, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (recipe.run_folder / "result.json").exists()
    if resume == "here":
        lines = []
        with forking():
            train_here(recipe, log_lines=lines)
    else:
        lines = finish(start(recipe)).splitlines()
    assert any("resuming from" in line for line in lines)
    assert_same_end(RunFolder(recipe.run_folder), uninterrupted)


@pytest.mark.parametrize("sessions", [[1], [10], [5, 1, 9], [19]], ids=str)
def test_a_stopped_run_resumes_bit_for_bit(sessions, uninterrupted, source, tmp_path):
    recipe = _recipe(tmp_path, source)
    for steps in sessions:
        run = train_here(recipe, stop_after=steps)
    assert step_of(list_checkpoints(run.checkpoints)[-1]) == sum(sessions)
    assert_same_end(train_here(recipe), uninterrupted)


def test_a_run_with_few_sync_steps_stops_one_step_later_and_resumes_bit_for_bit(uninterrupted, source, tmp_path):
    recipe = _recipe(tmp_path, source, log={"interval_steps": 1000}, checkpoint={"interval": "1000 steps"})
    run = train_here(recipe, stop_after=7)
    assert step_of(list_checkpoints(run.checkpoints)[-1]) == 8
    run = train_here(recipe)
    logged_steps = {line["step"] for line in steps_of(run)}
    assert_same_end(run, uninterrupted, ignored_steps=set(range(1, _NUM_STEPS + 1)) - logged_steps)


@pytest.mark.parametrize(
    "optimizer, duration",
    [
        ("decoupled_adamw", "320 samples"),
        ("stable_adamw", "9_000 tokens"),
        ("muon", "320 samples"),
        pytest.param("decoupled_adamw", "9_000 tokens", marks=pytest.mark.slow),
        pytest.param("stable_adamw", "320 samples", marks=pytest.mark.slow),
        pytest.param("muon", "9_000 tokens", marks=pytest.mark.slow),
    ],
)
def test_runs_with_every_optimizer_and_unit_resume_bit_for_bit(optimizer, duration, source, tmp_path):
    def recipe(name):
        return _recipe(
            tmp_path / name,
            source,
            optimizer={"name": optimizer, "schedule": "warmup_stable_decay", "decay_fraction": 0.3},
            train={"duration": duration, "initial_batch_samples": 4, "batch_warmup_tokens": 3_000},
            eval={"interval": "1_000 tokens"},
            checkpoint={"interval": "100 samples"},
        )

    uninterrupted = train_here(recipe("uninterrupted"))
    assert len({line["batch_samples"] for line in steps_of(uninterrupted)}) > 2
    train_here(recipe("resumed"), stop_after=7)
    assert_same_end(train_here(recipe("resumed")), uninterrupted)


def test_a_run_in_bf16_resumes_bit_for_bit(source, tmp_path):
    uninterrupted = train_here(_recipe(tmp_path / "uninterrupted", source, train={"precision": "bf16"}))
    train_here(_recipe(tmp_path / "resumed", source, train={"precision": "bf16"}), stop_after=11)
    assert_same_end(train_here(_recipe(tmp_path / "resumed", source, train={"precision": "bf16"})), uninterrupted)


def test_a_run_resumed_with_other_workers_and_micro_batches_has_the_same_batches(without_dropout, source, tmp_path):
    model = {"hidden_dropout_prob": 0.0}
    train_here(_recipe(tmp_path, source, model=model), stop_after=10)
    resumed = _recipe(tmp_path, source, model=model, data={"num_workers": 3}, train={"micro_batch_tokens": 100})
    _assert_same_batches(train_here(resumed), without_dropout)
    assert_weights_close(RunFolder(resumed.run_folder), without_dropout, _SUMMATION_TOLERANCE)


@pytest.mark.parametrize(
    "sharding, num_ranks, forked",
    [
        ("ddp", 4, True),
        pytest.param("fsdp", 2, True, marks=pytest.mark.slow),
        pytest.param("fsdp", 2, False, marks=pytest.mark.slow),
    ],
    ids=["ddp", "fsdp", "torchrun"],
)
def test_a_run_resumed_on_another_number_of_ranks_has_the_same_batches(
    sharding, num_ranks, forked, without_dropout, source, tmp_path
):
    recipe = _recipe(tmp_path, source, model={"hidden_dropout_prob": 0.0}, train={"sharding": sharding})
    train_here(recipe, stop_after=7)
    train_on_ranks(num_ranks, replace(recipe, data=replace(recipe.data, num_workers=1)), stop_after=6, forked=forked)
    run = train_here(recipe)
    _assert_same_batches(run, without_dropout)
    assert_weights_close(run, without_dropout, _SUMMATION_TOLERANCE)
    assert losses_of(run) == pytest.approx(losses_of(without_dropout), rel=1e-5)


def test_sharded_ranks_also_run_the_additional_micro_batches_of_other_ranks(source, tmp_path):
    # Seven sequences, each in its own micro-batch: four on one rank, and three on the other.
    model = TINY_MODEL | {"architecture": "bert"}
    changes = {"duration": "2 steps", "global_batch_samples": 7, "micro_batch_tokens": 33}
    recipes = [
        _recipe(
            tmp_path / name, source, model=model, train=changes | {"sharding": name}, data={"validation_fraction": 0.1}
        )
        for name in ("ddp", "fsdp")
    ]
    replicated, sharded = train_here(recipes[0]), train_on_ranks(2, recipes[1])
    assert losses_of(sharded) == pytest.approx(losses_of(replicated), rel=1e-5)


def _assert_same_batches(run, expected):
    for key in ("samples", "tokens", "num_masked", "mask_rate", "lr", "batch_samples"):
        assert [line[key] for line in steps_of(run)] == [line[key] for line in steps_of(expected)], key


def test_the_loader_of_a_resumed_run_starts_at_the_next_batch(source, tmp_path):
    recipe = _recipe(tmp_path, source)
    train_here(recipe, stop_after=10)
    loader = train_loader_of(recipe, 0, 1, first_step=10)
    assert next(iter(loader)).batch == 10


def test_an_interrupted_run_writes_a_checkpoint_and_prints_the_command_to_resume(source, tmp_path):
    recipe = _recipe(tmp_path, source, checkpoint={"interval": "1000 steps"}, log={"interval_steps": 1})
    process = start(_with_duration(recipe, "1000000 steps"), forked=False)
    wait_for((recipe.run_folder / "metrics.jsonl").exists, process)
    process.send_signal(signal.SIGINT)
    output = finish(process)
    run = RunFolder(recipe.run_folder)
    assert "stopped by SIGINT" in output
    assert f"to resume: mosaicbert pretrain {tmp_path / 'recipe.yaml'}" in output
    (checkpoint,) = list_checkpoints(run.checkpoints)
    assert steps_of(run)[-1]["step"] == step_of(checkpoint)


def _with_duration(recipe, duration):
    return replace(recipe, train=replace(recipe.train, duration=duration))


@pytest.mark.parametrize("corruption", ["truncated", "changed", "missing"])
def test_a_corrupted_checkpoint_is_skipped_and_logged(corruption, uninterrupted, source, tmp_path):
    recipe = _recipe(tmp_path, source)
    run = train_here(recipe, stop_after=12)
    newest = list_checkpoints(run.checkpoints)[-1] / "optimizer.safetensors"
    content = bytearray(newest.read_bytes())
    newest.unlink()
    if corruption == "truncated":
        newest.write_bytes(content[:-100])
    elif corruption == "changed":
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
    log_lines = []
    assert_same_end(train_here(recipe, log_lines=log_lines), uninterrupted)
    assert any("checkpoint skipped" in line and str(newest) in line for line in log_lines)
    assert any(line.endswith("step-10") for line in log_lines)


def test_a_run_without_a_valid_checkpoint_starts_from_the_beginning(uninterrupted, source, tmp_path):
    recipe = _recipe(tmp_path, source)
    run = train_here(recipe, stop_after=7)
    for path in list_checkpoints(run.checkpoints):
        (path / "state.json").write_text("{")
    assert_same_end(train_here(recipe), uninterrupted)


def test_a_run_with_a_time_limit_completes_its_learning_rate_schedule(source, tmp_path):
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
    lr_fractions = [line["lr"] / 1e-3 for line in lines]
    assert max(lr_fractions) > 0.95
    longest = max(later["wall_seconds"] - line["wall_seconds"] for line, later in itertools.pairwise(lines))
    assert lr_fractions[-1] <= 0.02 + 2 * longest / 4
    assert 4 - 2 * longest <= lines[-1]["wall_seconds"] <= 4 + longest
