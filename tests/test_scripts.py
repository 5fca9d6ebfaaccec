import json
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
def test_a_shell_script_has_valid_syntax(path):
    subprocess.run(["bash", "-n", path], check=True)


def test_the_time_limits_of_the_gpu_suite_add_up_to_at_most_nine_minutes():
    text = _SUITE.read_text()
    limits = [int(limit) for limit in re.findall(r"^part \w+ (\d+) ", text, flags=re.MULTILINE)]
    limits += [int(limit) for limit in re.findall(r"^pretraining \S+ \d+ (\d+)$", text, flags=re.MULTILINE)]
    (max_seconds,) = re.findall(r"^most_seconds=(\d+)$", text, flags=re.MULTILINE)
    assert len(limits) == 11
    assert sum(limits) <= int(max_seconds) < 540


def test_the_gpu_suite_prints_its_usage_without_a_folder():
    process = subprocess.run(["bash", _SUITE], capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stderr.startswith("usage: scripts/gpu_suite.sh RESULTS_FOLDER")


def test_the_figure_script_prints_its_usage_without_arguments():
    process = subprocess.run(["bash", _ROOT / "scripts" / "pareto_cpu.sh"], capture_output=True, text=True)
    assert process.returncode == 2
    assert "scripts/pareto_cpu.sh [--quick] TEXT GLUE BLIMP" in process.stdout


# Replacement of Python for the figure script. Untrained runs and their scores end at once. The training FIRST ends with
# CODE once the other has started, the other ends after SECONDS, and BLiMP takes 100 seconds. Sleeping processes write
# their ids.
_PYTHON = """#!/usr/bin/env bash
[[ $1 == -c ]] && { echo CORE CORE; exit; }
sleep_for() { mkdir -p pids; echo $$ > "pids/$1.partial"; mv "pids/$1.partial" "pids/$1"; exec sleep "$2"; }
case $3 in
    prepare | glue) exit ;;
    blimp) [[ $4 == *-untrained ]] && exit; sleep_for scoring 100 ;;
esac
for word in "$@"; do [[ $word == run_name=* ]] && run=${word#run_name=}; done
mkdir -p "runs/$run"
[[ $run == FIRST-cpu-10min ]] || touch "runs/$run/result.json"
case $run in
    *-untrained) ;;
    FIRST-*) until [[ -f pids/training ]]; do sleep 0.05; done; ((CODE)) || touch "runs/$run/END"; exit CODE ;;
    *) sleep_for training SECONDS ;;
esac
"""


@pytest.fixture
def start_figure(tmp_path):
    """Return a function that starts the figure script with a replacement of Python."""
    if shutil.which("taskset") is None:
        pytest.skip("no taskset, with which the script assigns a core to each training")
    script, python = tmp_path / "scripts" / "pareto_cpu.sh", tmp_path / "python"
    script.parent.mkdir()
    script.write_text((_ROOT / "scripts" / "pareto_cpu.sh").read_text())

    def start(**values):
        values["CORE"] = min(os.sched_getaffinity(0))
        python.write_text(re.sub("|".join(values), lambda match: str(values[match[0]]), _PYTHON))
        python.chmod(0o755)
        # Like a background process of a shell, the script and its child processes ignore interrupts.
        command = ["bash", "-c", 'trap \'\' INT; exec bash "$0" "$@"', script, "text", "glue", "blimp"]
        environment = os.environ | {"PYTHON": str(python)}
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    return start


def _wait_for_pid(folder, name):
    deadline = time.monotonic() + 30
    while not (folder / "pids" / name).exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int((folder / "pids" / name).read_text())


@pytest.mark.parametrize("first", ["mosaicbert", "bert"])
def test_a_failed_training_stops_the_other_training_and_the_figure_script(first, start_figure, tmp_path):
    process = start_figure(FIRST=first, CODE=3, SECONDS=100, END="result.json")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 3, errors
    assert not psutil.pid_exists(_wait_for_pid(tmp_path, "training"))


def test_a_stopped_training_ends_the_figure_script_with_an_error(start_figure):
    process = start_figure(FIRST="mosaicbert", CODE=0, SECONDS=0.1, END="stopped")
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (1, "runs/mosaicbert-cpu-10min was stopped.\n")


@pytest.mark.parametrize("phase, seconds", [("training", 100), ("scoring", 0.1)])
def test_terminating_the_figure_script_ends_its_child_processes(phase, seconds, start_figure, tmp_path):
    process = start_figure(FIRST="mosaicbert", CODE=0, SECONDS=seconds, END="result.json")
    pid = _wait_for_pid(tmp_path, phase)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert not psutil.pid_exists(pid)


@pytest.mark.slow
def test_the_quick_figure_is_drawn_from_the_real_data(shared_folder, tmp_path):
    root = shutil.copytree(_ROOT / "scripts", tmp_path / "root" / "scripts").parent
    shutil.copytree(_ROOT / "recipes", root / "recipes")
    data = shared_folder / "data"
    text, environment = data / "corpus" / "c4_sample" / "train-*.jsonl.zst", os.environ | {"PYTHON": sys.executable}
    command = ["bash", root / "scripts" / "pareto_cpu.sh", "--quick", text, data / "glue", data / "blimp"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    figure = root / "runs" / "pareto-cpu-quick"
    points = [json.loads(line) for line in (figure / "pareto.jsonl").read_text().splitlines()]
    assert [(point["series"], len(point["runs"])) for point in points] == [
        ("MosaicBERT", 2),
        ("MosaicBERT", 1),
        ("BERT", 2),
        ("BERT", 1),
        ("BERT with 30% masking", 1),
        ("MosaicBERT", 1),
        ("BERT", 1),
    ]
    for point in points:
        assert point["loss"]["value"] > 0 and 0 < point["blimp"]["value"] < 100
        assert point["glue"]["ci_low"] < point["glue"]["value"] < point["glue"]["ci_high"]
    assert (figure / "records" / "predictions.jsonl.zst").stat().st_size > 0
    # The same command computes nothing again.
    before = {path: path.stat().st_mtime for path in root.glob("runs/*-cpu-*/*.jsonl")}
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    assert {path: path.stat().st_mtime for path in root.glob("runs/*-cpu-*/*.jsonl")} == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is available")
def test_the_gpu_suite_ends_with_an_error_without_a_gpu(tmp_path):
    environment = os.environ | {"PYTHON": sys.executable}
    process = subprocess.run(["bash", _SUITE, tmp_path], env=environment, capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stderr == "scripts/gpu_suite.sh requires a GPU that torch can use, got none.\n"
