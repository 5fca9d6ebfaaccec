"""Checks before a run: installed loggers, and enough samples for all processes."""

import sys
from dataclasses import replace

import pytest
import torch

from mosaicbert.config import ConfigError
from mosaicbert.data.prepare.pipeline import check_store
from mosaicbert.processes import count_cpus
from mosaicbert.train import resolve
from mosaicbert.train.measure import processes
from mosaicbert.train.measure.processes import measure_processes
from mosaicbert.train.resolve import (
    check_loggers,
    check_num_processes,
    prepare_run,
    resolve_num_processes,
    resolve_precision,
    resolve_run,
)
from mosaicbert.train.run_folder import RunFolder, check_run_folder, create_run_folder
from tests.recipes import TINY_MODEL, tiny_recipe


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_the_error_for_a_missing_logger_names_the_package_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # makes Python treat the package as not installed
    with pytest.raises(
        ConfigError, match=rf"`log\.loggers` must name installed packages, got {name}\. Run `pip install {name}`\."
    ):
        check_loggers([name])


def test_a_logger_that_is_not_in_the_recipe_need_not_be_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    check_loggers([])
    check_loggers(["tensorboard"])


def test_more_processes_than_samples_are_an_error(finished):
    recipe, _, _ = finished
    record = check_store(recipe)
    with pytest.raises(ConfigError, match="each of the 17 processes, got 16"):
        check_num_processes(recipe, record, 17)
    large_batches = replace(recipe, train=replace(recipe.train, global_batch_samples=96))
    with pytest.raises(ConfigError, match="validation sample for each of the 90 processes"):
        check_num_processes(large_batches, record, 90)


def test_only_a_rank_expects_that_the_store_is_prepared(source, tmp_path, console, monkeypatch):
    recipe = tiny_recipe(tmp_path, source)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ConfigError, match="is not a token store"):
        prepare_run(recipe, console, 2)
    monkeypatch.delenv("RANK")  # the launcher itself, or a variable that some other program has set
    _, store = prepare_run(recipe, console, 2)
    assert store == check_store(recipe)


def test_checks_that_precede_the_ranks_do_not_use_a_gpu(source, tmp_path, console, monkeypatch):
    def fail(*_):
        raise AssertionError("the device was queried")

    monkeypatch.delenv("RANK", raising=False)  # Composer sets it in a process that has trained
    for name in ("is_bf16_supported", "current_device", "get_device_name", "init"):
        monkeypatch.setattr(f"torch.cuda.{name}", fail)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    prepare_run(tiny_recipe(tmp_path, source, train={"precision": "bf16"}), console, 2)


def _automatic(folder, source, **changes):
    return tiny_recipe(folder, source, train={"precision": "auto"}, **changes)


@pytest.mark.parametrize("architecture", ["mosaicbert", "bert"])
def test_the_precision_is_measured_without_drawing_random_numbers(architecture, source, tmp_path):
    recipe = _automatic(tmp_path, source, model=TINY_MODEL | {"architecture": architecture})
    state = torch.get_rng_state()
    resolved, reason = resolve_precision(recipe, RunFolder(recipe.run_folder))
    assert torch.equal(torch.get_rng_state(), state)
    assert resolved.train.precision in ("fp32", "bf16")
    assert resolved == replace(recipe, train=replace(recipe.train, precision=resolved.train.precision))
    assert reason.startswith("a measured step is ")


@pytest.mark.parametrize("fastest", ["fp32", "bf16"])
def test_a_run_keeps_the_precision_that_was_faster_when_it_began(fastest, source, tmp_path, console, monkeypatch):
    recipe = _automatic(tmp_path, source)
    monkeypatch.setattr(resolve, "measure_precisions", lambda _: {"fp32": 1.0, "bf16": 2.0} | {fastest: 0.5})
    begun = resolve_run(recipe, console)
    assert (begun.recipe.train.precision, begun.precision_reason.split(" as ")[0]) == (
        fastest,
        f"a measured step is {2 if fastest == 'bf16' else 4}.0 times",
    )
    create_run_folder(begun.recipe, begun.store)
    monkeypatch.setattr(resolve, "measure_precisions", lambda _: {"fp32": 0.5, "bf16": 0.5} | {fastest: 1.0})
    resumed = resolve_run(recipe, console)
    assert (resumed.recipe, resumed.precision) == (begun.recipe, begun.precision)
    assert resumed.precision_reason == "as chosen when the run began"


def test_a_run_cannot_be_resumed_in_another_precision(source, tmp_path, console):
    recipe = tiny_recipe(tmp_path, source)
    create_run_folder(recipe, resolve_run(recipe, console).store)
    check_run_folder(replace(recipe, train=replace(recipe.train, precision="auto")))
    with pytest.raises(ConfigError, match=r"`train\.precision` \(recorded: fp32, now: bf16\)"):
        check_run_folder(replace(recipe, train=replace(recipe.train, precision="bf16")))


def test_one_of_several_ranks_does_not_measure_the_precision(source, tmp_path, monkeypatch):
    def fail(_):
        raise AssertionError("the precision was measured")

    monkeypatch.setattr(resolve, "measure_precisions", fail)
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe = _automatic(tmp_path, source)
    assert resolve_precision(recipe, RunFolder(recipe.run_folder))[0].train.precision in ("fp32", "bf16")


def test_training_steps_are_measured_with_one_process_and_with_several(source, tmp_path):
    recipe = tiny_recipe(tmp_path, source, train={"num_processes": "auto"})
    seconds = measure_processes(recipe)
    assert list(seconds) == [2**exponent for exponent in range(min(count_cpus(), 8).bit_length())]
    assert all(0 <= value < float("inf") for value in seconds.values())


@pytest.mark.parametrize(
    "seconds, number, relative_time",
    [
        ({1: 1.0, 2: 0.8}, 2, "0.80 of the time with 2"),
        ({1: 1.0, 2: 0.99}, 1, "0.99 of the time with 2"),  # may be a random difference
        ({1: 1.0, 2: 1.2}, 1, "1.20 of the time with 2"),
        ({1: 1.0, 2: 0.8, 4: 0.5, 8: 0.6}, 4, "0.50 of the time with 4"),
    ],
)
def test_the_number_of_processes_is_that_of_the_shortest_step(
    seconds, number, relative_time, source, tmp_path, monkeypatch
):
    recipe = tiny_recipe(tmp_path, source, train={"num_processes": "auto"})
    monkeypatch.setattr(resolve, "measure_processes", lambda _: seconds)
    reason = f"a measured step takes {relative_time} processes"
    assert resolve_num_processes(recipe, RunFolder(recipe.run_folder)) == (number, reason)


def test_with_one_cpu_there_is_one_process(source, tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path, source, train={"num_processes": "auto"})
    monkeypatch.setattr(processes, "count_cpus", lambda: 1)
    number, reason = resolve_num_processes(recipe, RunFolder(recipe.run_folder))
    assert (number, reason) == (1, "this machine has one CPU, or a step has one sample")


def test_a_run_keeps_its_number_of_processes(source, tmp_path, console, monkeypatch):
    recipe = tiny_recipe(tmp_path, source, train={"num_processes": 3})
    create_run_folder(recipe, resolve_run(recipe, console).store)
    monkeypatch.setattr(resolve, "measure_processes", lambda _: {1: 1.0, 2: 0.5})
    resumed = replace(recipe, train=replace(recipe.train, num_processes="auto"))
    number, reason = resolve_num_processes(resumed, check_run_folder(resumed))
    assert (number, reason) == (3, "as chosen when the run began")
