"""Consistency tests of the files for contributors: workflow, hooks, Makefile and citation."""

import re
from pathlib import Path

import yaml

_ROOT = Path(__file__).parents[1]


def _load(name):
    return yaml.safe_load((_ROOT / name).read_text(encoding="utf-8"))


def _make_targets():
    return set(re.findall(r"^([\w-]+):", (_ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))


def test_the_workflow_checks_every_supported_python_version():
    jobs = _load(".github/workflows/check.yml")["jobs"]
    classifiers = re.findall(r"Python :: (3\.\d+)", (_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert jobs["check"]["strategy"]["matrix"]["python-version"] == classifiers


def test_the_workflow_runs_existing_make_targets_and_tests():
    jobs = _load(".github/workflows/check.yml")["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    targets = {target for command in commands for target in re.findall(r"^make ([\w-]+)", command)}
    assert targets == {"check", "test-newest"} <= _make_targets()
    assert all((_ROOT / path).exists() for command in commands for path in re.findall(r"tests/\S+", command))


def test_the_hooks_run_the_tools_of_make_check():
    (local,) = _load(".pre-commit-config.yaml")["repos"]
    recipe = (_ROOT / "Makefile").read_text(encoding="utf-8")
    assert [hook["name"] for hook in local["hooks"]] == ["ruff check", "ruff format", "pyright"]
    for hook in local["hooks"]:
        assert hook["entry"].startswith(f".venv/bin/{hook['name']} ")
        assert f".venv/bin/{hook['name']} " in recipe


def test_the_citation_contains_the_paper_and_the_license_of_the_package():
    citation = _load("CITATION.cff")
    project = (_ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nname = "{citation["title"]}"\n' in project
    assert f'\nlicense = "{citation["license"]}"\n' in project
    (paper,) = citation["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2312.17482"
    assert len(paper["authors"]) == 9
