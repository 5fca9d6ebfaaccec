"""Tests of docs/huggingface.md: its Python snippets run, and its commands parse."""

import json
import re
import shutil
from pathlib import Path

import pytest

from mosaicbert.cli import _parser

_ROOT = Path(__file__).parents[1]
_PAGE = (_ROOT / "docs" / "huggingface.md").read_text()
_SNIPPETS = re.findall(r"```python\n(.*?)```", _PAGE, flags=re.DOTALL)
_COMMANDS = re.findall(r"^mosaicbert (.*?)(?:\s+#.*)?$", _PAGE, flags=re.MULTILINE)


def test_the_snippets_run_in_order(finished, tmp_path, monkeypatch):
    _, run, _ = finished
    shutil.copytree(run.hugging_face / "latest", tmp_path / "runs" / "my-run" / "hf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    namespace = {}
    for snippet in _SNIPPETS:
        exec(snippet, namespace)
    assert namespace["output"].logits.shape[:2] == namespace["inputs"]["input_ids"].shape
    assert namespace["one_layer"].config.num_hidden_layers == 1
    assert any("lora" in name for name, _ in namespace["adapted"].named_parameters())


def test_the_table_of_longer_inputs_agrees_with_the_record():
    losses = {}
    for line in map(json.loads, (_ROOT / "docs" / "results" / "extrapolation.jsonl").read_text().splitlines()):
        losses[line["run"].partition("-")[0], line["length"]] = f"{line['loss']:.3f}"
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| (\S+) \|$", _PAGE, flags=re.MULTILINE)
    assert [(int(length), *cells) for length, *cells in rows] == [
        (length, losses["mosaicbert", length], losses.get(("bert", length), "-")) for length in (128, 256, 512, 1024)
    ]


@pytest.mark.parametrize("command", _COMMANDS)
def test_the_commands_parse(command):
    assert _parser().parse_args(command.split()).command == "export"


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)#]+)\)", _PAGE))
def test_the_link_targets_exist(target):
    assert (_ROOT / "docs" / target).exists()
