"""Checks before a run: installed loggers, and enough samples for all processes."""

import sys
from dataclasses import replace

import pytest

from mosaicbert.config import ConfigError
from mosaicbert.data.prepare.pipeline import check_store
from mosaicbert.train.resolve import check_loggers, check_num_processes, prepare_run
from tests.recipes import tiny_recipe


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
