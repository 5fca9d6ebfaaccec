from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.config import ConfigError
from mosaicbert.config.pareto import SeriesConfig
from mosaicbert.pareto.points import (
    describe_unequal_seeds,
    exclude_unknown_costs,
    find_frontier,
    find_frontiers,
    make_point,
    point_record,
)
from mosaicbert.pareto.selection import select_scores
from tests.pareto.scored import make_blimp, make_pretraining, make_score, read_folders


def test_a_score_is_the_mean_of_metrics_and_an_average_the_mean_of_tasks(tmp_path):
    lines = [
        make_score("mrpc", 0.0, metrics={"accuracy": 0.8, "f1": 0.9}, seed=1),
        make_score("mrpc", 0.0, metrics={"accuracy": 0.9, "f1": 1.0}, seed=2),
        make_score("cola", 50.0),
    ]
    (checkpoint,) = read_folders(tmp_path, lines)
    selection = select_scores([checkpoint], [], None)
    point = make_point("a", SeriesConfig(runs=["x"]), [checkpoint], selection)
    assert point.glue.value == pytest.approx((90.0 + 50.0) / 2)
    assert point.values_of("mrpc") == pytest.approx([85.0, 95.0])
    assert selection.average_name == "mean of 2 GLUE tasks"
    assert selection.notices == ["Skipped: SST-2, STS-B, QQP, MNLI, QNLI, RTE (no score)."]


def test_hours_are_wall_clock_time_and_dollars_include_all_devices(tmp_path):
    (checkpoint,) = read_folders(tmp_path, [make_score("cola", 50.0, pretraining=make_pretraining(7, 1800.0))])
    series = SeriesConfig(runs=["x"], devices=8, dollars_per_device_hour=2.5)
    selection = select_scores([checkpoint], [], None)
    point = make_point("a", series, [checkpoint], selection)
    assert (point.hours, point.dollars) == (0.5, 10.0)
    assert make_point("a", replace(series, devices=None), [checkpoint], selection).dollars == 1.25
    assert make_point("a", SeriesConfig(runs=["x"], devices=8), [checkpoint], selection).dollars is None


def test_a_point_of_several_pretraining_seeds_has_their_mean_cost_and_measures(tmp_path):
    folders = [
        [
            make_score("cola", value, pretraining=make_pretraining(100, hours * 3600.0, tokens=tokens, eval_loss=loss)),
            make_blimp({"a": digits}, pretraining=make_pretraining(100, hours * 3600.0, tokens=tokens, eval_loss=loss)),
        ]
        for value, hours, tokens, loss, digits in ((50.0, 1.0, 1000, 4.0, "10"), (56.0, 2.0, 3000, 5.0, "11"))
    ]
    checkpoints = read_folders(tmp_path, *folders)
    series = SeriesConfig(runs=["x"], dollars_per_device_hour=2.0)
    point = make_point("a", series, checkpoints, select_scores(checkpoints, [], None))
    assert (point.hours, point.tokens, point.dollars) == (1.5, 2000.0, 3.0)
    assert (point.glue.value, point.blimp.value, point.loss.value) == (53.0, 75.0, 4.5)
    assert (point.folder, point.step) == (checkpoints[0].folder, 100)
    assert point.name == f"{checkpoints[0].name} and 1 more"
    assert point.values_of("cola") == pytest.approx([50.0, 56.0])


def test_a_point_without_glue_scores_has_no_task_scores(tmp_path):
    checkpoints = read_folders(tmp_path, [make_score("cola", 50.0)], [make_blimp({"a": "10"})])
    selection = select_scores(checkpoints, [], None)
    scored, unscored = (make_point("a", SeriesConfig(runs=["x"]), [item], selection) for item in checkpoints)
    assert (scored.blimp, unscored.glue, unscored.scores) == (None, None, ())
    record = point_record(unscored, selection, {"h": None, "$": None})
    assert (record["tasks"], record["glue"], record["blimp"]["value"]) == ({}, None, 50.0)
    assert find_frontiers([scored, unscored]) == {"h": [True, None], "$": [None, None]}
    assert describe_unequal_seeds([scored, unscored]) == []


def test_the_record_of_a_point_has_the_averaged_metrics_and_each_pretraining_seed(tmp_path):
    metrics = {"mrpc": ["f1"]}
    scores = [make_score("mrpc", 50.0, pretraining=make_pretraining(100, 3600.0, seed=seed)) for seed in (17, 18)]
    checkpoints = read_folders(tmp_path, *[[score] for score in scores], metrics=metrics)
    selection = select_scores(checkpoints, [], None, metrics)
    point = make_point("a", SeriesConfig(runs=["x"]), checkpoints, selection)
    record = point_record(point, selection, {"h": True, "$": None})
    assert record["runs"] == [checkpoint.folder for checkpoint in checkpoints]
    assert [cost["seed"] for cost in record["pretraining"]] == [17, 18]
    assert record["tasks"]["mrpc"]["metrics"] == ["f1"]
    assert record["tasks"]["mrpc"]["num_scores"] == 2
    assert (record["on_frontier_hours"], record["on_frontier_dollars"]) == (True, None)


def test_unequal_seeds_of_points_are_reported(tmp_path):
    lines = [make_score("cola", 50.0), make_score("rte", 60.0), make_score("rte", 61.0, seed=2)]
    checkpoints = read_folders(tmp_path, lines, lines[:2])
    selection = select_scores(checkpoints, [], None)
    points = [make_point("a", SeriesConfig(runs=["x"]), [checkpoint], selection) for checkpoint in checkpoints]
    assert describe_unequal_seeds(points) == ["Points have different seeds of RTE. Score the missing seeds."]
    assert describe_unequal_seeds(points[:1]) == []


@pytest.mark.parametrize(
    "change, message",
    [
        ({"step": None, "pretraining": None}, "must have run folders only"),
        ({"pretraining": make_pretraining(1, 0.0)}, "must be positive and finite for a logarithmic axis"),
    ],
    ids=["external", "no-time"],
)
def test_an_external_model_or_an_invalid_time_raises_an_error(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        exclude_unknown_costs("a", read_folders(tmp_path, [make_score("cola", 50.0, **change)]))


def test_a_checkpoint_that_was_deleted_before_it_was_scored_is_skipped_and_listed(tmp_path):
    checkpoints = read_folders(
        tmp_path, [make_score("cola", 50.0), make_score("cola", 60.0, step=200, pretraining=None)]
    )
    usable, notices = exclude_unknown_costs("a", checkpoints)
    assert [checkpoint.step for checkpoint in usable] == [100]
    assert len(notices) == 1 and "run0@200" in notices[0]


_POINTS = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=12)


def _dominates(point, other) -> bool:
    return point != other and point[0] <= other[0] and point[1] >= other[1]


@given(_POINTS)
def test_points_are_on_the_frontier_if_and_only_if_no_point_dominates_them(points):
    on_frontier = find_frontier([cost for cost, _ in points], [average for _, average in points])
    frontier = [point for point, is_member in zip(points, on_frontier, strict=True) if is_member]
    for point, is_member in zip(points, on_frontier, strict=True):
        assert any(_dominates(other, point) for other in frontier) != is_member
        assert any(_dominates(other, point) for other in points) != is_member


def test_equal_points_are_on_the_frontier_and_an_equal_score_at_higher_cost_is_not():
    assert find_frontier([1.0, 1.0, 2.0], [5.0, 5.0, 5.0]) == [True, True, False]
