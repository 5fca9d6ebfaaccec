import re
from html import escape
from html.parser import HTMLParser

import pytest

from mosaicbert.report.html import render_page
from mosaicbert.report.runs import read_runs
from tests.report.folders import evaluation_lines, training_lines, write_run

_INJECTION = "<script>alert('\"&"
_VOID_TAGS = {"meta", "img"}


class _Page(HTMLParser):
    """Parser of the table rows and tags of a page. A tag that is not closed in order is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in _VOID_TAGS:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data

    def row(self, name: str) -> list[str]:
        (cells,) = [row[1:] for row in self.rows if row[0] == name]
        return cells


def _render(folders) -> str:
    return render_page(read_runs(folders), b"picture")


@pytest.fixture
def two_runs(tmp_path):
    """Write a finished run with evaluations, and a run in progress without evaluations."""
    lines = training_lines(20)
    lines[-1] |= {"skipped_steps": 2, "rollbacks": 1}
    faults = [
        {
            "step": 7,
            "kind": "skipped",
            "reason": "loss is NaN",
            "batches": [6],
            "samples": [[0, 11]] * 4096,
            "resumed_step": None,
        }
    ]
    finished = write_run(tmp_path / "finished", [*lines, *evaluation_lines(lines, 5)], faults=faults)
    changes = {"is_finished": False, "optimizer": {"peak_lr": 0.25}, "seed": 4}
    return finished, write_run(tmp_path / "unfinished", training_lines(9, num_total_steps=21), **changes)


def test_the_page_is_self_contained_and_has_no_scripts(two_runs):
    page = _render(two_runs)
    assert not re.findall(r"https?://|url\(|@import", page)
    assert not {"script", "link", "iframe"} & _Page(page).tags


def test_the_runs_are_columns_of_a_table(two_runs):
    page = _Page(_render(two_runs))
    lines = training_lines(20)
    assert page.row("State") == ["finished", "in progress, 42%"]
    assert page.row("Steps") == ["20", "9"]
    assert page.row("Samples")[1] == f"{training_lines(9, num_total_steps=21)[-1]['samples']:,}"
    assert page.row("Tokens")[0] == f"{lines[-1]['tokens']:,}"
    speed = lines[-1]["tokens"] / lines[-1]["seconds"]
    assert page.row("Mean throughput (real tokens/s)")[0] == f"{speed:,.0f}"
    assert page.row("Last training loss (nats)")[0] == f"{lines[-1]['loss']:.4f}"
    assert page.row("Last validation loss (nats)") == [f"{lines[-1]['loss'] - 0.1:.4f}", "\N{EN DASH}"]
    assert page.row("Skipped steps") == ["2", "0"]
    assert page.row("Rollbacks") == ["1", "0"]
    assert page.row("Device") == ["Example CPU, 1 core"] * 2
    assert page.row("Commit") == ["0123abcd"] * 2


def test_only_keys_with_different_values_are_listed(two_runs):
    page = _Page(_render(two_runs))
    assert page.row("optimizer.peak_lr") == ["0.001", "0.25"]
    assert page.row("seed") == ["17", "4"]
    assert not [row for row in page.rows if row[0] in ("optimizer.eps", "run_name", "data.max_seq_len")]


def test_a_run_equal_to_the_first_shows_the_value_of_the_first(two_runs, tmp_path):
    again = write_run(tmp_path / "again", training_lines(2))
    assert _Page(_render([two_runs[0], again, two_runs[1]])).row("optimizer.peak_lr") == ["0.001", "0.001", "0.25"]


def test_a_report_of_one_run_has_no_recipe_differences(two_runs):
    assert "Recipe differences" not in _render(two_runs[:1])


def test_faults_are_listed_with_truncated_details(two_runs):
    (row,) = [row for row in _Page(_render(two_runs)).rows if row[0] == "7"]
    assert row[1:3] == ["skipped", "loss is NaN"]
    assert row[3].startswith("batches: [6], samples: [[0, 11], [0, 11]")
    assert row[3].endswith("... (4,096 in total)")
    assert len(row[3]) < 200


def test_names_and_reasons_are_escaped(tmp_path):
    faults = [{"step": 1, "kind": _INJECTION, "reason": _INJECTION, _INJECTION: _INJECTION}]
    lines = training_lines(2)
    folders = [
        write_run(tmp_path / "a", lines, faults=faults, run_name=_INJECTION),
        write_run(tmp_path / "b", lines, eval={"fill_mask": [f"{_INJECTION} [MASK]"]}),
    ]
    (folders[0] / "environment.json").write_text('{"commit": "<script>", "gpus": ["<script>"], "started": "<script>"}')
    text = _render(folders)
    page = _Page(text)
    assert "<script" not in text
    assert escape(_INJECTION) in text
    assert "script" not in page.tags
    assert ["1", _INJECTION, _INJECTION, f"{_INJECTION}: {_INJECTION}"] in page.rows


def test_runs_with_the_same_name_are_labeled_by_their_folders(tmp_path):
    folders = [write_run(tmp_path / parent / "same", training_lines(2)) for parent in ("a", "b")]
    assert _Page(_render(folders)).rows[0] == ["", *map(str, folders)]
