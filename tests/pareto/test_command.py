import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from mosaicbert.config import ConfigError
from mosaicbert.config.glue import TASKS
from mosaicbert.config.pareto import ParetoRecipe, SeriesConfig
from mosaicbert.pareto.command import pareto
from mosaicbert.pareto.plots import draw_pareto
from mosaicbert.pareto.points import Baseline
from tests.pareto.scored import (
    FIVE_TASKS,
    make_blimp,
    make_predicted,
    make_pretraining,
    make_score,
    make_scores,
    pareto_recipe,
    write_scores,
)


def _records(recipe: ParetoRecipe) -> list[dict]:
    return [json.loads(text) for text in (recipe.run_folder / "pareto.jsonl").read_text().splitlines()]


def test_each_point_has_a_record_with_its_cost_and_scores(two_runs, console):
    figure_path = pareto(two_runs, console)
    assert figure_path == Path("runs/figure/pareto.png")
    assert figure_path.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in figure_path.parent.iterdir()) == ["pareto.jsonl", "pareto.md", "pareto.png"]
    first, second, third = _records(two_runs)
    assert (first["series"], first["runs"], first["device"], first["devices"]) == ("Ours", ["runs/a"], "H200", 2)
    assert (first["hours"], first["dollars"]) == (1.0, 6.0)
    (cost,) = first["pretraining"]
    assert (cost["steps"], cost["tokens"], cost["flops"]) == (100, 100_000, 1e14)
    assert (third["hours"], third["dollars"]) == (10.0, None)
    glue = first["glue"]
    assert glue["ci_low"] < glue["value"] < glue["ci_high"]
    assert (glue["by_pretraining_seed"], glue["example_variance"]) == ([glue["value"]], None)
    assert glue["value"] == pytest.approx(sum(task["mean"] for task in first["tasks"].values()) / 5)
    assert (first["loss"], first["blimp"]) == (None, None)
    mrpc = first["tasks"]["mrpc"]
    assert (mrpc["metrics"], mrpc["num_scores"], mrpc["initialized_from"]) == (["accuracy", "f1"], 5, "mnli")
    assert (mrpc["protocol"], mrpc["is_partial"]) == ("mrpc-paper", False)
    assert [record["on_frontier_hours"] for record in (first, second, third)] == [True, True, False]
    assert [record["on_frontier_dollars"] for record in (first, second, third)] == [True, True, None]


def test_names_and_numbers_are_not_truncated_in_80_columns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = "runs/mosaicbert-of-a-long-name"
    write_scores(Path(run), make_scores(123_456, 1e7, 70.0))
    series = {"MosaicBERT": SeriesConfig(runs=[run], dollars_per_device_hour=3.0)}
    console = Console(record=True, width=80)
    pareto(pareto_recipe(Path("runs"), series), console)
    printed = console.export_text()
    (row,) = [json.loads(text) for text in Path("runs/figure/pareto.jsonl").read_text().splitlines()]
    assert f" MosaicBERT  {run}@123456 " in printed
    glue = row["glue"]
    assert f"{glue['value']:.2f} [{glue['ci_low']:.2f}, {glue['ci_high']:.2f}]" in printed
    assert f"{row['hours']:,.0f}" in printed and f"{row['dollars']:,.0f}" in printed


def _with_untrained(recipe: ParetoRecipe, run: str) -> ParetoRecipe:
    series = recipe.pareto.series | {"Theirs": replace(recipe.pareto.series["Theirs"], untrained=run)}
    return replace(recipe, pareto=replace(recipe.pareto, series=series))


def test_an_untrained_baseline_is_in_the_tables_but_not_on_the_frontiers(two_runs, console, monkeypatch):
    run = write_scores(Path("runs/none"), make_scores(1, 1.0, 90.0, tasks=FIVE_TASKS[1:]))
    recipe, drawn = _with_untrained(two_runs, run), {}
    monkeypatch.setattr(
        "mosaicbert.pareto.command.draw_pareto",
        lambda *points, **arguments: drawn.update(arguments) or draw_pareto(*points, **arguments),
    )
    pareto(recipe, console)
    *trained, untrained = _records(recipe)
    assert (untrained["series"], untrained["runs"], untrained["pretraining"][0]["steps"]) == ("Theirs", [run], 1)
    assert untrained["glue"]["value"] == pytest.approx(90.0, abs=1.0)
    assert drawn["baselines"] == [Baseline(series="Theirs", glue=untrained["glue"]["value"])]
    assert untrained["on_frontier_hours"] is untrained["on_frontier_dollars"] is None
    assert [record["is_untrained"] for record in (*trained, untrained)] == [False, False, False, True]
    rows = [row.split(" | ") for row in (recipe.run_folder / "pareto.md").read_text().splitlines() if row[:2] == "| "]
    assert ["| 4", "Theirs, random weights", "runs/none@1 |"] in rows
    assert [row[-1] for row in rows if row[0] == "| 4" and len(row) == 7] == ["- |"]
    # The baseline has the highest score and the lowest cost. It limits the averaged tasks, but not the frontier.
    assert [record["on_frontier_hours"] for record in trained] == [True, True, False]
    assert list(trained[0]["tasks"]) == [task for task in TASKS if task in FIVE_TASKS[1:]]
    assert "Skipped: CoLA (no score of runs/none@1)." in console.export_text()


def test_an_untrained_baseline_of_several_steps_or_without_steps_raises_an_error(two_runs, console):
    run = write_scores(Path("runs/some"), make_scores(2, 1.0, 90.0, tasks=FIVE_TASKS))
    with pytest.raises(ConfigError, match=r"Theirs.untrained` must be a scored run of one step, got runs/some@2"):
        pareto(_with_untrained(two_runs, run), console)
    run = write_scores(Path("runs/other"), [make_score("cola", 50.0, step=None, pretraining=None)])
    with pytest.raises(ConfigError, match=r"untrained` must be a scored run of one step, got runs/other"):
        pareto(_with_untrained(two_runs, run), console)


def test_the_tables_fit_100_columns_and_have_points_metrics_and_the_number_of_tasks(two_runs):
    console = Console(record=True, width=100)
    pareto(replace(two_runs, pareto=replace(two_runs.pareto, reference=True)), console)
    text = console.export_text()
    tables = text[: text.index("Skipped")]
    assert max(map(len, tables.splitlines())) <= 100
    assert "…" not in tables
    for word in ("runs/a@100", "runs/[b]@500", "Mean of 5 tasks", "Tokens", "FLOPs", "Matthews", "acc/F1", "Spearman"):
        assert word in tables
    assert "Skipped: QNLI (no score of runs/a@100, runs/a@900)." in text
    assert "Skipped: QQP, MNLI (no score)." in text
    assert "Published and other points are not comparable" in text
    assert "Series without a price: Theirs." in text


def test_all_eight_tasks_fit_100_columns(tmp_path):
    run = write_scores(tmp_path / "a", make_scores(10, 60.0, 80.0))
    console = Console(record=True, width=100)
    pareto(pareto_recipe(tmp_path, {"a": SeriesConfig(runs=[run])}), console)
    tables = console.export_text().partition("GLUE (0 to 100):")[0]
    assert "…" not in tables
    assert max(map(len, tables.splitlines())) <= 100
    assert all(task.title in tables for task in TASKS.values())


def test_the_markdown_page_has_the_printed_tables_and_remarks(two_runs):
    console = Console(record=True, width=100)
    pareto(two_runs, console)
    text = (two_runs.run_folder / "pareto.md").read_text()
    assert text.startswith("# figure: mean of 5 GLUE tasks\n")
    rows = [row.strip("| ").split(" | ") for row in text.splitlines() if row.startswith("|")]
    assert [len(row) for row in rows] == [3] * 5 + [7] * 5 + [6] * 5
    assert rows[2] == ["1", "Ours", "runs/a@100"]
    assert [row[-1] for row in rows[7:10]] == ["h $", "h $", "-"]
    for remark in text.split("\n- ")[1:]:
        assert remark.strip() in console.export_text(clear=False)


def test_equal_scores_give_equal_files(two_runs, console):
    folder = two_runs.run_folder
    pareto(two_runs, console)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    pareto(two_runs, console)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_tasks_with_one_seed_are_listed(tmp_path, console):
    run = write_scores(tmp_path / "a", make_scores(10, 60.0, 80.0))
    pareto(pareto_recipe(tmp_path, {"a": SeriesConfig(runs=[run])}), console)
    remark = "Tasks with a single seed, whose variance over seeds is not in the intervals: QQP, MNLI, QNLI."
    assert remark in console.export_text()


def test_there_are_no_intervals_if_each_task_has_one_seed(tmp_path, console):
    run = write_scores(tmp_path / "a", [make_score("cola", 50.0), make_score("rte", 60.0)])
    recipe = pareto_recipe(tmp_path, {"a": SeriesConfig(runs=[run])})
    pareto(recipe, console)
    assert "Intervals: none, because each task has a single seed and no predictions." in console.export_text()
    (point,) = _records(recipe)
    assert (point["glue"]["ci_low"], point["glue"]["ci_high"], point["tasks"]["rte"]["std"]) == (None, None, None)


def test_partial_data_is_marked_in_all_outputs(tmp_path, console):
    run = write_scores(tmp_path / "a", [make_score("cola", 50.0, is_partial=True), make_score("rte", 60.0)])
    recipe = pareto_recipe(tmp_path, {"a": SeriesConfig(runs=[run])}, tasks=["cola", "rte"])
    pareto(recipe, console)
    assert "partial data" in console.export_text()
    assert "CoLA Matthews (partial)" in (recipe.run_folder / "pareto.md").read_text()
    assert [task["is_partial"] for task in _records(recipe)[0]["tasks"].values()] == [True, False]


def test_checkpoints_of_unknown_cost_are_listed_and_a_figure_without_points_raises_an_error(two_runs, console):
    run = write_scores(Path("runs/gone"), [make_score("cola", 50.0, pretraining=None)])
    pareto(pareto_recipe(Path("new"), two_runs.pareto.series | {"c": SeriesConfig(runs=[run])}), console)
    assert "Skipped: runs/gone@100 (deleted before it was scored" in console.export_text()
    with pytest.raises(ConfigError, match="must have a scored checkpoint of known cost, got none"):
        pareto(pareto_recipe(Path("new"), {"c": SeriesConfig(runs=[run])}), console)


def test_outdated_scores_unequal_seeds_and_different_devices_are_reported(two_runs, console):
    write_scores(Path("runs/a"), [make_score("cola", 90.0, step=900, pretraining=make_pretraining(900, 5 * 3600.0))])
    pretraining = replace(make_pretraining(300, 3600.0), device="B200", num_devices=4)
    scores = [replace(score, pretraining=pretraining) for score in make_scores(300, 3600.0, 60.0, tasks=FIVE_TASKS)]
    run = write_scores(Path("runs/elsewhere"), scores)
    series = two_runs.pareto.series | {"Elsewhere": SeriesConfig(runs=[run], dollars_per_device_hour=1.0)}
    recipe = pareto_recipe(Path("new"), series, tasks=["cola"])
    pareto(recipe, console)
    text = console.export_text()
    assert "runs/a@900: 22 score(s) of earlier weights are not used." in text
    assert "Points have different seeds of CoLA." in text
    assert "Hours of different devices (H200; B200) are not comparable." in text
    assert [_records(recipe)[-1][key] for key in ("device", "devices", "dollars")] == ["B200", 4, 4.0]


def _pretrained(minutes: float, **changes):
    return {"step": 100, "pretraining": make_pretraining(100, 60 * minutes, **changes)}


def _repeated_runs(console, tmp_path, **changes) -> ParetoRecipe:
    """Create the figure of one run with two repeats, and of another run."""
    runs = []
    for index, (minutes, loss, num_correct) in enumerate(((30, 4.0, 60), (32, 4.2, 64), (34, 4.4, 65), (90, 3.0, 80))):
        cost = _pretrained(minutes, eval_loss=loss, seed=17 + index % 3)
        pairs = [
            make_predicted(task, num_correct + seed, seed=seed, **cost) for task in ("rte", "sst2") for seed in (0, 1)
        ]
        runs.append(write_scores(tmp_path / str(index), [*pairs, make_blimp({"a": "1101", "b": "10"}, **cost)]))
    series = SeriesConfig(runs=[runs[0], runs[3]], repeats={runs[0]: runs[1:3]}, dollars_per_device_hour=2.0)
    recipe = pareto_recipe(tmp_path, {"a": series}, **changes)
    pareto(recipe, console)
    return recipe


def test_repeats_are_averaged_to_one_point(tmp_path, console):
    repeated, single = _records(_repeated_runs(console, tmp_path))
    assert repeated["runs"] == [str(tmp_path / str(index)) for index in range(3)]
    assert (repeated["hours"], repeated["dollars"]) == pytest.approx((32 / 60, 2 * 32 / 60))
    assert [cost["seed"] for cost in repeated["pretraining"]] == [17, 18, 19]
    assert repeated["loss"]["value"] == pytest.approx(4.2)
    assert repeated["loss"]["ci_low"] < 4.2 < repeated["loss"]["ci_high"]
    assert repeated["glue"]["by_pretraining_seed"] == pytest.approx([60.5, 64.5, 65.5])
    assert repeated["glue"]["example_variance"] > 0
    assert repeated["tasks"]["rte"]["num_scores"] == 6
    assert repeated["blimp"]["value"] == single["blimp"]["value"] == pytest.approx(62.5)
    assert (single["loss"]["ci_low"], single["loss"]["seed_variance"]) == (None, None)
    text = console.export_text()
    assert "0@100 and 2 more" in text
    assert (
        "Intervals: 95% t-intervals; variance of fine-tuning seeds, and of validation examples, and of pretraining "
        "seeds where a point averages 3 runs."
    ) in text
    assert "BLiMP: accuracy on minimal pairs without fine-tuning; chance is 50." in text
    assert "single seed" not in text


@pytest.mark.parametrize("num_checkpoints", [0, 2])
def test_repeats_of_other_than_one_checkpoint_raise_an_error(tmp_path, console, num_checkpoints):
    run = write_scores(tmp_path / "run", [make_score("rte", 60.0)])
    repeat = write_scores(
        tmp_path / "repeat",
        [
            make_score("rte", 60.0, step=step, pretraining=make_pretraining(step, 9.0))
            for step in range(1, num_checkpoints + 1)
        ]
        or [make_score("rte", 60.0, pretraining=None)],
    )
    recipe = pareto_recipe(tmp_path, {"a": SeriesConfig(runs=[run], repeats={run: [repeat]})})
    with pytest.raises(ConfigError, match=r"a.repeats` must have runs with one scored checkpoint each, got .*run@100"):
        pareto(recipe, console)


def test_the_selected_metrics_are_in_all_outputs(tmp_path, console):
    scores = [
        make_score("mnli", 0.0, metrics={"accuracy_matched": 0.7, "accuracy_mismatched": 0.5}),
        make_score("mrpc", 0.0, metrics={"accuracy": 0.6, "f1": 0.8}),
    ]
    run = write_scores(tmp_path / "a", scores)
    metrics = {"mnli": ["accuracy_matched"], "mrpc": ["f1"]}
    recipe = pareto_recipe(tmp_path, {"a": SeriesConfig(runs=[run])}, metrics=metrics)
    pareto(recipe, console)
    (record,) = _records(recipe)
    assert {task: item["metrics"] for task, item in record["tasks"].items()} == metrics
    assert [record["tasks"][task]["mean"] for task in ("mrpc", "mnli")] == pytest.approx([80.0, 70.0])
    assert "GLUE (0 to 100): mean of MRPC F1, MNLI acc m." in console.export_text()
    page = (recipe.run_folder / "pareto.md").read_text()
    assert "MRPC F1 | MNLI acc m |" in page


def _with_baseline(recipe: ParetoRecipe, scores) -> ParetoRecipe:
    folder = write_scores(Path("runs/majority"), scores)
    return replace(recipe, pareto=replace(recipe.pareto, baselines={"majority answer": folder}))


def test_a_labeled_baseline_is_plotted_and_reported_with_its_mean_score(two_runs, console, monkeypatch):
    external = {"step": None, "pretraining": None, "protocol": "majority", "model": "majority answer"}
    values = dict(zip(FIVE_TASKS, (0.0, 50.0, 75.0, 0.0, 55.0), strict=True))
    recipe = _with_baseline(two_runs, [make_score(task, value, **external) for task, value in values.items()])
    drawn = {}
    monkeypatch.setattr(
        "mosaicbert.pareto.command.draw_pareto",
        lambda *points, **arguments: drawn.update(arguments) or draw_pareto(*points, **arguments),
    )
    pareto(recipe, console)
    assert drawn["baselines"] == [Baseline(series=None, label="majority answer", glue=pytest.approx(36.0))]
    assert "majority answer: 36.00 (mean of 5 GLUE tasks)." in console.export_text()
    assert len(_records(recipe)) == 3


def test_a_labeled_baseline_without_an_averaged_task_raises_an_error(two_runs, console):
    recipe = _with_baseline(two_runs, [make_score("cola", 0.0, step=None, pretraining=None)])
    with pytest.raises(ConfigError, match=r"baselines.majority answer` must have a score of every .* got none of sst2"):
        pareto(recipe, console)


def test_runs_with_blimp_scores_only_have_no_table_of_tasks(tmp_path, console):
    runs = [
        write_scores(tmp_path / name, [make_blimp({"p": digits}, is_partial=True, **_pretrained(minutes))])
        for name, minutes, digits in (("a", 10, "1101"), ("b", 30, "1111"))
    ]
    recipe = pareto_recipe(tmp_path, {"a": SeriesConfig(runs=runs)})
    pareto(recipe, console)
    assert [(record["blimp"]["value"], record["glue"], record["tasks"]) for record in _records(recipe)] == [
        (75.0, None, {}),
        (100.0, None, {}),
    ]
    text = console.export_text()
    assert "BLiMP (partial data): accuracy on minimal pairs" in text
    assert "Frontier" not in text and "Task columns" not in text
    assert (recipe.run_folder / "pareto.md").read_text().startswith("# figure: BLiMP\n")


def test_a_figure_without_a_measured_point_raises_an_error(tmp_path, console):
    cost = {"step": 1, "pretraining": make_pretraining(1, 1.0)}
    scores = {
        "glue-untrained": make_score("rte", 50.0, **cost),
        "blimp-untrained": make_blimp({"a": "10", "b": "11"}, **cost),
        "first": make_blimp({"a": "10"}),
        "second": make_blimp({"b": "11"}),
    }
    folders = {name: write_scores(tmp_path / name, [score]) for name, score in scores.items()}
    series = {
        "a": SeriesConfig(runs=[folders["first"]], untrained=folders["glue-untrained"]),
        "b": SeriesConfig(runs=[folders["second"]], untrained=folders["blimp-untrained"]),
    }
    with pytest.raises(ConfigError, match="must have a point with a validation loss, complete BLiMP scores or GLUE"):
        pareto(pareto_recipe(tmp_path, series), console)


def test_an_invalid_run_leaves_no_files(two_runs, console):
    recipe = pareto_recipe(Path("new"), two_runs.pareto.series | {"c": SeriesConfig(runs=["runs/missing"])})
    with pytest.raises(ConfigError, match="runs/missing"):
        pareto(recipe, console)
    assert not Path("new").exists()


def test_an_unwritable_folder_raises_an_error_of_one_line(two_runs, console):
    Path("file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written") as caught:
        pareto(pareto_recipe(Path("file"), two_runs.pareto.series), console)
    assert "\n" not in str(caught.value)
