from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mosaicbert.config import ConfigError
from mosaicbert.config.glue import SEEDS
from mosaicbert.config.pareto import SeriesConfig
from mosaicbert.pareto.compare import compare
from mosaicbert.scores.resampling import bootstrap_examples
from mosaicbert.scores.statistics import VarianceTerm, difference_test, seed_terms
from tests.pareto.scored import (
    FIVE_TASKS,
    make_blimp,
    make_predicted,
    make_pretraining,
    make_score,
    pareto_recipe,
    write_scores,
)


def _recipe(tmp_path: Path, **changes):
    return pareto_recipe(tmp_path, {"a": SeriesConfig(runs=["unused"])}, **changes)


def _seeds(task: str, values, **changes):
    return [make_score(task, value, seed=seed, **changes) for value, seed in zip(values, SEEDS, strict=False)]


def test_a_better_run_is_reported_in_either_order(two_runs, console):
    comparisons = compare(two_runs, "runs/a", "runs/[b]", console)
    assert list(comparisons) == [*FIVE_TASKS, "mean"]
    test = comparisons["mean"].test
    assert test.difference == pytest.approx(5.0, abs=0.5)
    assert test.interval[0] > 4.0
    assert test.p_value < 0.001
    assert "A is better than B by" in console.export_text()
    compare(two_runs, "runs/[b]", "runs/a", console)
    text = console.export_text()
    assert "B is better than A by" in text
    assert "not to their recipes with other pretraining seeds" in text
    assert "MRPC acc/F1" in text
    assert "whose variance is not in the intervals and p-values: MRPC, STS-B, RTE" in text


def test_exchanging_the_models_changes_the_signs_but_not_the_p_values(tmp_path, console):
    folders = [
        write_scores(
            tmp_path / name,
            [make_predicted("rte", count + seed, seed=seed) for seed in range(3)] + [make_blimp({"a": digits})],
        )
        for name, count, digits in (("a", 60, "110101"), ("b", 65, "011101"))
    ]
    forward, backward = (compare(_recipe(tmp_path), *pair, console) for pair in (folders, folders[::-1]))
    assert set(forward) == {"rte", "mean", "blimp"}
    for name, comparison in forward.items():
        assert comparison.test.difference == pytest.approx(-backward[name].test.difference)
        assert comparison.test.p_value == pytest.approx(backward[name].test.p_value)
        assert (comparison.first, comparison.second) == (backward[name].second, backward[name].first)


def test_the_newest_scored_checkpoint_is_the_default(two_runs, console):
    compare(two_runs, "runs/a", "runs/a@100", console)
    assert console.export_text().startswith("A: runs/a@900\nB: runs/a@100\n")


def test_fine_tuning_seeds_are_compared_by_welchs_test_without_pairing(tmp_path, console):
    values = {"rte": ([60.0, 62.0, 61.0, 64.0], [55.0, 56.0, 51.0]), "cola": ([50.0, 51.0], [47.0, 49.0, 44.0])}
    folders = [
        write_scores(tmp_path / name, [score for task in values for score in _seeds(task, values[task][index])])
        for index, name in enumerate("ab")
    ]
    comparisons = compare(_recipe(tmp_path), *folders, console)
    for task, (first, second) in values.items():
        expected = stats.ttest_ind(first, second, equal_var=False)
        test = comparisons[task].test
        assert test.p_value == pytest.approx(expected.pvalue)
        assert test.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    mean = comparisons["mean"]
    assert mean.first == pytest.approx(np.mean([np.mean(first) for first, _ in values.values()]))
    terms = [term for index in range(2) for term in seed_terms([values["cola"][index], values["rte"][index]])]
    assert mean.test.p_value == pytest.approx(difference_test(mean.test.difference, terms).p_value)


def test_pretraining_seeds_are_compared_by_welchs_test_of_their_means(tmp_path, console):
    means = ([60.0, 63.0, 61.0], [55.0, 58.0])
    names = [
        ",".join(
            write_scores(
                tmp_path / f"{side}{index}",
                _seeds("rte", [mean - 1, mean + 1], pretraining=make_pretraining(100, 9.0, eval_loss=mean / 10)),
            )
            for index, mean in enumerate(means[side])
        )
        for side in range(2)
    ]
    comparisons = compare(_recipe(tmp_path), *names, console)
    for name, unit in (("rte", 1.0), ("mean", 1.0), ("loss", 0.1)):
        expected = stats.ttest_ind(*(unit * np.array(side) for side in means), equal_var=False)
        assert comparisons[name].test.p_value == pytest.approx(expected.pvalue)
    text = console.export_text()
    assert "A: " + ", ".join(f"{name}@100" for name in names[0].split(",")) in text.replace("\n", "")
    assert "The results apply to the two recipes." in text
    assert "Test: Welch's t-test of the pretraining seeds" in text


def test_a_single_pretraining_seed_of_one_model_is_compared_by_its_fine_tuning_seeds(tmp_path, console):
    several = ",".join(
        write_scores(tmp_path / f"a{mean}", _seeds("rte", [mean - 1.0, mean + 1.0])) for mean in (60, 63)
    )
    single = write_scores(tmp_path / "b", _seeds("rte", [50.0, 51.0, 53.0]))
    test = compare(_recipe(tmp_path), several, single, console)["rte"].test
    expected = stats.ttest_ind([60.0, 63.0], [50.0, 51.0, 53.0], equal_var=False)
    assert test.p_value == pytest.approx(expected.pvalue)
    assert "not to their recipes with other pretraining seeds" in console.export_text()


def test_the_variance_of_the_common_examples_is_added(tmp_path, console):
    pairs = [[make_predicted("rte", count + seed, seed=seed) for seed in range(3)] for count in (60, 64)]
    folders = [write_scores(tmp_path / name, pairs[index]) for index, name in enumerate("ab")]
    comparisons = compare(_recipe(tmp_path), *folders, console)
    scores = [[100 * score.metrics["accuracy"] for score, _ in model] for model in pairs]
    examples = bootstrap_examples(["accuracy"], *([record for _, record in model] for model in pairs))
    terms = [examples, *seed_terms(scores[:1]), *seed_terms(scores[1:])]
    expected = difference_test(-4.0, terms)
    for name in ("rte", "mean"):
        assert comparisons[name].test.p_value == pytest.approx(expected.p_value)
        assert comparisons[name].test.interval == pytest.approx(expected.interval)


def test_the_variances_of_the_examples_of_all_tasks_are_those_of_the_mean(tmp_path, console):
    tasks = {"sst2": (80, 70), "rte": (60, 66)}  # in the order of the columns
    pairs = [[make_predicted(task, counts[side]) for task, counts in tasks.items()] for side in range(2)]
    folders = [write_scores(tmp_path / name, pairs[side]) for side, name in enumerate("ab")]
    comparisons = compare(_recipe(tmp_path), *folders, console)
    terms = [
        bootstrap_examples(["accuracy"], [first], [second]) for (_, first), (_, second) in zip(*pairs, strict=True)
    ]
    terms = [VarianceTerm(term.variance / 2**2, term.degrees_of_freedom) for term in terms]
    expected = difference_test((10.0 - 6.0) / 2, terms)
    assert comparisons["mean"].test.interval == pytest.approx(expected.interval)
    assert comparisons["mean"].test.p_value == pytest.approx(expected.p_value)


def test_a_task_without_predictions_removes_the_variance_of_examples_from_the_mean(tmp_path, console):
    folders = [
        write_scores(tmp_path / name, [make_predicted("rte", count), *_seeds("cola", values)])
        for name, count, values in (("a", 60, [50.0, 52.0]), ("b", 64, [51.0, 54.0]))
    ]
    comparisons = compare(_recipe(tmp_path), *folders, console)
    terms = [*seed_terms([[60.0], [50.0, 52.0]]), *seed_terms([[64.0], [51.0, 54.0]])]
    assert comparisons["mean"].test.p_value == pytest.approx(difference_test(-(4.0 + 1.5) / 2, terms).p_value)
    assert comparisons["rte"].test.p_value is not None


def test_models_with_equal_predictions_have_no_difference(tmp_path, console):
    folders = [
        write_scores(tmp_path / name, [make_predicted("rte", 60), make_blimp({"a": "1101", "b": "01"})])
        for name in "ab"
    ]
    comparisons = compare(_recipe(tmp_path), *folders, console)
    for name in ("rte", "mean", "blimp"):
        test = comparisons[name].test
        assert (test.difference, test.interval, test.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_single_seeds_without_predictions_are_reported_without_a_test(tmp_path, console):
    folders = [
        write_scores(
            tmp_path / name, [make_score("rte", value, pretraining=make_pretraining(100, 9.0, eval_loss=loss))]
        )
        for name, value, loss in (("a", 50.0, 4.0), ("b", 60.0, 3.5))
    ]
    comparisons = compare(_recipe(tmp_path), *folders, console)
    assert all(comparison.test.p_value is None for comparison in comparisons.values())
    text = console.export_text()
    assert "Score: GLUE RTE: A - B = -10.00. Too few seeds for a test." in text
    assert "Validation loss (nats): A - B = +0.50. Too few seeds for a test." in text


def test_tasks_with_a_single_seed_are_listed(tmp_path, console):
    folders = [
        write_scores(tmp_path / name, [*_seeds("rte", [60.0, value]), make_score("qqp", value)])
        for name, value in (("a", 63.0), ("b", 66.0))
    ]
    compare(_recipe(tmp_path), *folders, console)
    text = console.export_text()
    assert "Tasks with a single seed of a model, whose variance is not in the test: QQP." in text


def test_opposite_differences_of_two_tasks_do_not_count_as_variance(tmp_path, console):
    first = write_scores(tmp_path / "a", [*_seeds("rte", [80, 81, 80]), *_seeds("cola", [40, 41, 41])])
    second = write_scores(tmp_path / "b", [*_seeds("rte", [70, 70, 70]), *_seeds("cola", [44, 44, 45])])
    test = compare(_recipe(tmp_path), first, second, console)["mean"].test
    assert test.interval[0] > 0
    assert "A is better than B by 3.33" in console.export_text()


def test_an_insignificant_difference_is_reported_as_such(tmp_path, console):
    first = write_scores(tmp_path / "a", [*_seeds("rte", [60, 62, 61, 64, 60]), *_seeds("cola", [50, 51, 52])])
    second = write_scores(tmp_path / "b", [*_seeds("rte", [61, 61, 62, 60, 61]), *_seeds("cola", [51, 50, 52])])
    test = compare(_recipe(tmp_path), first, second, console)["mean"].test
    assert test.p_value > 0.05
    assert "Score: mean of 2 GLUE tasks: no significant difference, A - B = " in console.export_text()


def test_the_model_with_the_lower_loss_is_better(tmp_path, console):
    names = [
        ",".join(
            write_scores(
                tmp_path / f"{side}{index}",
                [make_blimp({"a": "10"}, pretraining=make_pretraining(100, 9.0, eval_loss=loss))],
            )
            for index, loss in enumerate(losses)
        )
        for side, losses in enumerate(([4.0, 4.01, 4.02], [5.0, 5.01, 5.02]))
    ]
    comparisons = compare(_recipe(tmp_path), *names, console)
    assert list(comparisons) == ["loss", "blimp"]
    assert "Validation loss (nats): A is better than B by 1.00 (p < 0.001)." in console.export_text()


def test_a_loss_that_one_model_lacks_is_not_compared(tmp_path, console):
    folders = [
        write_scores(tmp_path / name, _seeds("rte", [60, 61], pretraining=make_pretraining(100, 9.0, eval_loss=loss)))
        for name, loss in (("a", 4.0), ("b", None))
    ]
    assert list(compare(_recipe(tmp_path), *folders, console)) == ["rte", "mean"]


def test_blimp_is_compared_by_the_differences_of_the_pairs(tmp_path, console):
    digits = ({"a": "11011", "b": "1110"}, {"a": "01011", "b": "0101"})
    folders = [write_scores(tmp_path / str(index), [make_blimp(correct)]) for index, correct in enumerate(digits)]
    (comparison,) = compare(_recipe(tmp_path), *folders, console).values()
    differences = [
        100.0 * (np.array(list(digits[0][name]), dtype=int) - np.array(list(digits[1][name]), dtype=int))
        for name in "ab"
    ]
    assert comparison.test.difference == pytest.approx(np.mean([values.mean() for values in differences]))
    error = np.sqrt(sum(stats.sem(values) ** 2 for values in differences)) / 2
    low, high = comparison.test.interval
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 4 + 3) * error)


def test_only_the_selected_metrics_are_compared(tmp_path, console):
    folders = [
        write_scores(tmp_path / name, [make_score("mrpc", 0.0, metrics={"accuracy": 0.9, "f1": f1})])
        for name, f1 in (("a", 0.5), ("b", 0.7))
    ]
    comparisons = compare(_recipe(tmp_path, metrics={"mrpc": ["f1"]}), *folders, console)
    assert comparisons["mrpc"].name == "MRPC F1"
    assert (comparisons["mrpc"].first, comparisons["mrpc"].second) == pytest.approx((50.0, 70.0))


def test_an_external_model_can_be_compared(tmp_path, console):
    run = write_scores(tmp_path / "a", _seeds("rte", [60, 62, 61]))
    bert = write_scores(tmp_path / "bert", _seeds("rte", [65, 64, 66], step=None, pretraining=None))
    comparisons = compare(_recipe(tmp_path), run, bert, console)
    assert comparisons["mean"].test.difference == pytest.approx(-4.0)


@pytest.mark.parametrize(
    "first, second, message",
    [
        ("runs/a@900", "runs/a", "must be different, got runs/a@900 twice"),
        ("./runs/a/", "runs/a", "must be different, got runs/a@900 twice"),
        ("runs/[b],runs/a,runs/[b]", "runs/a@100", r"must be different, got runs/\[b\]@500 twice"),
        ("runs/a@7", "runs/a", r"must be a scored step of runs/a \(100, 900\), got 7"),
        ("runs/a", "runs/missing", "runs/missing"),
        ("runs/a", "runs/blimp", "must have a common score, got runs/a and runs/blimp"),
        ("runs/a", "runs/qqp", "must have scores of a common task and protocol, got none"),
    ],
    ids=["same", "same-normalized-path", "same-seed", "no-step", "no-run", "no-common-measure", "no-common-task"],
)
def test_an_impossible_comparison_raises_an_error(two_runs, console, first, second, message):
    write_scores(Path("runs/blimp"), [make_blimp({"a": "10"})])
    write_scores(Path("runs/qqp"), [make_score("qqp", 50.0)])
    with pytest.raises(ConfigError, match=message):
        compare(two_runs, first, second, console)
