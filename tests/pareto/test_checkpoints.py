from dataclasses import replace

import pytest

from mosaicbert.config import ConfigError
from mosaicbert.pareto.checkpoints import Variant, describe_outdated_scores, read_checkpoints
from tests.pareto.scored import make_pretraining, make_score, make_scores, read_folders

_PAPER = Variant(protocol="cola-paper", initialized_from="pretraining", is_partial=False)


def test_checkpoints_stand_in_the_order_of_their_steps(tmp_path):
    lines = [
        *make_scores(300, 90.0, 70.0),
        *make_scores(20, 6.0, 60.0),
        *make_scores(100, 30.0, 65.0),
    ]
    assert [checkpoint.step for checkpoint in read_folders(tmp_path, lines)] == [20, 100, 300]


def test_of_two_lines_about_the_same_the_later_stands(tmp_path):
    (checkpoint,) = read_folders(tmp_path, [make_score("cola", 50.0), make_score("cola", 60.0)])
    assert checkpoint.scores["cola"] == {_PAPER: {19: 60.0}}


def test_a_step_that_was_trained_again_is_what_it_is_now(tmp_path):
    before, now = make_pretraining(100, 7.0), make_pretraining(100, 9.0)
    lines = [
        make_score("cola", 50.0, pretraining=before),
        make_score("rte", 50.0, pretraining=before),
        make_score("cola", 60.0, pretraining=now),
    ]
    (checkpoint,) = read_folders(tmp_path, lines)
    assert (checkpoint.pretraining, checkpoint.scores) == (now, {"cola": {_PAPER: {19: 60.0}}})
    (notice,) = describe_outdated_scores([checkpoint])
    assert notice.endswith("run0@100: 2 score(s) of its earlier weights are not used.")


def test_a_cost_that_is_only_reckoned_otherwise_is_the_same_training(tmp_path):
    lines = [
        make_score("cola", 50.0),
        make_score("rte", 50.0, pretraining=replace(make_pretraining(100, 3600.0), flops=7.0)),
    ]
    (checkpoint,) = read_folders(tmp_path, lines)
    assert set(checkpoint.scores) == {"cola", "rte"}
    assert describe_outdated_scores([checkpoint]) == []


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_a_folder_without_scores_is_refused(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=f"{folder}.*no scores"):
        read_checkpoints(str(tmp_path / folder))


def test_of_a_model_from_elsewhere_the_last_weights_stand(tmp_path):
    first, second = "bert@0123456789ab", "bert@ba9876543210"
    lines = [
        make_score(task, value, step=None, pretraining=None, model=model)
        for task, value, model in (("cola", 10.0, "bert"), ("rte", 20.0, first), ("rte", 60.0, second))
    ]
    (checkpoint,) = read_folders(tmp_path, lines)
    assert [list(seeds.values()) for variants in checkpoint.scores.values() for seeds in variants.values()] == [[60.0]]
    assert list(checkpoint.scores) == ["rte"]
    (notice,) = describe_outdated_scores([checkpoint])
    assert notice.endswith(": 2 score(s) of its earlier weights are not used.")


@pytest.mark.parametrize(
    "lines, words",
    [
        ([replace(make_score("cola", 50.0), task="wnli")], "'wnli'"),
        ([make_score("mrpc", 0.0, metrics={"accuracy": 0.5})], "that task has accuracy, f1"),
        ([make_score("cola", float("nan"))], "no number"),
        ([make_score("cola", 5.0, step=None, pretraining=None, model=name) for name in "ab"], "several models"),
    ],
    ids=["unknown-task", "other-metrics", "nan", "several-models"],
)
def test_scores_that_cannot_be_right_are_refused(tmp_path, lines, words):
    with pytest.raises(ConfigError, match=words):
        read_folders(tmp_path, lines)


def test_a_checkpoint_that_was_removed_while_it_was_scored_keeps_its_cost(tmp_path):
    (checkpoint,) = read_folders(tmp_path, [make_score("cola", 50.0, pretraining=None), make_score("rte", 60.0)])
    assert checkpoint.pretraining == make_pretraining(100, 3600.0)
