import pytest

from mosaicbert.config import ConfigError
from mosaicbert.config.glue import TASKS
from mosaicbert.config.pareto import SeriesConfig
from mosaicbert.pareto.checkpoints import Variant
from mosaicbert.pareto.points import make_point
from mosaicbert.pareto.selection import select_tasks
from tests.pareto.scored import make_pretraining, make_score, make_scores, read_folders

_PAPER = Variant(protocol="cola-paper", initialized_from="pretraining", is_partial=False)


@pytest.mark.parametrize("init_from_mnli, expected", [(True, 70.0), (False, 60.0)])
def test_the_recipe_chooses_between_scores_begun_with_mnli_and_not(tmp_path, init_from_mnli, expected):
    lines = [
        make_score("cola", 50.0),
        make_score("rte", 70.0),
        make_score("rte", 60.0, initialized_from="pretraining", protocol="alone"),
    ]
    (checkpoint,) = read_folders(tmp_path, lines)
    with pytest.raises(ConfigError, match=r"rte was scored in several ways.*set pareto.init_from_mnli"):
        select_tasks([checkpoint], [], None)
    selection = select_tasks([checkpoint], [], init_from_mnli)
    point = make_point("a", SeriesConfig(runs=["x"]), checkpoint, selection)
    assert point.scores == {"cola": {19: 50.0}, "rte": {19: expected}}


def test_only_all_tasks_whole_and_begun_as_the_papers_average_like_the_paper(tmp_path):
    spent = make_pretraining(10, 60.0)
    most = make_scores(10, 60.0, 80.0, tasks=[task for task in TASKS if task != "rte"])
    rtes = {
        "the papers": [make_score("rte", 60.0, step=10, pretraining=spent)],
        "none": [],
        "alone": [make_score("rte", 60.0, step=10, pretraining=spent, initialized_from="pretraining")],
        "partial": [make_score("rte", 60.0, step=10, pretraining=spent, is_partial=True)],
    }
    alike = {}
    for name, lines in rtes.items():
        wanted = [] if name == "none" else list(TASKS)
        alike[name] = select_tasks(read_folders(tmp_path / name, [*most, *lines]), wanted, None).is_paper_average
    assert alike == {"the papers": True, "none": False, "alone": False, "partial": False}


def test_a_task_that_one_point_lacks_is_left_out_and_named(tmp_path):
    checkpoints = read_folders(
        tmp_path, [make_score("cola", 50.0), make_score("rte", 60.0)], [make_score("cola", 55.0)]
    )
    selection = select_tasks(checkpoints, [], None)
    assert list(selection.variants) == ["cola"]
    assert f"Left out: RTE (no score of {checkpoints[1].name})." in selection.notices
    with pytest.raises(ConfigError, match=r"pareto.tasks names rte, but: no score of .*run1@100"):
        select_tasks(checkpoints, ["cola", "rte"], None)


def test_the_points_that_lack_a_task_are_counted_when_they_are_many(tmp_path):
    lines = [make_score("cola", 50.0, step=step, pretraining=make_pretraining(step, 9.0)) for step in range(1, 8)]
    (notice,) = [
        notice
        for notice in select_tasks(
            read_folders(tmp_path, lines, [make_score("cola", 1.0), make_score("rte", 1.0)]), [], None
        ).notices
        if "RTE" in notice
    ]
    assert notice.endswith("run0@3 and 4 more).")


def test_tasks_that_the_recipe_does_not_name_are_left_out_and_named(tmp_path):
    selection = select_tasks(read_folders(tmp_path, [make_score("cola", 50.0), make_score("rte", 60.0)]), ["rte"], None)
    assert list(selection.variants) == ["rte"]
    assert selection.average_name == "RTE of GLUE"
    assert selection.notices == ["Left out: CoLA (not named by pareto.tasks)."]


def test_partial_data_is_averaged_only_if_the_recipe_names_the_task(tmp_path):
    checkpoints = read_folders(tmp_path, [make_score("cola", 50.0, is_partial=True), make_score("rte", 60.0)])
    selection = select_tasks(checkpoints, [], None)
    assert list(selection.variants) == ["rte"]
    (notice,) = [notice for notice in selection.notices if "CoLA" in notice]
    assert "partial data" in notice
    named = select_tasks(checkpoints, ["cola", "rte"], None)
    assert list(named.variants) == ["cola", "rte"]
    assert named.average_name == "mean of 2 GLUE tasks, on partial data"


def test_complete_data_is_preferred_to_a_part_of_it(tmp_path):
    checkpoints = read_folders(tmp_path, [make_score("cola", 50.0, is_partial=True), make_score("cola", 60.0)])
    assert select_tasks(checkpoints, ["cola"], None).variants == {"cola": _PAPER}


@pytest.mark.parametrize(
    "change", [{"protocol": "other"}, {"initialized_from": "mnli"}], ids=["protocol", "initialized_from"]
)
def test_scores_of_several_protocols_are_never_mixed(tmp_path, change):
    both = [make_score("cola", 50.0), make_score("cola", 90.0, seed=2, **change)]
    with pytest.raises(ConfigError, match=f"cola was scored in several ways.*{next(iter(change.values()))}"):
        select_tasks(read_folders(tmp_path / "within", both), [], None)
    between = read_folders(tmp_path / "between", both[:1], both[1:])
    with pytest.raises(ConfigError, match=r"no task can be averaged.*no protocol common to all"):
        select_tasks(between, [], None)


def test_the_one_protocol_that_all_points_share_is_taken_and_the_rest_is_said(tmp_path):
    other = make_score("cola", 90.0, protocol="other")
    checkpoints = read_folders(tmp_path, [make_score("cola", 50.0), other], [make_score("cola", 55.0)])
    selection = select_tasks(checkpoints, [], None)
    assert selection.variants == {"cola": _PAPER}
    assert selection.notices[-1].endswith("1 score(s) under other from pretraining are not used.")
