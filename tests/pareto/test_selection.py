import pytest

from mosaicbert.config import ConfigError
from mosaicbert.config.glue import TASKS
from mosaicbert.config.pareto import SeriesConfig
from mosaicbert.pareto.checkpoints import Variant
from mosaicbert.pareto.points import make_point
from mosaicbert.pareto.selection import select_scores
from tests.pareto.scored import make_blimp, make_pretraining, make_score, make_scores, read_folders

_PAPER = Variant(protocol="cola-paper", initialized_from="pretraining", is_partial=False)


@pytest.mark.parametrize("init_from_mnli, expected", [(True, 70.0), (False, 60.0)])
def test_init_from_mnli_selects_the_initialization(tmp_path, init_from_mnli, expected):
    lines = [
        make_score("cola", 50.0),
        make_score("rte", 70.0),
        make_score("rte", 60.0, initialized_from="pretraining", protocol="alone"),
    ]
    (checkpoint,) = read_folders(tmp_path, lines)
    with pytest.raises(ConfigError, match=r"Scores of rte must have one protocol.*Set `pareto.init_from_mnli`"):
        select_scores([checkpoint], [], None)
    selection = select_scores([checkpoint], [], init_from_mnli)
    point = make_point("a", SeriesConfig(runs=["x"]), [checkpoint], selection)
    assert point.scores == ({"cola": {19: 50.0}, "rte": {19: expected}},)


def test_the_paper_average_requires_all_tasks_with_complete_data_and_the_same_initialization(tmp_path):
    pretraining = make_pretraining(10, 60.0)
    other_tasks = make_scores(10, 60.0, 80.0, tasks=[task for task in TASKS if task != "rte"])
    rte_scores = {
        "paper": [make_score("rte", 60.0, step=10, pretraining=pretraining)],
        "none": [],
        "alone": [make_score("rte", 60.0, step=10, pretraining=pretraining, initialized_from="pretraining")],
        "partial": [make_score("rte", 60.0, step=10, pretraining=pretraining, is_partial=True)],
    }
    matches = {}
    for name, scores in rte_scores.items():
        tasks = [] if name == "none" else list(TASKS)
        matches[name] = select_scores(
            read_folders(tmp_path / name, [*other_tasks, *scores]), tasks, None
        ).is_paper_average
    assert matches == {"paper": True, "none": False, "alone": False, "partial": False}
    checkpoints = read_folders(tmp_path / "metrics", [*other_tasks, *rte_scores["paper"]], metrics={"mrpc": ["f1"]})
    assert not select_scores(checkpoints, [], None, {"mrpc": ["f1"]}).is_paper_average
    assert select_scores(checkpoints, [], None, {"mrpc": ["f1", "accuracy"]}).is_paper_average


def test_a_task_without_a_score_of_one_point_is_skipped_and_listed(tmp_path):
    checkpoints = read_folders(
        tmp_path, [make_score("cola", 50.0), make_score("rte", 60.0)], [make_score("cola", 55.0)]
    )
    selection = select_scores(checkpoints, [], None)
    assert list(selection.variants) == ["cola"]
    assert f"Skipped: RTE (no score of {checkpoints[1].name})." in selection.notices
    with pytest.raises(ConfigError, match=r"must be tasks that can be averaged, got rte \(no score of .*run1@100"):
        select_scores(checkpoints, ["cola", "rte"], None)


def test_a_long_list_of_points_without_a_score_is_shortened(tmp_path):
    lines = [make_score("cola", 50.0, step=step, pretraining=make_pretraining(step, 9.0)) for step in range(1, 8)]
    (notice,) = [
        notice
        for notice in select_scores(
            read_folders(tmp_path, lines, [make_score("cola", 1.0), make_score("rte", 1.0)]), [], None
        ).notices
        if "RTE" in notice
    ]
    assert notice.endswith("run0@3 and 4 more).")


def test_tasks_that_are_not_in_the_recipe_are_skipped_and_listed(tmp_path):
    selection = select_scores(
        read_folders(tmp_path, [make_score("cola", 50.0), make_score("rte", 60.0)]), ["rte"], None
    )
    assert list(selection.variants) == ["rte"]
    assert selection.average_name == "GLUE RTE"
    assert selection.notices == ["Skipped: CoLA (not in `pareto.tasks`)."]


def test_partial_data_is_averaged_only_if_the_task_is_in_the_recipe(tmp_path):
    checkpoints = read_folders(tmp_path, [make_score("cola", 50.0, is_partial=True), make_score("rte", 60.0)])
    selection = select_scores(checkpoints, [], None)
    assert list(selection.variants) == ["rte"]
    (notice,) = [notice for notice in selection.notices if "CoLA" in notice]
    assert "partial data" in notice
    selection = select_scores(checkpoints, ["cola", "rte"], None)
    assert list(selection.variants) == ["cola", "rte"]
    assert selection.average_name == "mean of 2 GLUE tasks (partial data)"


def test_complete_data_is_preferred_to_partial_data(tmp_path):
    checkpoints = read_folders(tmp_path, [make_score("cola", 50.0, is_partial=True), make_score("cola", 60.0)])
    assert select_scores(checkpoints, ["cola"], None).variants == {"cola": _PAPER}


@pytest.mark.parametrize(
    "change", [{"protocol": "other"}, {"initialized_from": "mnli"}], ids=["protocol", "initialized_from"]
)
def test_scores_of_several_protocols_are_not_averaged_together(tmp_path, change):
    both = [make_score("cola", 50.0), make_score("cola", 90.0, seed=2, **change)]
    with pytest.raises(ConfigError, match=f"Scores of cola must have one protocol.*{next(iter(change.values()))}"):
        select_scores(read_folders(tmp_path / "within", both), [], None)
    between = read_folders(tmp_path / "between", both[:1], both[1:])
    with pytest.raises(ConfigError, match=r"common task and protocol, got none.*no common protocol"):
        select_scores(between, [], None)


def test_the_common_protocol_is_used_and_other_scores_are_reported(tmp_path):
    other = make_score("cola", 90.0, protocol="other")
    checkpoints = read_folders(tmp_path, [make_score("cola", 50.0), other], [make_score("cola", 55.0)])
    selection = select_scores(checkpoints, [], None)
    assert selection.variants == {"cola": _PAPER}
    assert selection.notices[-1].endswith("1 score(s) of other from pretraining are not used.")


def test_the_label_of_a_task_has_its_averaged_metrics(tmp_path):
    checkpoints = read_folders(tmp_path, [make_score("mrpc", 50.0), make_score("mnli", 60.0), make_score("cola", 1.0)])
    selection = select_scores(checkpoints, [], None, {"mrpc": ["f1"], "mnli": ["accuracy_matched"]})
    assert list(map(selection.label_of, selection.variants)) == ["CoLA Matthews", "MRPC F1", "MNLI acc m"]
    assert select_scores(checkpoints, [], None).label_of("mrpc") == "MRPC acc/F1"


def test_checkpoints_without_glue_scores_are_listed_and_do_not_limit_the_tasks(tmp_path):
    checkpoints = read_folders(tmp_path, [make_score("cola", 50.0)], [make_blimp({"a": "10"})])
    selection = select_scores(checkpoints, [], None)
    assert list(selection.variants) == ["cola"]
    assert f"No GLUE scores: {checkpoints[1].name}." in selection.notices
    assert f"No complete BLiMP scores: {checkpoints[0].name}." in selection.notices


def test_blimp_scores_are_selected_without_glue_scores(tmp_path):
    selection = select_scores(read_folders(tmp_path, [make_blimp({"a": "10", "b": "11"})]), [], None)
    assert (selection.variants, selection.blimp) == ({}, "blimp-official")
    assert selection.blimp_paradigms == {"a", "b"}
    assert (selection.average_name, selection.is_paper_average, selection.notices) == ("BLiMP", False, [])


def test_blimp_scores_without_some_paradigms_are_listed(tmp_path):
    complete, missing = [make_blimp({"a": "10"}, "one"), make_blimp({"b": "1"}, "two")], [make_blimp({"a": "1"}, "one")]
    checkpoints = read_folders(tmp_path, complete, missing)
    selection = select_scores(checkpoints, [], None)
    assert selection.blimp_paradigms == {"a", "b"}
    assert selection.notices == [f"No complete BLiMP scores: {checkpoints[1].name}."]


@pytest.mark.parametrize("num_partial, expected", [(1, "blimp-official"), (3, "partial")], ids=["equal", "more"])
def test_the_blimp_protocol_of_most_checkpoints_is_selected_and_with_equal_counts_that_of_more_paradigms(
    tmp_path, num_partial, expected
):
    partial = make_blimp({"a": "10"}, protocol="partial", is_partial=True)
    official = make_blimp({"a": "10", "b": "11"})
    selection = select_scores(read_folders(tmp_path, [official], *[[partial]] * num_partial), [], None)
    assert selection.blimp == expected
    assert selection.is_blimp_partial == (expected == "partial")
    assert f"BLiMP: scores of protocol {expected} are used; those of other protocols are not used." in selection.notices


def test_without_a_common_task_blimp_scores_do_not_prevent_the_error(tmp_path):
    folders = [[make_score(task, 50.0), make_blimp({"a": "10"})] for task in ("cola", "rte")]
    with pytest.raises(ConfigError, match="common task and protocol, got none"):
        select_scores(read_folders(tmp_path, *folders), [], None)


def test_an_untrained_baseline_may_have_its_own_protocol(tmp_path):
    trained, untrained = read_folders(
        tmp_path,
        [make_score("cola", 50.0), make_score("rte", 60.0)],
        [make_score("cola", 40.0, protocol="other"), make_score("rte", 50.0)],
    )
    selection = select_scores([trained], [], None, untrained=[untrained])
    assert {task: variant.protocol for task, variant in selection.variants.items()} == {
        "cola": "cola-paper",
        "rte": "rte-paper",
    }
    assert {task: variant.protocol for task, variant in selection.untrained_variants.items()} == {
        "cola": "other",
        "rte": "rte-paper",
    }


def test_the_protocol_of_the_checkpoints_is_preferred_for_an_untrained_baseline(tmp_path):
    trained, untrained = read_folders(
        tmp_path,
        [make_score("cola", 50.0)],
        [make_score("cola", 40.0, protocol="other"), make_score("cola", 45.0)],
    )
    selection = select_scores([trained], [], None, untrained=[untrained])
    assert selection.untrained_variants == selection.variants
