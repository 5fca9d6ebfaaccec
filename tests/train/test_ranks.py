"""Processes that the launcher starts as ranks: environment, failures and signals, with small programs as ranks."""

import sys

from mosaicbert.train.launch import _run_ranks


def _run(program, num_ranks):
    program = f"import os, signal, time\nrank = os.environ['RANK']\n{program}"
    return _run_ranks([sys.executable, "-c", program], num_ranks)


def test_every_rank_has_its_place_in_its_environment(capfd):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR")
    assert _run(f"if rank == '0': print(*(os.environ[name] for name in {names}))", 3) == 0
    assert capfd.readouterr().out == "0 0 3 3 0 127.0.0.1\n"


def test_a_rank_that_is_killed_ends_the_others_and_is_named(capfd):
    assert _run("if rank == '1': os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(600)", 2) == 128 + 9
    assert "rank 1 exited with code -9" in capfd.readouterr().err


def test_the_code_and_the_last_lines_of_a_rank_that_fails_are_shown(capfd):
    assert _run("if rank == '2': print('no such file'); raise SystemExit(3)\ntime.sleep(600)", 3) == 3
    assert capfd.readouterr().err.splitlines() == ["no such file", "rank 2 exited with code 3"]


def test_a_signal_to_the_launcher_reaches_every_rank():
    exit_when_told = "signal.signal(signal.SIGTERM, lambda *_: os._exit(0))\n"
    tell = "if rank == '1': time.sleep(0.2); os.kill(os.getppid(), signal.SIGTERM)\n"
    assert _run(f"{exit_when_told}{tell}time.sleep(600)", 2) == 0
