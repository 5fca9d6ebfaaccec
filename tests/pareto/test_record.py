"""The run on two cores: its points follow from its scores, and docs/glue.md says what the records say."""

import json
import re
from pathlib import Path

import pytest

from mosaicbert.config.load import load_recipe
from mosaicbert.config.pareto import ParetoRecipe
from mosaicbert.pareto.command import pareto

_ROOT = Path(__file__).parents[2]
_RESULTS = _ROOT / "docs" / "results"
_PAGE = (_ROOT / "docs" / "glue.md").read_text()
_RUN = _PAGE[_PAGE.index("## A run on two cores") :]
_TASKS = ("cola", "sst2", "mrpc", "stsb", "rte")


def _record(name):
    return [json.loads(line) for line in (_RESULTS / f"{name}.jsonl").read_text().splitlines()]


def _run_of(architecture, minutes):
    return f"{architecture.lower()}-cpu-{'untrained' if minutes == '0' else f'{minutes}min'}"


def _rows(head):
    """The rows of the table whose head begins so, as lists of cells."""
    table = re.search(rf"^ *\| {re.escape(head)} \|.*\n.*\n((?: *\|.*\n)+)", _RUN, flags=re.MULTILINE)[1]
    return [[cell.strip() for cell in row.strip(" |").split("|")] for row in table.splitlines()]


def test_the_points_follow_from_the_scores(console, tmp_path, monkeypatch):
    recipe = load_recipe(_ROOT / "recipes" / "pareto" / "pareto-cpu.yaml", [], ParetoRecipe)
    monkeypatch.chdir(tmp_path)
    for score in _record("pareto-cpu-scores"):
        folder = Path(*Path(score["model"]).parts[:2])
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "scores.jsonl").open("a") as file:
            file.write(json.dumps(score) + "\n")
    pareto(recipe, console)
    # Up to the last digits, which are the libraries'.
    made, recorded = (
        [json.loads(line, parse_float=lambda text: f"{float(text):.9g}") for line in path.read_text().splitlines()]
        for path in (recipe.run_folder / "pareto.jsonl", _RESULTS / "pareto-cpu.jsonl")
    )
    assert made == recorded


def test_the_table_of_the_run_says_what_the_records_say():
    points = {Path(point["run"]).name: point for point in _record("pareto-cpu")}
    losses = {line["run"]: line["eval_loss"] for line in _record("pareto-cpu-pretraining")}
    copying = {line["run"]: line for line in _record("pareto-cpu-copying")}
    rows = _rows("model")
    assert {_run_of(*row[:2]) for row in rows} == set(points)
    for architecture, minutes, *cells in rows:
        run = _run_of(architecture, minutes)
        point, looked = points[run], copying[run]
        expected = [
            "0" if minutes == "0" else f"{point['tokens'] / 1e6:.1f} M",
            f"{losses[run]:.2f}",
            f"{round(looked['loss_same_text_masked'] - looked['loss_same_text'], 2) + 0.0:.2f}",  # -0.0 is 0.0
            *(f"{point['tasks'][task]['mean']:.1f}" for task in _TASKS),
            f"{point['average']:.1f} [{point['ci_low']:.1f}, {point['ci_high']:.1f}]",
        ]
        assert cells == expected, run


def test_the_table_of_the_probe_says_what_the_record_says():
    found = {(line["run"], line["task"]): line["metrics"] for line in _record("pareto-cpu-probing")}
    rows = _rows("frozen model")
    assert len(rows) * len(_TASKS) == len(found)
    for architecture, minutes, *cells in rows:
        run = _run_of(architecture, minutes)
        assert found[run, "cola"]["matthews_correlation"] == pytest.approx(0.0, abs=5e-4)
        mrpc, stsb = found[run, "mrpc"], found[run, "stsb"]
        values = [
            found[run, "sst2"]["accuracy"],
            (mrpc["accuracy"] + mrpc["f1"]) / 2,
            stsb["spearman"],
            stsb["cosine_spearman"],
            found[run, "rte"]["accuracy"],
        ]
        assert cells == [f"{100 * value:.1f}" for value in values], run
