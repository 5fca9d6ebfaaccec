"""Records of the CPU comparisons: consistency with the tables in docs/glue.md."""

import json
import re
import statistics
from pathlib import Path

import pytest
import zstandard

from mosaicbert.config.load import load_recipe
from mosaicbert.config.pareto import ParetoRecipe
from mosaicbert.pareto.compare import compare

_ROOT = Path(__file__).parents[2]
_RESULTS = _ROOT / "docs" / "results"
_PAGE = (_ROOT / "docs" / "glue.md").read_text()
_FIRST_TASKS = ("cola", "sst2", "mrpc", "stsb", "rte")


def _record(folder, name):
    return [json.loads(line) for line in (_RESULTS / folder / f"{name}.jsonl").read_text().splitlines()]


def _section(title):
    return _PAGE[_PAGE.index(f"\n## {title}") :].split("\n## ", 2)[1]


def _rows(section, first_column):
    """Return the cells of the table whose header starts with `first_column`, by row."""
    table = re.search(rf"^\| {re.escape(first_column)} \|.*\n.*\n((?:\|.*\n)+)", section, flags=re.MULTILINE)[1]
    return [[cell.strip() for cell in row.strip(" |").split("|")] for row in table.splitlines()]


def _first_run_of(architecture, minutes):
    return f"{architecture.lower()}-cpu-{'untrained' if minutes == '0' else f'{minutes}min'}"


def _value(metrics):
    return 100 * statistics.fmean(metrics.values())


def test_the_table_of_the_first_run_agrees_with_the_records():
    tokens = {line["run"]: line["tokens"] for line in _record("first-cpu-run", "pretraining")}
    losses = {line["run"]: line["eval_loss"] for line in _record("first-cpu-run", "pretraining")}
    copying = {line["run"]: line for line in _record("first-cpu-run", "copying")}
    scores = {}
    for line in _record("first-cpu-run", "scores"):
        run = Path(line["model"]).parts[1]
        scores.setdefault((run, line["task"]), {})[line["seed"]] = _value(line["metrics"])
    rows = _rows(_section("The first run"), "model")
    assert len(rows) == 8
    for architecture, minutes, *cells in rows:
        run = _first_run_of(architecture, minutes)
        copying_gain = copying[run]["loss_same_text_masked"] - copying[run]["loss_same_text"]
        means = [statistics.fmean(scores[run, task].values()) for task in _FIRST_TASKS]
        expected = [
            "0" if minutes == "0" else f"{tokens[run] / 1e6:.1f} M",
            f"{losses[run]:.2f}",
            f"{round(copying_gain, 2) + 0.0:.2f}",  # -0.0 is 0.0
            *(f"{mean:.1f}" for mean in means),
            f"{statistics.fmean(means):.1f}",
        ]
        assert cells == expected, run


def test_the_probe_table_agrees_with_the_records():
    metrics = {(line["run"], line["task"]): line["metrics"] for line in _record("first-cpu-run", "probing")}
    rows = _rows(_section("The first run"), "frozen model")
    assert len(rows) * len(_FIRST_TASKS) == len(metrics)
    for architecture, minutes, *cells in rows:
        run = _first_run_of(architecture, minutes)
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


def test_the_table_of_settings_agrees_with_the_records():
    lines = [json.loads(line) for line in (_RESULTS / "pareto-cpu-learning-rates.jsonl").read_text().splitlines()]
    expected = [
        [
            {"bert": "BERT", "mosaicbert": "MosaicBERT"}[line["architecture"]],
            str(line["hidden_size"]),
            str(line["num_attention_heads"]),
            line["optimizer"],
            f"{line['peak_lr']:g}",
            line["duration"],
            f"{line['tokens'] / 1e6:.2f} M",
            "-" if line["cpu_seconds"] is None else f"{line['cpu_seconds']:,.0f}",
            f"{line['eval_loss']:.3f}",
        ]
        for line in lines
    ]
    assert _rows(_section("A run on two cores"), "architecture") == expected


def test_the_table_of_the_simulation_agrees_with_the_record():
    lines = [json.loads(line) for line in (_RESULTS / "statistics-simulation.jsonl").read_text().splitlines()]
    names = ("coverage", "coverage_of_seeds_alone", "fraction_significant")
    expected = [
        [
            str(line["num_pretraining_seeds"]),
            f"{line['difference']:.1f}",
            *(f"{100 * line[name]:.1f}%" for name in names),
        ]
        for line in lines
    ]
    assert _rows(_section("Intervals and tests"), "pretraining seeds of each model") == expected


_GATE_RUNS = {
    "MosaicBERT": "m30-lr2.5e-3",
    "BERT": "b30-lr1e-3",
    "MosaicBERT, random weights": "mosaicbert-untrained",
    "BERT, random weights": "bert-untrained",
}


def test_the_table_of_blimp_after_30_minutes_agrees_with_the_records():
    accuracies, losses = {}, {}
    for line in _record("pareto-cpu-gate", "scores"):
        run = Path(line["run"]).name
        accuracies.setdefault(run, []).extend(line["metrics"].values())
        losses[run] = line["pretraining"]["eval_loss"]
    assert {len(values) for values in accuracies.values()} == {67}
    expected = [
        [model, f"{losses[run]:.2f}", f"{100 * statistics.fmean(accuracies[run]):.1f}"]
        for model, run in _GATE_RUNS.items()
    ]
    assert _rows(_section("A run on two cores"), "model") == expected


def test_the_differences_of_blimp_after_30_minutes_are_computed_from_the_records(console, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _restore("pareto-cpu-gate")
    recipe = load_recipe(_ROOT / "recipes" / "pareto" / "pareto-cpu.yaml", [], ParetoRecipe)
    for title, difference, p_value in _rows(_section("A run on two cores"), "difference"):
        first, second = title.split(" - ")
        second = f"{first}, random weights" if second == "random weights" else second
        test = compare(recipe, _GATE_RUNS[first], _GATE_RUNS[second], console)["blimp"].test
        low, high = test.interval
        assert difference == f"{test.difference:+.2f} [{low:+.2f}, {high:+.2f}]"
        assert p_value == ("< 0.001" if test.p_value < 0.001 else f"{test.p_value:.2g}")


def _blimp_records():
    return [line for line in _record("pareto-cpu-120min", "scores") if line["task"].startswith("blimp/")]


_LONG_RUNS = {"MosaicBERT": "mosaicbert-cpu-120min", "BERT": "bert-cpu-120min"}


def test_the_tables_of_120_minutes_agree_with_the_records():
    accuracies = {}
    for line in _blimp_records():
        phenomenon = line["task"].removeprefix("blimp/").replace("_", " ")
        accuracies.setdefault(Path(line["run"]).name, {})[phenomenon] = [*line["metrics"].values()]
    pretraining = {Path(line["run"]).name: line for line in _record("pareto-cpu-120min", "pretraining")}
    section = _section("A run on two cores")
    expected = []
    for model, run in _LONG_RUNS.items():
        line, paradigms = pretraining[run], [value for values in accuracies[run].values() for value in values]
        assert len(paradigms) == 67
        cells = [f"{line['tokens'] / 1e6:.1f} M", f"{line['cpu_seconds']:,.0f}", f"{line['eval_loss']:.2f}"]
        expected.append(
            [model, *cells, f"{line['eval_bits_per_byte']:.2f}", f"{100 * statistics.fmean(paradigms):.1f}"]
        )
    assert _rows(section, "model after 120 minutes") == expected
    assert _rows(section, "phenomenon") == [
        [name, *(f"{100 * statistics.fmean(accuracies[run][name]):.1f}" for run in _LONG_RUNS.values())]
        for name in sorted(accuracies["bert-cpu-120min"])
    ]


def test_the_difference_of_blimp_after_120_minutes_is_computed_from_the_records(console, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _restore("pareto-cpu-120min")
    recipe = load_recipe(_ROOT / "recipes" / "pareto" / "pareto-cpu.yaml", [], ParetoRecipe)
    test = compare(recipe, *_LONG_RUNS.values(), console)["blimp"].test
    low, high = test.interval
    assert f"The difference in BLiMP is {test.difference:+.2f} points [{low:+.2f}, {high:+.2f}]" in _PAGE


_PRIMARY = ("mnli", "qqp", "qnli", "sst2")


def test_the_table_of_the_protocol_agrees_with_the_records():
    names = {run: model for model, run in _LONG_RUNS.items()} | {
        "mosaicbert-cpu-untrained": "MosaicBERT, random weights"
    }
    rows = {}
    for line in _record("pareto-cpu-120min", "tuning"):
        key = (names[line["run"]], f"{line['train_examples']:,}", f"{line['dropout']:g}", f"{line['peak_lr']:g}")
        value = line["metrics"].get("accuracy_matched", line["metrics"].get("accuracy"))
        rows.setdefault(key, {})[line["task"]] = f"{100 * value:.1f}"
    expected = [[*key, scores["mnli"], scores.get("sst2", "-")] for key, scores in rows.items()]
    assert _rows(_section("A run on two cores"), "model to tune") == expected


def test_the_table_of_glue_after_120_minutes_agrees_with_the_records():
    scores = {}
    for line in _record("pareto-cpu-120min", "scores"):
        if line["task"] in _PRIMARY:
            metrics = line["metrics"]
            value = 100 * metrics["accuracy_matched"] if line["task"] == "mnli" else _value(metrics)
            scores.setdefault(Path(line["run"]).name, {}).setdefault(line["task"], []).append(value)
    runs = [*_LONG_RUNS.items(), ("MosaicBERT, random weights", "mosaicbert-cpu-untrained")]
    expected = [
        [
            model,
            str(len(scores[run]["mnli"])),
            *(f"{statistics.fmean(scores[run][task]):.1f}" for task in _PRIMARY),
            f"{statistics.fmean(statistics.fmean(scores[run][task]) for task in _PRIMARY):.1f}",
        ]
        for model, run in runs
    ]
    assert _rows(_section("A run on two cores"), "model with GLUE") == expected


def test_the_difference_of_glue_after_120_minutes_is_computed_from_the_records(console, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _restore("pareto-cpu-120min")
    recipe = load_recipe(_ROOT / "recipes" / "pareto" / "pareto-cpu.yaml", [], ParetoRecipe)
    test = compare(recipe, *_LONG_RUNS.values(), console)["mean"].test
    low, high = test.interval
    assert f"The difference of the means is {test.difference:+.2f} points [{low:+.2f}, {high:+.2f}]" in _PAGE


def _restore(folder):
    """Write the records of runs to folders of their names in the current folder."""
    compressed = (_RESULTS / folder / "predictions.jsonl.zst").read_bytes()
    predictions = zstandard.ZstdDecompressor(max_window_size=2**27).decompress(compressed).decode()
    scores = (_RESULTS / folder / "scores.jsonl").read_text()
    for name, content in (("scores", scores), ("predictions", predictions)):
        for line in map(json.loads, content.splitlines()):
            path = Path(Path(line.pop("run")).name)
            path.mkdir(exist_ok=True)
            with (path / f"{name}.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")


def test_the_table_of_the_baselines_agrees_with_the_records():
    scores = {}
    for line in _record("glue-baselines", "scores"):
        metrics = line["metrics"]
        value = 100 * metrics["accuracy_matched"] if line["task"] == "mnli" else _value(metrics)
        scores.setdefault(line["run"], {})[line["task"]] = value
    primary, others = ("mnli", "qqp", "qnli", "sst2"), ("cola", "mrpc", "rte", "stsb")
    expected = [
        [
            run.replace("-", " "),
            *(f"{values[task]:.1f}" for task in primary),
            f"{statistics.fmean(values[task] for task in primary):.1f}",
            *(f"{values[task]:.1f}" for task in others),
        ]
        for run, values in scores.items()
    ]
    assert _rows(_section("A run on two cores"), "classifier") == expected
