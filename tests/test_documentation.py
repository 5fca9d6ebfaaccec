"""Tests of the documentation: its commands parse, and the Python snippets of docs/huggingface.md run."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from mosaicbert.cli import _parse, main

_ROOT = Path(__file__).parents[1]
_PAGE = (_ROOT / "docs" / "huggingface.md").read_text()
_SNIPPETS = re.findall(r"```python\n(.*?)```", _PAGE, flags=re.DOTALL)
_PAGES = [_ROOT / "README.md", *sorted((_ROOT / "docs").rglob("*.md"))]


def commands_of(page):
    """Return the commands of the shell blocks of a page, without comments and with joined lines."""
    blocks = "".join(re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL)).replace("\\\n", " ")
    return re.findall(r"^(?:\w+=\S+ )*mosaicbert (.*?)(?:\s+#.*)?$", blocks, flags=re.MULTILINE)


_COMMANDS = [(page.name, command) for page in _PAGES for command in commands_of(page)]


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


def test_the_pages_have_commands():
    assert {"README.md", "finetune.md", "glue.md", "huggingface.md"} <= {page for page, _ in _COMMANDS}


@pytest.mark.parametrize("page, command", _COMMANDS)
def test_the_commands_parse(page, command):
    del page  # names the test
    assert _parse(shlex.split(command)).command == command.split()[0]


def test_the_commands_of_the_fine_tuning_page_lead_from_a_csv_file_to_predictions(finished, tmp_path, monkeypatch):
    _, run, _ = finished
    shutil.copytree(run.path, tmp_path / "runs" / "my-run", symlinks=True)
    monkeypatch.chdir(tmp_path)
    rows = [f"returns item {row},good\n" if row % 2 else f"raises item {row},bad\n" for row in range(40)]
    Path("reviews.csv").write_text("text,label\n" + "".join(rows))
    Path("new.csv").write_text("text\nreturns item 1\nraises item 2\n")
    first = next(command for page, command in _COMMANDS if page == "finetune.md")
    predict = next(command for page, command in _COMMANDS if command.startswith("predict "))
    for command in (first, predict):
        with pytest.raises(SystemExit) as exit_info:
            main(shlex.split(command))
        assert exit_info.value.code == 0
    header, *predictions = Path("new.predictions.csv").read_text().splitlines()
    assert header == "text,predicted,probability of bad,probability of good"
    assert [line.split(",")[0] for line in predictions] == ["returns item 1", "raises item 2"]


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)#]+)\)", _PAGE))
def test_the_link_targets_exist(target):
    assert (_ROOT / "docs" / target).exists()
