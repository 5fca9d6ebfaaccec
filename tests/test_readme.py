"""Tests of the README: its commands, its links, and its test command in CI."""

import re
from pathlib import Path

import pytest

from mosaicbert.cli import _parser, load

_ROOT = Path(__file__).parents[1]
_README = (_ROOT / "README.md").read_text()
_SHELL = "\n".join(re.findall(r"```bash\n(.*?)```", _README, flags=re.DOTALL))


def test_every_make_target_of_the_readme_exists():
    used_targets = set(re.findall(r"^make ([\w-]+)", _SHELL, flags=re.MULTILINE))
    defined_targets = set(re.findall(r"^([\w-]+):", (_ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"demo", "test"} <= used_targets <= defined_targets


@pytest.mark.parametrize("line", re.findall(r"^mosaicbert (.*?)(?:\s+#.*)?$", _SHELL, flags=re.MULTILINE))
def test_every_command_of_the_readme_parses(line, monkeypatch):
    monkeypatch.chdir(_ROOT)
    parsed = _parser().parse_args(line.split())
    if "recipe" in parsed:
        load(parsed)


def test_ci_runs_the_test_command_of_the_readme():
    assert re.search(r"^make test(\s|$)", _SHELL, flags=re.MULTILINE)
    commands = [
        line for line in (_ROOT / ".ci" / "run").read_text().splitlines() if not line.startswith(("#", "set", "cd"))
    ]
    assert commands == ["make test"]


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)#]+)\)", _README))
def test_every_link_target_of_the_readme_exists(target):
    assert (_ROOT / target).exists()
