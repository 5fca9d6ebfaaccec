from dataclasses import replace

import pytest

from mosaicbert.config import ConfigError
from mosaicbert.pareto.checkpoints import Variant, describe_outdated_scores, find_checkpoint, read_checkpoints
from tests.pareto.scored import (
    make_blimp,
    make_predicted,
    make_pretraining,
    make_score,
    make_scores,
    read_folders,
    write_scores,
)

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
        (
            [replace(make_score("cola", 50.0), task="wnli")],
            "`task` must be a phenomenon of BLiMP or one of .*, got 'wnli'",
        ),
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


def test_scores_of_tuning_examples_are_not_read(tmp_path):
    tuning = make_score("cola", 90.0, seed=2, settings={"tuning_examples": 500})
    (checkpoint,) = read_folders(
        tmp_path / "both", [make_score("cola", 50.0, settings={"tuning_examples": None}), tuning]
    )
    assert checkpoint.scores == {"cola": {_PAPER: {19: 50.0}}}
    with pytest.raises(ConfigError, match="must have scores, got none"):
        read_folders(tmp_path / "tuning", [tuning])


def test_only_the_selected_metrics_of_a_task_are_averaged(tmp_path):
    lines = [make_score("mrpc", 0.0, metrics={"accuracy": 0.8, "f1": 0.9}), make_score("rte", 60.0)]
    (checkpoint,) = read_folders(tmp_path, lines, metrics={"mrpc": ["f1"]})
    assert [list(seeds.values()) for task in checkpoint.scores.values() for seeds in task.values()] == [[90.0], [60.0]]


def test_predictions_are_assigned_to_their_scores(tmp_path):
    first, second = make_predicted("rte", 60), make_predicted("rte", 70, seed=2)
    without = make_score("rte", 50.0, seed=3)
    (checkpoint,) = read_folders(tmp_path, [first, second, without])
    (variant,) = checkpoint.scores["rte"]
    assert checkpoint.scores["rte"][variant] == pytest.approx({19: 60.0, 2: 70.0, 3: 50.0})
    assert checkpoint.predictions == {"rte": {variant: {19: first[1], 2: second[1]}}}


def test_scores_of_two_steps_that_end_in_the_same_second_have_their_own_predictions(tmp_path):
    pairs = [make_predicted("rte", 50 + step, step=step) for step in (1, 2)]
    checkpoints = read_folders(tmp_path, pairs)
    predictions = [
        record for item in checkpoints for by_seed in item.predictions["rte"].values() for record in by_seed.values()
    ]
    assert predictions == [record for _, record in pairs]


def test_a_repeated_score_without_predictions_does_not_use_those_of_the_earlier_one(tmp_path):
    earlier, (later, _) = make_predicted("rte", 60), make_predicted("rte", 70, finished="2026-01-01T00:00:00+00:00")
    (checkpoint,) = read_folders(tmp_path, [earlier, later])
    assert [list(seeds.values()) for seeds in checkpoint.scores["rte"].values()] == [[pytest.approx(70.0)]]
    assert checkpoint.predictions == {}


def test_phenomena_of_blimp_are_merged_by_protocol(tmp_path):
    first, second = make_blimp({"a": "1100", "b": "1110"}, "one"), make_blimp({"c": "1111"}, "two")
    other = make_blimp({"a": "10"}, "one", protocol="blimp-partial", is_partial=True)
    (checkpoint,) = read_folders(tmp_path, [first, second, other])
    assert (checkpoint.scores, checkpoint.predictions) == ({}, {})
    official, partial = checkpoint.blimp["blimp-official"], checkpoint.blimp["blimp-partial"]
    assert official.accuracies == {"a": 0.5, "b": 0.75, "c": 1.0}
    assert official.predictions == {"blimp/one": first[1], "blimp/two": second[1]}
    assert (official.is_partial, partial.is_partial) == (False, True)
    assert partial.accuracies == {"a": 0.5}


def test_blimp_and_glue_scores_belong_to_one_checkpoint(tmp_path):
    (checkpoint,) = read_folders(tmp_path, [make_score("cola", 50.0), make_blimp({"a": "1"})[0]])
    assert (list(checkpoint.scores), list(checkpoint.blimp)) == (["cola"], ["blimp-official"])
    assert checkpoint.blimp["blimp-official"].predictions == {}


def test_a_checkpoint_is_found_by_folder_and_step(tmp_path):
    scores = [make_score("cola", 50.0, step=step, pretraining=make_pretraining(step, 9.0)) for step in (3, 20)]
    folder = write_scores(tmp_path / "run@7", scores)
    assert find_checkpoint(folder).step == 20
    assert find_checkpoint(f"{folder}@3").name == f"{folder}@3"
    with pytest.raises(ConfigError, match=r"must be a scored step of .*run@7 \(3, 20\), got 4"):
        find_checkpoint(f"{folder}@4")
