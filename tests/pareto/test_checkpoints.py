from dataclasses import replace

import pytest

from mosaicbert.config import ConfigError
from mosaicbert.pareto.checkpoints import Variant, describe_outdated_scores, read_checkpoints
from tests.pareto.scored import make_pretraining, make_score, make_scores, read_folders

_PAPER = Variant(protocol="cola-paper", initialized_from="pretraining", is_partial=False)


def test_checkpoints_are_sorted_by_step(tmp_path):
    lines = [
        *make_scores(300, 90.0, 70.0),
        *make_scores(20, 6.0, 60.0),
        *make_scores(100, 30.0, 65.0),
    ]
    assert [checkpoint.step for checkpoint in read_folders(tmp_path, lines)] == [20, 100, 300]


def test_a_later_record_of_the_same_score_replaces_an_earlier_one(tmp_path):
    (checkpoint,) = read_folders(tmp_path, [make_score("cola", 50.0), make_score("cola", 60.0)])
    assert checkpoint.scores["cola"] == {_PAPER: {19: 60.0}}


def test_scores_of_a_step_that_was_trained_again_replace_earlier_scores(tmp_path):
    before, now = make_pretraining(100, 7.0), make_pretraining(100, 9.0)
    lines = [
        make_score("cola", 50.0, pretraining=before),
        make_score("rte", 50.0, pretraining=before),
        make_score("cola", 60.0, pretraining=now),
    ]
    (checkpoint,) = read_folders(tmp_path, lines)
    assert (checkpoint.pretraining, checkpoint.scores) == (now, {"cola": {_PAPER: {19: 60.0}}})
    (notice,) = describe_outdated_scores([checkpoint])
    assert notice.endswith("run0@100: 2 score(s) of earlier weights are not used.")


def test_a_different_flops_estimate_is_the_same_training(tmp_path):
    lines = [
        make_score("cola", 50.0),
        make_score("rte", 50.0, pretraining=replace(make_pretraining(100, 3600.0), flops=7.0)),
    ]
    (checkpoint,) = read_folders(tmp_path, lines)
    assert set(checkpoint.scores) == {"cola", "rte"}
    assert describe_outdated_scores([checkpoint]) == []


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_a_folder_without_scores_raises_an_error(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=f"{folder}.*must have scores, got none"):
        read_checkpoints(str(tmp_path / folder))


def test_the_last_scored_weights_of_an_external_model_are_used(tmp_path):
    first, second = "bert@0123456789ab", "bert@ba9876543210"
    lines = [
        make_score(task, value, step=None, pretraining=None, model=model)
        for task, value, model in (("cola", 10.0, "bert"), ("rte", 20.0, first), ("rte", 60.0, second))
    ]
    (checkpoint,) = read_folders(tmp_path, lines)
    assert [list(seeds.values()) for variants in checkpoint.scores.values() for seeds in variants.values()] == [[60.0]]
    assert list(checkpoint.scores) == ["rte"]
    (notice,) = describe_outdated_scores([checkpoint])
    assert notice.endswith(": 2 score(s) of earlier weights are not used.")


@pytest.mark.parametrize(
    "scores, message",
    [
        ([replace(make_score("cola", 50.0), task="wnli")], "`task` must be one of .*, got 'wnli'"),
        ([make_score("mrpc", 0.0, metrics={"accuracy": 0.5})], "`metrics` of mrpc must be accuracy, f1, got accuracy"),
        ([make_score("cola", float("nan"))], "must be a finite number, got nan"),
        (
            [make_score("cola", 5.0, step=None, pretraining=None, model=name) for name in "ab"],
            "must have the scores of one model, got a, b",
        ),
    ],
    ids=["unknown-task", "other-metrics", "nan", "several-models"],
)
def test_invalid_scores_raise_an_error(tmp_path, scores, message):
    with pytest.raises(ConfigError, match=message):
        read_folders(tmp_path, scores)


def test_a_checkpoint_that_was_deleted_during_scoring_keeps_its_cost(tmp_path):
    (checkpoint,) = read_folders(tmp_path, [make_score("cola", 50.0, pretraining=None), make_score("rte", 60.0)])
    assert checkpoint.pretraining == make_pretraining(100, 3600.0)
