import os
import re
import subprocess
import sys
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


# A Python for the figure's script: untrained runs are done at once, then one training ends as told, one after seconds.
_PYTHON = """#!/usr/bin/env bash
for word in "$@"; do [[ $word == run_name=* ]] && run=runs/${word#run_name=}; done
[[ $1 == -c ]] && { echo CORE CORE; exit; }
mkdir -p "$run"
case $run in
    *-untrained) touch "$run/result.json" ;;
    */mosaicbert-cpu-5min) until [[ -f runs/bert-cpu-5min/pid ]]; do sleep 0.05; done; exit CODE ;;
    *) touch "$run/result.json"; echo $$ > "$run/unfinished"; mv "$run/unfinished" "$run/pid"; exec sleep SECONDS ;;
esac
"""


@pytest.mark.parametrize("code, seconds, expected", [(3, 100, 3), (0, 0.1, 1)], ids=["failed", "stopped"])
def test_a_training_of_the_figure_that_comes_to_no_end_ends_the_script(code, seconds, expected, tmp_path):
    script, python = tmp_path / "scripts" / "pareto_cpu.sh", tmp_path / "python"
    script.parent.mkdir()
    script.write_text((_ROOT / "scripts" / "pareto_cpu.sh").read_text())
    words = {"CORE": min(os.sched_getaffinity(0)), "CODE": code, "SECONDS": seconds}
    python.write_text(re.sub("|".join(words), lambda word: str(words[word[0]]), _PYTHON))
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python)}
    ended = subprocess.run(["bash", script, "text", "glue", "5"], env=environment, capture_output=True, text=True)
    assert ended.returncode == expected, ended.stderr
    assert ("runs/mosaicbert-cpu-5min was stopped." in ended.stderr) == (code == 0)
    assert not psutil.pid_exists(int((tmp_path / "runs" / "bert-cpu-5min" / "pid").read_text()))


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_the_gpu_suite_says_that_it_needs_a_gpu(tmp_path):
    environment = os.environ | {"PYTHON": sys.executable}
    ended = subprocess.run(["bash", _SUITE, tmp_path], env=environment, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == "scripts/gpu_suite.sh needs a GPU that torch can use; there is none.\n"
