import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

_ROOT = Path(__file__).parents[1]
_SUITE = _ROOT / "scripts" / "gpu_suite.sh"


@pytest.mark.parametrize("path", sorted((_ROOT / "scripts").rglob("*.sh")), ids=lambda path: path.name)
def test_a_shell_script_is_one_that_bash_can_read(path):
    subprocess.run(["bash", "-n", path], check=True)


def test_the_gpu_suite_ends_within_nine_minutes_whatever_hangs():
    text = _SUITE.read_text()
    limits = [int(limit) for limit in re.findall(r"^part \w+ (\d+) ", text, flags=re.MULTILINE)]
    limits += [int(limit) for limit in re.findall(r"^pretraining \S+ \d+ (\d+)$", text, flags=re.MULTILINE)]
    (most,) = re.findall(r"^most_seconds=(\d+)$", text, flags=re.MULTILINE)
    assert len(limits) == 10
    assert sum(limits) <= int(most) < 540


def test_the_gpu_suite_asks_for_a_folder():
    ended = subprocess.run(["bash", _SUITE], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("usage: scripts/gpu_suite.sh RESULTS_FOLDER")


def test_the_script_of_the_figure_says_what_it_takes():
    ended = subprocess.run(["bash", _ROOT / "scripts" / "pareto_cpu.sh"], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "scripts/pareto_cpu.sh TEXT GLUE [MINUTES ...]" in ended.stdout


# A Python for the figure's script. Untrained runs end at once; of the trainings FIRST ends with CODE as soon as the
# other is under way, the other after SECONDS; GLUE takes a hundred. Who sleeps leaves its process in a file.
_PYTHON = """#!/usr/bin/env bash
[[ $1 == -c ]] && { echo CORE CORE; exit; }
lasts() { mkdir -p pids; echo $$ > "pids/$1.partial"; mv "pids/$1.partial" "pids/$1"; exec sleep "$2"; }
[[ $3 == pretrain ]] || lasts glue 100
for word in "$@"; do [[ $word == run_name=* ]] && run=${word#run_name=}; done
mkdir -p "runs/$run"
[[ $run == FIRST-cpu-5min ]] || touch "runs/$run/result.json"
case $run in
    *-untrained) ;;
    FIRST-*) until [[ -f pids/training ]]; do sleep 0.05; done; ((CODE)) || touch "runs/$run/END"; exit CODE ;;
    *) lasts training SECONDS ;;
esac
"""


@pytest.fixture
def start_figure(tmp_path):
    """Starts the figure's script with a Python that does as the words say."""
    if shutil.which("taskset") is None:
        pytest.skip("no taskset, by which the script gives each training a core")
    script, python = tmp_path / "scripts" / "pareto_cpu.sh", tmp_path / "python"
    script.parent.mkdir()
    script.write_text((_ROOT / "scripts" / "pareto_cpu.sh").read_text())

    def start(**words):
        words["CORE"] = min(os.sched_getaffinity(0))
        python.write_text(re.sub("|".join(words), lambda word: str(words[word[0]]), _PYTHON))
        python.chmod(0o755)
        # As a shell starts it in the background: no interrupt is heard, by what it starts neither.
        command = ["bash", "-c", 'trap \'\' INT; exec bash "$0" "$@"', script, "text", "glue", "5"]
        environment = os.environ | {"PYTHON": str(python)}
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    return start


def _sleeper(folder, name):
    deadline = time.monotonic() + 30
    while not (folder / "pids" / name).exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int((folder / "pids" / name).read_text())


@pytest.mark.parametrize("first", ["mosaicbert", "bert"])
def test_a_training_of_the_figure_that_fails_ends_the_one_beside_it_and_the_script(first, start_figure, tmp_path):
    ended = start_figure(FIRST=first, CODE=3, SECONDS=100, END="result.json")
    _, errors = ended.communicate(timeout=30)
    assert ended.returncode == 3, errors
    assert not psutil.pid_exists(_sleeper(tmp_path, "training"))


def test_a_training_of_the_figure_that_was_stopped_is_not_taken_for_finished(start_figure):
    ended = start_figure(FIRST="mosaicbert", CODE=0, SECONDS=0.1, END="stopped")
    _, errors = ended.communicate(timeout=30)
    assert (ended.returncode, errors) == (1, "runs/mosaicbert-cpu-5min was stopped.\n")


@pytest.mark.parametrize("phase, seconds", [("training", 100), ("glue", 0.1)])
def test_who_ends_the_figures_script_ends_what_it_has_started(phase, seconds, start_figure, tmp_path):
    ended = start_figure(FIRST="mosaicbert", CODE=0, SECONDS=seconds, END="result.json")
    sleeper = _sleeper(tmp_path, phase)
    ended.terminate()
    ended.communicate(timeout=30)
    assert ended.returncode == 128 + signal.SIGTERM
    assert not psutil.pid_exists(sleeper)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_the_gpu_suite_says_that_it_needs_a_gpu(tmp_path):
    environment = os.environ | {"PYTHON": sys.executable}
    ended = subprocess.run(["bash", _SUITE, tmp_path], env=environment, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == "scripts/gpu_suite.sh needs a GPU that torch can use; there is none.\n"
