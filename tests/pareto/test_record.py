"""Records of the CPU comparison: consistency of points, scores and the tables in docs/glue.md."""

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


def _rows(first_column):
    """Return the cells of the table whose header starts with `first_column`, by row."""
    table = re.search(rf"^ *\| {re.escape(first_column)} \|.*\n.*\n((?: *\|.*\n)+)", _RUN, flags=re.MULTILINE)[1]
    return [[cell.strip() for cell in row.strip(" |").split("|")] for row in table.splitlines()]


def test_the_recorded_points_are_computed_from_the_recorded_scores(console, tmp_path, monkeypatch):
    recipe = load_recipe(_ROOT / "recipes" / "pareto" / "pareto-cpu.yaml", [], ParetoRecipe)
    monkeypatch.chdir(tmp_path)
    for score in _record("pareto-cpu-scores"):
        folder = Path(*Path(score["model"]).parts[:2])
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "scores.jsonl").open("a") as file:
            file.write(json.dumps(score) + "\n")
    pareto(recipe, console)
    # The last digits depend on the versions of the libraries.
    computed, recorded = (
        [json.loads(line, parse_float=lambda text: f"{float(text):.9g}") for line in path.read_text().splitlines()]
        for path in (recipe.run_folder / "pareto.jsonl", _RESULTS / "pareto-cpu.jsonl")
    )
    assert computed == recorded


def test_the_results_table_agrees_with_the_records():
    points = {Path(point["run"]).name: point for point in _record("pareto-cpu")}
    losses = {line["run"]: line["eval_loss"] for line in _record("pareto-cpu-pretraining")}
    copying = {line["run"]: line for line in _record("pareto-cpu-copying")}
    rows = _rows("model")
    assert {_run_of(*row[:2]) for row in rows} == set(points)
    for architecture, minutes, *cells in rows:
        run = _run_of(architecture, minutes)
        point = points[run]
        copying_gain = copying[run]["loss_same_text_masked"] - copying[run]["loss_same_text"]
        expected = [
            "0" if minutes == "0" else f"{point['tokens'] / 1e6:.1f} M",
            f"{losses[run]:.2f}",
            f"{round(copying_gain, 2) + 0.0:.2f}",  # -0.0 is 0.0
            *(f"{point['tasks'][task]['mean']:.1f}" for task in _TASKS),
            f"{point['average']:.1f} [{point['ci_low']:.1f}, {point['ci_high']:.1f}]",
        ]
        assert cells == expected, run


def test_the_probe_table_agrees_with_the_records():
    metrics = {(line["run"], line["task"]): line["metrics"] for line in _record("pareto-cpu-probing")}
    rows = _rows("frozen model")
    assert len(rows) * len(_TASKS) == len(metrics)
    for architecture, minutes, *cells in rows:
        run = _run_of(architecture, minutes)
        assert metrics[run, "cola"]["matthews_correlation"] == pytest.approx(0.0, abs=5e-4)
        mrpc, stsb = metrics[run, "mrpc"], metrics[run, "stsb"]
        values = [
            metrics[run, "sst2"]["accuracy"],
            (mrpc["accuracy"] + mrpc["f1"]) / 2,
            stsb["spearman"],
            stsb["cosine_spearman"],
            metrics[run, "rte"]["accuracy"],
        ]
        assert cells == [f"{100 * value:.1f}" for value in values], run
