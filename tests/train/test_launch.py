"""Launch of several processes: equal results, failures, stop requests and the death of the parent."""

import sys
import time

import psutil
import pytest

from mosaicbert.config.load import load_recipe
from mosaicbert.train.checkpoint.format import list_checkpoints, step_of
from mosaicbert.train.launch import _run_ranks
from mosaicbert.train.run_folder import RunFolder
from tests.recipes import tiny_recipe
from tests.train.running import evaluations_of, finish, losses_of, start, steps_of, wait_for


@pytest.mark.parametrize("forked", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["forked", "command"])
def test_two_processes_have_the_losses_of_one(forked, finished, source, tmp_path):
    _, expected, _ = finished
    recipe = tiny_recipe(tmp_path, source, train={"num_processes": 2}, checkpoint={"interval": "6 steps"})
    output = finish(start(recipe, forked=forked))
    run = RunFolder(recipe.run_folder)
    assert losses_of(run) == pytest.approx(losses_of(expected), rel=1e-5)
    assert evaluations_of(run) == pytest.approx(evaluations_of(expected), rel=1e-5)
    assert "2 process(es)" in output
    assert (run.hugging_face / "model.safetensors").is_file()


@pytest.mark.slow
def test_if_a_rank_fails_the_others_are_killed_and_the_error_names_the_rank(source, tmp_path):
    recipe = tiny_recipe(tmp_path, source, train={"num_processes": 2, "duration": "1000000 steps"})
    process = start(recipe, forked=False)
    wait_for((recipe.run_folder / "metrics.jsonl").exists, process)
    ranks = psutil.Process(process.pid).children()
    next(rank for rank in ranks if rank.environ().get("RANK") == "1").kill()
    assert "rank 1 exited with code -9" in finish(process, code=128 + 9)
    assert not any(rank.is_running() for rank in ranks)


def test_all_processes_have_the_same_precision_and_stop_after_the_same_step(source, tmp_path):
    train = {"num_processes": 2, "duration": "1000000 steps", "precision": "auto"}
    recipe = tiny_recipe(tmp_path, source, train=train)
    process = start(recipe)
    wait_for((recipe.run_folder / "metrics.jsonl").exists, process)
    process.terminate()
    output = finish(process)
    assert "stopped by SIGTERM" in output
    assert "(as chosen when the run began)" in output  # the launcher has measured and recorded it
    run = RunFolder(recipe.run_folder)
    assert load_recipe(run.recipe).train.precision in ("fp32", "bf16")
    assert step_of(list_checkpoints(run.checkpoints)[-1]) == steps_of(run)[-1]["step"]


@pytest.mark.slow
def test_the_measured_number_of_processes_trains_and_is_recorded(finished, source, tmp_path):
    _, expected, _ = finished
    recipe = tiny_recipe(tmp_path, source, train={"num_processes": "auto", "precision": "auto"})
    output = finish(start(recipe, forked=False))
    run = RunFolder(recipe.run_folder)
    recorded = load_recipe(run.recipe).train
    assert f"processes: {recorded.num_processes} (a measured step takes " in output
    assert f"{recorded.num_processes} process(es)" in output
    if recorded.precision == "fp32":
        assert losses_of(run) == pytest.approx(losses_of(expected), rel=1e-5)


def test_all_processes_exit_when_the_launcher_is_killed(source, tmp_path):
    recipe = tiny_recipe(tmp_path, source, train={"num_processes": 2, "duration": "1000000 steps"})
    process = start(recipe)
    metrics = recipe.run_folder / "metrics.jsonl"
    wait_for(metrics.exists, process)
    process.kill()
    process.wait()
    time.sleep(1)
    size = metrics.stat().st_size
    time.sleep(1)
    assert metrics.stat().st_size == size


def _run_program(program, num_ranks):
    """Run a small program on several ranks, and return the exit code of the launcher."""
    program = f"import os, signal, time\nrank = os.environ['RANK']\n{program}"
    return _run_ranks([sys.executable, "-c", program], num_ranks)


def test_every_rank_has_the_variables_of_a_launcher(capfd):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR")
    assert _run_program(f"if rank == '0': print(*(os.environ[name] for name in {names}))", 3) == 0
    assert capfd.readouterr().out == "0 0 3 3 0 127.0.0.1\n"


def test_if_a_rank_is_killed_the_others_are_too_and_the_error_names_the_rank(capfd):
    assert _run_program("if rank == '1': os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(600)", 2) == 128 + 9
    assert "rank 1 exited with code -9" in capfd.readouterr().err


def test_exit_code_and_last_lines_of_a_failed_rank_are_printed(capfd):
    assert _run_program("if rank == '2': print('no such file'); raise SystemExit(3)\ntime.sleep(600)", 3) == 3
    assert capfd.readouterr().err.splitlines() == ["no such file", "rank 2 exited with code 3"]


def test_a_signal_to_the_launcher_is_forwarded_to_every_rank():
    exit_on_signal = "signal.signal(signal.SIGTERM, lambda *_: os._exit(0))\n"
    send_signal = "if rank == '1': time.sleep(0.2); os.kill(os.getppid(), signal.SIGTERM)\n"
    assert _run_program(f"{exit_on_signal}{send_signal}time.sleep(600)", 2) == 0
