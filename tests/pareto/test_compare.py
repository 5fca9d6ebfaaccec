from pathlib import Path

import pytest

from mosaicbert.config import ConfigError
from mosaicbert.config.glue import SEEDS, TASKS
from mosaicbert.config.pareto import SeriesConfig
from mosaicbert.pareto.compare import compare
from tests.pareto.scored import FIVE_TASKS, make_pretraining, make_score, make_scores, pareto_recipe, write_scores


def test_a_clearly_better_run_is_called_better_whichever_comes_first(two_runs, console):
    test = compare(two_runs, "runs/a", "runs/[b]", console)
    assert test.difference == pytest.approx(5.0, abs=0.5)
    assert test.interval[0] > 4.0
    assert test.num_pairs == sum(TASKS[task].protocol.num_seeds for task in FIVE_TASKS)
    assert test.p_value < 0.001
    assert "A is better than B: by" in console.export_text()
    compare(two_runs, "runs/[b]", "runs/a", console)
    text = console.export_text()
    assert "B is better than A: by" in text
    assert "not about their recipes under other pretraining seeds" in text
    assert "MRPC acc/F1" in text
    assert "whose chance is in no interval and no p: MRPC, STS-B, RTE" in text


def test_a_run_is_its_newest_scored_checkpoint_unless_a_step_is_given(two_runs, console):
    compare(two_runs, "runs/a", "runs/a@100", console)
    assert console.export_text().startswith("A: runs/a@900\nB: runs/a@100\n")


def _seeds(task: str, values, **changes):
    return [make_score(task, value, seed=seed, **changes) for value, seed in zip(values, SEEDS, strict=False)]


def test_too_few_seeds_are_said_to_be_too_few(tmp_path, console):
    first = write_scores(tmp_path / "a", [*_seeds("rte", [80.0, 81.0]), make_score("cola", 90.0)])
    second = write_scores(tmp_path / "b", [*_seeds("rte", [50.0, 51.5]), make_score("cola", 10.0)])
    test = compare(pareto_recipe(tmp_path, {"a": SeriesConfig(runs=[first])}), first, second, console)
    assert (test.p_value, test.interval) == (None, None)
    text = console.export_text()
    assert "Too few seeds to tell" in text and "from 2 pair(s)" in text
    assert "Not tested, having a single pair: CoLA." in text


def test_a_task_that_the_second_wins_does_not_hide_one_that_the_first_wins_by_more(tmp_path, console):
    first = write_scores(tmp_path / "a", [*_seeds("rte", [80, 81, 80]), *_seeds("cola", [40, 41, 41])])
    second = write_scores(tmp_path / "b", [*_seeds("rte", [70, 70, 70]), *_seeds("cola", [44, 44, 45])])
    test = compare(pareto_recipe(tmp_path, {"a": SeriesConfig(runs=[first])}), first, second, console)
    assert test.interval[0] > 0
    assert "A is better than B: by 3.33" in console.export_text()


def test_a_difference_that_could_be_chance_is_not_called_one(tmp_path, console):
    first = write_scores(tmp_path / "a", [*_seeds("rte", [60, 62, 61, 64, 60]), *_seeds("cola", [50, 51, 52])])
    second = write_scores(tmp_path / "b", [*_seeds("rte", [61, 61, 62, 60, 61]), *_seeds("cola", [51, 50, 52])])
    test = compare(pareto_recipe(tmp_path, {"a": SeriesConfig(runs=[first])}), first, second, console)
    assert test.p_value > 0.05
    assert "No difference shown" in console.export_text()


def test_a_single_pair_can_be_compared_and_tells_nothing(tmp_path, console):
    first, second = (
        write_scores(tmp_path / name, [make_score("rte", value)]) for name, value in (("a", 50.0), ("b", 60.0))
    )
    compare(pareto_recipe(tmp_path, {"a": SeriesConfig(runs=[first])}), first, second, console)
    assert "Too few seeds to tell" in console.export_text()


def test_only_pairs_of_the_same_seed_count_and_others_are_said(tmp_path, console):
    first = write_scores(tmp_path / "a", [*_seeds("rte", [60, 62, 61, 99]), make_score("cola", 90.0, seed=1)])
    second = write_scores(tmp_path / "b", [*_seeds("rte", [50, 50, 50]), make_score("cola", 10.0, seed=2)])
    test = compare(pareto_recipe(tmp_path, {"a": SeriesConfig(runs=[first])}), first, second, console)
    assert (test.num_pairs, test.difference) == (3, pytest.approx(11.0))
    text = console.export_text()
    assert "RTE: 1 score(s) without a partner" in text
    assert "CoLA: 2 score(s) without a partner" in text


def test_tasks_with_one_pair_are_shown_and_not_tested(tmp_path, console):
    folders = [
        write_scores(tmp_path / name, make_scores(10, 60.0, value)) for name, value in (("a", 80.0), ("b", 81.0))
    ]
    test = compare(pareto_recipe(tmp_path, {"a": SeriesConfig(runs=folders)}), *folders, console)
    assert test.num_pairs == sum(TASKS[task].protocol.num_seeds for task in FIVE_TASKS)
    text = console.export_text()
    assert "Not tested, having a single pair: QQP, MNLI, QNLI." in text
    assert "of them the 5 with several pairs" in text
    assert "B is better than A on the 5 tested of 8 tasks: by" in text


def test_an_answer_that_the_untested_tasks_turn_round_says_so(tmp_path, console):
    first = write_scores(tmp_path / "a", [*_seeds("rte", [61.0, 61.2, 61.1]), make_score("qqp", 60.0)])
    second = write_scores(tmp_path / "b", [*_seeds("rte", [60, 60, 60]), make_score("qqp", 90.0)])
    compare(pareto_recipe(tmp_path, {"a": SeriesConfig(runs=[first])}), first, second, console)
    text = console.export_text()
    assert "A is better than B on the 1 tested of 2 tasks: by 1.10 (p = 0.0027)." in text
    assert "But the mean of 2 GLUE tasks, untested ones included, is 14.45 in favour of B." in text


def test_a_model_from_elsewhere_can_be_compared(tmp_path, console):
    ours = write_scores(tmp_path / "a", _seeds("rte", [60, 62, 61]))
    bert = write_scores(tmp_path / "bert", _seeds("rte", [65, 64, 66], step=None, pretraining=None))
    test = compare(pareto_recipe(tmp_path, {"a": SeriesConfig(runs=[ours])}), ours, bert, console)
    assert test.difference == pytest.approx(-4.0)


@pytest.mark.parametrize(
    "first, second, words",
    [
        ("runs/a@900", "runs/a", "both are runs/a@900"),
        ("./runs/a/", "runs/a", "both are ./runs/a/@900"),
        ("runs/a@7", "runs/a", "step 7 has not been scored; of runs/a there are 100, 900"),
        ("runs/a", "runs/nowhere", "runs/nowhere"),
        ("runs/a", "runs/other-seeds", "no seed of a task is common"),
    ],
    ids=["same", "same-otherwise-spelt", "no-step", "no-run", "no-pair"],
)
def test_a_comparison_that_cannot_be_is_refused(two_runs, console, first, second, words):
    write_scores(Path("runs/other-seeds"), [make_score("rte", 50.0, seed=1, pretraining=make_pretraining(100, 5.0))])
    with pytest.raises(ConfigError, match=words):
        compare(two_runs, first, second, console)
