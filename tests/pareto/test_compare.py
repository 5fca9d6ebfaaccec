from pathlib import Path

import pytest

from mosaicbert.config import ConfigError
from mosaicbert.config.glue import SEEDS, TASKS
from mosaicbert.config.pareto import SeriesConfig
from mosaicbert.pareto.compare import compare
from tests.pareto.scored import FIVE_TASKS, make_pretraining, make_score, make_scores, pareto_recipe, write_scores


def test_a_better_run_is_reported_in_either_order(two_runs, console):
    test = compare(two_runs, "runs/a", "runs/[b]", console)
    assert test.difference == pytest.approx(5.0, abs=0.5)
    assert test.interval[0] > 4.0
    assert test.num_pairs == sum(TASKS[task].protocol.num_seeds for task in FIVE_TASKS)
    assert test.p_value < 0.001
    assert "A is better than B by" in console.export_text()
    compare(two_runs, "runs/[b]", "runs/a", console)
    text = console.export_text()
    assert "B is better than A by" in text
    assert "does not apply to their recipes with other pretraining seeds" in text
    assert "MRPC acc/F1" in text
    assert "whose variance is not in the intervals and p-values: MRPC, STS-B, RTE" in text


def test_the_newest_scored_checkpoint_is_the_default(two_runs, console):
    compare(two_runs, "runs/a", "runs/a@100", console)
    assert console.export_text().startswith("A: runs/a@900\nB: runs/a@100\n")


def _seeds(task: str, values, **changes):
    return [make_score(task, value, seed=seed, **changes) for value, seed in zip(values, SEEDS, strict=False)]


def test_too_few_seeds_are_reported(tmp_path, console):
    first = write_scores(tmp_path / "a", [*_seeds("rte", [80.0, 81.0]), make_score("cola", 90.0)])
    second = write_scores(tmp_path / "b", [*_seeds("rte", [50.0, 51.5]), make_score("cola", 10.0)])
    test = compare(pareto_recipe(tmp_path, {"a": SeriesConfig(runs=[first])}), first, second, console)
    assert (test.p_value, test.interval) == (None, None)
    text = console.export_text()
    assert "Too few seeds for a test: 2 pair(s)" in text
    assert "Tasks with a single pair, which are not tested: CoLA." in text


def test_opposite_differences_of_two_tasks_do_not_count_as_variance(tmp_path, console):
    first = write_scores(tmp_path / "a", [*_seeds("rte", [80, 81, 80]), *_seeds("cola", [40, 41, 41])])
    second = write_scores(tmp_path / "b", [*_seeds("rte", [70, 70, 70]), *_seeds("cola", [44, 44, 45])])
    test = compare(pareto_recipe(tmp_path, {"a": SeriesConfig(runs=[first])}), first, second, console)
    assert test.interval[0] > 0
    assert "A is better than B by 3.33 points" in console.export_text()


def test_an_insignificant_difference_is_reported_as_such(tmp_path, console):
    first = write_scores(tmp_path / "a", [*_seeds("rte", [60, 62, 61, 64, 60]), *_seeds("cola", [50, 51, 52])])
    second = write_scores(tmp_path / "b", [*_seeds("rte", [61, 61, 62, 60, 61]), *_seeds("cola", [51, 50, 52])])
    test = compare(pareto_recipe(tmp_path, {"a": SeriesConfig(runs=[first])}), first, second, console)
    assert test.p_value > 0.05
    assert "No significant difference" in console.export_text()


def test_a_single_pair_gives_no_test(tmp_path, console):
    first, second = (
        write_scores(tmp_path / name, [make_score("rte", value)]) for name, value in (("a", 50.0), ("b", 60.0))
    )
    compare(pareto_recipe(tmp_path, {"a": SeriesConfig(runs=[first])}), first, second, console)
    assert "Too few seeds for a test" in console.export_text()


def test_only_scores_of_common_seeds_are_paired_and_the_others_are_reported(tmp_path, console):
    first = write_scores(tmp_path / "a", [*_seeds("rte", [60, 62, 61, 99]), make_score("cola", 90.0, seed=1)])
    second = write_scores(tmp_path / "b", [*_seeds("rte", [50, 50, 50]), make_score("cola", 10.0, seed=2)])
    test = compare(pareto_recipe(tmp_path, {"a": SeriesConfig(runs=[first])}), first, second, console)
    assert (test.num_pairs, test.difference) == (3, pytest.approx(11.0))
    text = console.export_text()
    assert "RTE: 1 score(s) are not used" in text
    assert "CoLA: 2 score(s) are not used" in text


def test_tasks_with_one_pair_are_printed_but_not_tested(tmp_path, console):
    folders = [
        write_scores(tmp_path / name, make_scores(10, 60.0, value)) for name, value in (("a", 80.0), ("b", 81.0))
    ]
    test = compare(pareto_recipe(tmp_path, {"a": SeriesConfig(runs=folders)}), *folders, console)
    assert test.num_pairs == sum(TASKS[task].protocol.num_seeds for task in FIVE_TASKS)
    text = console.export_text()
    assert "Tasks with a single pair, which are not tested: QQP, MNLI, QNLI." in text
    assert "Mean of the 5 tested task(s)" in text
    assert "B is better than A on 5 of 8 tasks by" in text


def test_an_opposite_total_difference_is_reported(tmp_path, console):
    first = write_scores(tmp_path / "a", [*_seeds("rte", [61.0, 61.2, 61.1]), make_score("qqp", 60.0)])
    second = write_scores(tmp_path / "b", [*_seeds("rte", [60, 60, 60]), make_score("qqp", 90.0)])
    compare(pareto_recipe(tmp_path, {"a": SeriesConfig(runs=[first])}), first, second, console)
    text = console.export_text()
    assert "A is better than B on 1 of 2 tasks by 1.10 points (p = 0.0027)." in text
    assert "Including untested tasks, B is better by 14.45 points (mean of 2 GLUE tasks)." in text


def test_an_external_model_can_be_compared(tmp_path, console):
    run = write_scores(tmp_path / "a", _seeds("rte", [60, 62, 61]))
    bert = write_scores(tmp_path / "bert", _seeds("rte", [65, 64, 66], step=None, pretraining=None))
    test = compare(pareto_recipe(tmp_path, {"a": SeriesConfig(runs=[run])}), run, bert, console)
    assert test.difference == pytest.approx(-4.0)


@pytest.mark.parametrize(
    "first, second, message",
    [
        ("runs/a@900", "runs/a", "must be two different checkpoints, got runs/a@900 twice"),
        ("./runs/a/", "runs/a", "must be two different checkpoints, got ./runs/a/@900 twice"),
        ("runs/a@7", "runs/a", r"must be a scored step of runs/a \(100, 900\), got 7"),
        ("runs/a", "runs/missing", "runs/missing"),
        ("runs/a", "runs/other-seeds", "must have a common seed of a task"),
    ],
    ids=["same", "same-normalized-path", "no-step", "no-run", "no-pair"],
)
def test_an_impossible_comparison_raises_an_error(two_runs, console, first, second, message):
    write_scores(Path("runs/other-seeds"), [make_score("rte", 50.0, seed=1, pretraining=make_pretraining(100, 5.0))])
    with pytest.raises(ConfigError, match=message):
        compare(two_runs, first, second, console)
