from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.config import ConfigError
from mosaicbert.config.glue import TASKS
from mosaicbert.config.pareto import SeriesConfig
from mosaicbert.pareto.points import (
    Variant,
    find_frontier,
    find_outdated,
    find_uneven_seeds,
    leave_out_unknown_costs,
    make_point,
    read_checkpoints,
    select_tasks,
)
from tests.pareto.scored import cost, line, scored_checkpoint, write_scores

_PAPER = Variant(protocol="cola-paper", start="pretraining", is_partial=False)


def _read(tmp_path, *folders):
    """The checkpoints of folders with these lines."""
    return [
        checkpoint
        for index, lines in enumerate(folders)
        for checkpoint in read_checkpoints(write_scores(tmp_path / f"run{index}", lines))
    ]


def test_checkpoints_stand_in_the_order_of_their_steps(tmp_path):
    lines = [
        *scored_checkpoint(300, 90.0, 70.0),
        *scored_checkpoint(20, 6.0, 60.0),
        *scored_checkpoint(100, 30.0, 65.0),
    ]
    assert [checkpoint.step for checkpoint in _read(tmp_path, lines)] == [20, 100, 300]


def test_a_score_is_the_mean_of_metrics_and_a_point_the_mean_of_tasks(tmp_path):
    lines = [
        line("mrpc", 0.0, metrics={"accuracy": 0.8, "f1": 0.9}, seed=1),
        line("mrpc", 0.0, metrics={"accuracy": 0.9, "f1": 1.0}, seed=2),
        line("cola", 50.0),
    ]
    (checkpoint,) = _read(tmp_path, lines)
    selection = select_tasks([checkpoint], [], None)
    point = make_point("a", SeriesConfig(runs=["x"]), checkpoint, selection)
    assert point.average == pytest.approx((90.0 + 50.0) / 2)
    assert selection.measure == "mean of 2 GLUE tasks"
    assert selection.notices == ["Left out: SST-2, STS-B, QQP, MNLI, QNLI, RTE (no score)."]


def test_hours_are_of_the_wall_and_dollars_of_all_devices(tmp_path):
    (checkpoint,) = _read(tmp_path, [line("cola", 50.0, pretraining=cost(7, 1800.0))])
    series = SeriesConfig(runs=["x"], devices=8, dollars_per_device_hour=2.5)
    point = make_point("a", series, checkpoint, select_tasks([checkpoint], [], None))
    assert (point.hours, point.dollars) == (0.5, 10.0)
    assert (
        make_point("a", replace(series, devices=None), checkpoint, select_tasks([checkpoint], [], None)).dollars == 1.25
    )
    free = make_point("a", SeriesConfig(runs=["x"], devices=8), checkpoint, select_tasks([checkpoint], [], None))
    assert free.dollars is None


def test_of_two_lines_about_the_same_the_later_stands(tmp_path):
    (checkpoint,) = _read(tmp_path, [line("cola", 50.0), line("cola", 60.0)])
    assert checkpoint.scores["cola"] == {_PAPER: {19: 60.0}}


def test_a_step_that_was_trained_again_is_what_it_is_now(tmp_path):
    before, now = cost(100, 7.0), cost(100, 9.0)
    lines = [
        line("cola", 50.0, pretraining=before),
        line("rte", 50.0, pretraining=before),
        line("cola", 60.0, pretraining=now),
    ]
    (checkpoint,) = _read(tmp_path, lines)
    assert (checkpoint.pretraining, checkpoint.scores) == (now, {"cola": {_PAPER: {19: 60.0}}})
    (notice,) = find_outdated([checkpoint])
    assert notice.endswith("run0@100: 2 score(s) of its earlier weights are not used.")


def test_a_cost_that_is_only_reckoned_otherwise_is_the_same_training(tmp_path):
    lines = [line("cola", 50.0), line("rte", 50.0, pretraining=replace(cost(100, 3600.0), flops=7.0))]
    (checkpoint,) = _read(tmp_path, lines)
    assert set(checkpoint.scores) == {"cola", "rte"}
    assert find_outdated([checkpoint]) == []


@pytest.mark.parametrize("init_from_mnli, expected", [(True, 70.0), (False, 60.0)])
def test_the_recipe_chooses_between_scores_begun_with_mnli_and_not(tmp_path, init_from_mnli, expected):
    lines = [line("cola", 50.0), line("rte", 70.0), line("rte", 60.0, start="pretraining", protocol="alone")]
    (checkpoint,) = _read(tmp_path, lines)
    with pytest.raises(ConfigError, match=r"rte was scored in several ways.*set pareto.init_from_mnli"):
        select_tasks([checkpoint], [], None)
    selection = select_tasks([checkpoint], [], init_from_mnli)
    point = make_point("a", SeriesConfig(runs=["x"]), checkpoint, selection)
    assert point.scores == {"cola": {19: 50.0}, "rte": {19: expected}}


def test_only_all_tasks_whole_and_begun_as_the_papers_average_like_the_paper(tmp_path):
    spent = cost(10, 60.0)
    most = scored_checkpoint(10, 60.0, 80.0, tasks=[task for task in TASKS if task != "rte"])
    rtes = {
        "the papers": [line("rte", 60.0, step=10, pretraining=spent)],
        "none": [],
        "alone": [line("rte", 60.0, step=10, pretraining=spent, start="pretraining")],
        "partial": [line("rte", 60.0, step=10, pretraining=spent, is_partial=True)],
    }
    alike = {}
    for name, lines in rtes.items():
        wanted = [] if name == "none" else list(TASKS)
        alike[name] = select_tasks(_read(tmp_path / name, [*most, *lines]), wanted, None).is_the_papers
    assert alike == {"the papers": True, "none": False, "alone": False, "partial": False}


def test_points_with_other_seeds_are_named(tmp_path):
    lines = [line("cola", 50.0), line("rte", 60.0), line("rte", 61.0, seed=2)]
    checkpoints = _read(tmp_path, lines, lines[:2])
    selection = select_tasks(checkpoints, [], None)
    points = [make_point("a", SeriesConfig(runs=["x"]), checkpoint, selection) for checkpoint in checkpoints]
    assert find_uneven_seeds(points) == ["Not all points have the same seeds of RTE; score what is missing."]
    assert find_uneven_seeds(points[:1]) == []


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_a_folder_without_scores_is_refused(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=f"{folder}.*no scores"):
        read_checkpoints(str(tmp_path / folder))


def test_of_a_model_from_elsewhere_the_last_weights_stand(tmp_path):
    first, second = "bert@0123456789ab", "bert@ba9876543210"
    lines = [
        line(task, value, step=None, pretraining=None, model=model)
        for task, value, model in (("cola", 10.0, "bert"), ("rte", 20.0, first), ("rte", 60.0, second))
    ]
    (checkpoint,) = _read(tmp_path, lines)
    assert [list(seeds.values()) for variants in checkpoint.scores.values() for seeds in variants.values()] == [[60.0]]
    assert list(checkpoint.scores) == ["rte"]
    (notice,) = find_outdated([checkpoint])
    assert notice.endswith(": 2 score(s) of its earlier weights are not used.")


@pytest.mark.parametrize(
    "lines, words",
    [
        ([replace(line("cola", 50.0), task="wnli")], "'wnli'"),
        ([line("mrpc", 0.0, metrics={"accuracy": 0.5})], "that task has accuracy, f1"),
        ([line("cola", float("nan"))], "no number"),
        ([line("cola", 5.0, step=None, pretraining=None, model=name) for name in "ab"], "several models"),
    ],
    ids=["unknown-task", "other-metrics", "nan", "several-models"],
)
def test_scores_that_cannot_be_right_are_refused(tmp_path, lines, words):
    with pytest.raises(ConfigError, match=words):
        _read(tmp_path, lines)


def test_a_task_that_one_point_lacks_is_left_out_and_named(tmp_path):
    checkpoints = _read(tmp_path, [line("cola", 50.0), line("rte", 60.0)], [line("cola", 55.0)])
    selection = select_tasks(checkpoints, [], None)
    assert list(selection.variants) == ["cola"]
    assert f"Left out: RTE (no score of {checkpoints[1].name})." in selection.notices
    with pytest.raises(ConfigError, match=r"pareto.tasks names rte, but: no score of .*run1@100"):
        select_tasks(checkpoints, ["cola", "rte"], None)


def test_the_points_that_lack_a_task_are_counted_when_they_are_many(tmp_path):
    lines = [line("cola", 50.0, step=step, pretraining=cost(step, 9.0)) for step in range(1, 8)]
    (notice,) = [
        notice
        for notice in select_tasks(_read(tmp_path, lines, [line("cola", 1.0), line("rte", 1.0)]), [], None).notices
        if "RTE" in notice
    ]
    assert notice.endswith("run0@3 and 4 more).")


def test_tasks_that_the_recipe_does_not_name_are_left_out_and_named(tmp_path):
    selection = select_tasks(_read(tmp_path, [line("cola", 50.0), line("rte", 60.0)]), ["rte"], None)
    assert list(selection.variants) == ["rte"]
    assert selection.measure == "RTE of GLUE"
    assert selection.notices == ["Left out: CoLA (not named by pareto.tasks)."]


def test_partial_data_is_averaged_only_if_the_recipe_names_the_task(tmp_path):
    checkpoints = _read(tmp_path, [line("cola", 50.0, is_partial=True), line("rte", 60.0)])
    selection = select_tasks(checkpoints, [], None)
    assert list(selection.variants) == ["rte"]
    (notice,) = [notice for notice in selection.notices if "CoLA" in notice]
    assert "partial data" in notice
    named = select_tasks(checkpoints, ["cola", "rte"], None)
    assert list(named.variants) == ["cola", "rte"]
    assert named.measure == "mean of 2 GLUE tasks, on partial data"


def test_complete_data_is_preferred_to_a_part_of_it(tmp_path):
    checkpoints = _read(tmp_path, [line("cola", 50.0, is_partial=True), line("cola", 60.0)])
    assert select_tasks(checkpoints, ["cola"], None).variants == {"cola": _PAPER}


@pytest.mark.parametrize("change", [{"protocol": "other"}, {"start": "mnli"}], ids=["protocol", "start"])
def test_scores_of_several_protocols_are_never_mixed(tmp_path, change):
    both = [line("cola", 50.0), line("cola", 90.0, seed=2, **change)]
    with pytest.raises(ConfigError, match=f"cola was scored in several ways.*{next(iter(change.values()))}"):
        select_tasks(_read(tmp_path / "within", both), [], None)
    between = _read(tmp_path / "between", both[:1], both[1:])
    with pytest.raises(ConfigError, match=r"no task can be averaged.*no protocol common to all"):
        select_tasks(between, [], None)


def test_the_one_protocol_that_all_points_share_is_taken_and_the_rest_is_said(tmp_path):
    other = line("cola", 90.0, protocol="other")
    checkpoints = _read(tmp_path, [line("cola", 50.0), other], [line("cola", 55.0)])
    selection = select_tasks(checkpoints, [], None)
    assert selection.variants == {"cola": _PAPER}
    assert selection.notices[-1].endswith("1 score(s) under other from pretraining are not used.")


@pytest.mark.parametrize(
    "change, words",
    [({"step": None, "pretraining": None}, "no run of ours"), ({"pretraining": cost(1, 0.0)}, "logarithmic")],
    ids=["external", "no-time"],
)
def test_a_model_of_unknown_cost_has_no_place_in_the_figure(tmp_path, change, words):
    with pytest.raises(ConfigError, match=words):
        leave_out_unknown_costs("a", _read(tmp_path, [line("cola", 50.0, **change)]))


def test_a_checkpoint_that_was_removed_before_it_was_scored_is_left_out_and_named(tmp_path):
    checkpoints = _read(tmp_path, [line("cola", 50.0), line("cola", 60.0, step=200, pretraining=None)])
    known, notices = leave_out_unknown_costs("a", checkpoints)
    assert [checkpoint.step for checkpoint in known] == [100]
    assert len(notices) == 1 and "run0@200" in notices[0]


def test_a_checkpoint_that_was_removed_while_it_was_scored_keeps_its_cost(tmp_path):
    (checkpoint,) = _read(tmp_path, [line("cola", 50.0, pretraining=None), line("rte", 60.0)])
    assert checkpoint.pretraining == cost(100, 3600.0)


_POINTS = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=12)


def _beats(one, other) -> bool:
    return one != other and one[0] <= other[0] and one[1] >= other[1]


@given(_POINTS)
def test_no_point_on_the_frontier_is_beaten_and_every_other_is_by_one_on_it(points):
    marks = find_frontier([cost for cost, _ in points], [average for _, average in points])
    best = [point for point, is_best in zip(points, marks, strict=True) if is_best]
    for point, is_best in zip(points, marks, strict=True):
        assert any(_beats(other, point) for other in best) != is_best
        assert any(_beats(other, point) for other in points) != is_best


def test_equal_points_are_on_the_frontier_together_and_a_dearer_equal_is_not():
    assert find_frontier([1.0, 1.0, 2.0], [5.0, 5.0, 5.0]) == [True, True, False]
