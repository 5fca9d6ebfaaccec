import re
from html import escape
from html.parser import HTMLParser

import pytest

from mosaicbert.report.html import write_page
from mosaicbert.report.runs import read_runs
from tests.report.folders import evaluation_lines, training_lines, write_run

_ATTACK = "<script>alert('\"&"
_VOID = {"meta", "img"}


class _Page(HTMLParser):
    """The texts of table rows, and the tags; fails on a tag that is not closed in its place."""

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
        if tag not in _VOID:
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
        (found,) = [row[1:] for row in self.rows if row[0] == name]
        return found


def _write(folders) -> str:
    return write_page(read_runs(folders), b"picture")


@pytest.fixture
def two(tmp_path):
    """A finished run with evaluations, and one in progress that has none yet."""
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
    done = write_run(tmp_path / "done", [*lines, *evaluation_lines(lines, 5)], faults=faults)
    changes = {"finished": False, "optimizer": {"peak_lr": 0.25}, "seed": 4}
    return done, write_run(tmp_path / "going", training_lines(9, of_steps=21), **changes)


def test_the_page_needs_no_network_and_runs_no_script(two):
    page = _write(two)
    assert not re.findall(r"https?://|url\(|@import", page)
    assert not {"script", "link", "iframe"} & _Page(page).tags


def test_the_runs_stand_side_by_side(two):
    page = _Page(_write(two))
    lines = training_lines(20)
    assert page.row("state") == ["finished", "at 42%"]
    assert page.row("steps") == ["20", "9"]
    assert page.row("samples")[1] == f"{training_lines(9, of_steps=21)[-1]['samples']:,}"
    assert page.row("tokens")[0] == f"{lines[-1]['tokens']:,}"
    speed = lines[-1]["tokens"] / lines[-1]["seconds"]
    assert page.row("real tokens per second, mean")[0] == f"{speed:,.0f}"
    assert page.row("training loss, last (nats)")[0] == f"{lines[-1]['loss']:.4f}"
    assert page.row("held-out loss, last (nats)") == [f"{lines[-1]['loss'] - 0.1:.4f}", "\N{EN DASH}"]
    assert page.row("skipped steps") == ["2", "0"]
    assert page.row("rollbacks") == ["1", "0"]
    assert page.row("device") == ["Abacus, 1 core"] * 2
    assert page.row("commit") == ["0123abcd"] * 2


def test_the_keys_in_which_recipes_differ_are_listed_and_no_others(two):
    page = _Page(_write(two))
    assert page.row("optimizer.peak_lr") == ["0.001", "0.25"]
    assert page.row("seed") == ["17", "4"]
    assert not [row for row in page.rows if row[0] in ("optimizer.eps", "run_name", "data.max_seq_len")]


def test_a_run_like_the_first_shows_the_first_ones_value_of_a_key_that_others_change(two, tmp_path):
    again = write_run(tmp_path / "again", training_lines(2))
    assert _Page(_write([two[0], again, two[1]])).row("optimizer.peak_lr") == ["0.001", "0.001", "0.25"]


def test_a_report_of_one_run_compares_no_recipes(two):
    assert "recipes differ" not in _write(two[:1])


def test_faults_are_listed_with_what_is_known_of_them_in_brief(two):
    (row,) = [row for row in _Page(_write(two)).rows if row[0] == "7"]
    assert row[1:3] == ["skipped", "loss is NaN"]
    assert row[3].startswith("batches: [6], samples: [[0, 11], [0, 11]")
    assert row[3].endswith("... (4,096 in all)")
    assert len(row[3]) < 200


def test_names_and_reasons_cannot_add_to_the_page(tmp_path):
    faults = [{"step": 1, "kind": _ATTACK, "reason": _ATTACK, _ATTACK: _ATTACK}]
    lines = training_lines(2)
    folders = [
        write_run(tmp_path / "a", lines, faults=faults, run_name=_ATTACK),
        write_run(tmp_path / "b", lines, eval={"fill_mask": [f"{_ATTACK} [MASK]"]}),
    ]
    (folders[0] / "environment.json").write_text('{"commit": "<script>", "gpus": ["<script>"], "started": "<script>"}')
    text = _write(folders)
    page = _Page(text)
    assert "<script" not in text
    assert escape(_ATTACK) in text
    assert "script" not in page.tags
    assert ["1", _ATTACK, _ATTACK, f"{_ATTACK}: {_ATTACK}"] in page.rows


def test_runs_of_one_name_are_headed_by_their_folders(tmp_path):
    folders = [write_run(tmp_path / place / "same", training_lines(2)) for place in ("a", "b")]
    assert _Page(_write(folders)).rows[0] == ["", *map(str, folders)]
