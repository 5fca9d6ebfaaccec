"""Comparison of two commits by scripts/bench/compare.py."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mosaicbert.config.load import save_recipe

_ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not (_ROOT / ".git").exists(), reason="requires the git repository")
def test_a_commit_has_the_loss_of_itself(finished, tmp_path):
    save_recipe(finished[0], tmp_path / "tiny.yaml")
    script = _ROOT / "scripts" / "bench" / "compare.py"
    command = [sys.executable, script, "HEAD", "HEAD", tmp_path / "tiny.yaml", "--steps", "2"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    losses = re.findall(r"loss of the last step (\d\.\d+)", process.stdout)
    assert len(losses) == 2 and losses[0] == losses[1]
    assert re.search(r"relative time 1\.000", process.stdout)
