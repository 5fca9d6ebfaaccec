"""Launch of several processes: equal results, failures, stop requests and the death of the parent."""

import time

import psutil
import pytest

from mosaicbert.train.checkpoint.format import list_checkpoints, step_of
from mosaicbert.train.run_folder import RunFolder
from tests.recipes import tiny_recipe
from tests.train.running import evaluations_of, finish, losses_of, start, steps_of, wait_for


@pytest.mark.parametrize("forked", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["forked", "command"])
def test_two_processes_train_as_one_does(forked, finished, source, tmp_path):
    _, alone, _ = finished
    recipe = tiny_recipe(tmp_path, source, train={"num_processes": 2}, checkpoint={"interval": "6 steps"})
    printed = finish(start(recipe, forked=forked))
    together = RunFolder(recipe.run_folder)
    assert losses_of(together) == pytest.approx(losses_of(alone), rel=1e-5)
    assert evaluations_of(together) == pytest.approx(evaluations_of(alone), rel=1e-5)
    assert "2 process(es)" in printed
    assert (together.hugging_face / "model.safetensors").is_file()


@pytest.mark.slow  # with small programs as ranks: test_launch.py
def test_a_rank_that_fails_ends_the_others_and_is_named(source, tmp_path):
    recipe = tiny_recipe(tmp_path, source, train={"num_processes": 2, "duration": "1000000 steps"})
    process = start(recipe, forked=False)
    wait_for((recipe.run_folder / "metrics.jsonl").exists, process)
    ranks = psutil.Process(process.pid).children()
    next(rank for rank in ranks if rank.environ().get("RANK") == "1").kill()
    assert "rank 1 exited with code -9" in finish(process, code=128 + 9)
    assert not any(rank.is_running() for rank in ranks)


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
