"""Tests of `mosaicbert blimp` on a few minimal pairs."""

import json
import shutil

import pytest
from rich.console import Console

from mosaicbert.blimp.command import blimp
from mosaicbert.blimp.job import BlimpJob, run_blimp_job
from mosaicbert.blimp.pairs import Paradigm
from mosaicbert.blimp.pseudo_likelihood import pseudo_log_likelihoods
from mosaicbert.cli import main
from mosaicbert.config import ConfigError
from mosaicbert.config.blimp import BlimpConfig
from mosaicbert.scores.predictions import read_predictions
from mosaicbert.scores.records import read_scores
from mosaicbert.scoring.checkpoints import CheckpointToScore
from mosaicbert.train.run_folder import RunFolder
from tests.blimp.models import make_model, make_tokenizer, save_model

_PAIRS = {
    ("agreement", "agreement_1"): [("The cat sleeps.", "The cat sleep."), ("Cats sleep.", "Cats sleeps.")],
    ("agreement", "agreement_2"): [("The cats sleep now.", "The cats sleeps now.")],
    ("order", "order_1"): [("The cat sleeps now.", "Cat the sleeps now."), ("The cat.", "the CAT.")],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blimp")
    with (folder / "pairs.jsonl").open("w") as file:
        for (phenomenon, paradigm), pairs in _PAIRS.items():
            for good, bad in pairs:
                row = {"UID": paradigm, "linguistics_term": phenomenon, "sentence_good": good, "sentence_bad": bad}
                file.write(json.dumps(row) + "\n")
    return str(folder)


def _score(config):
    console = Console(record=True, width=150)
    exit_code = blimp(config, console)
    return exit_code, console.export_text()


def test_the_accuracy_is_the_fraction_of_pairs_whose_good_sentence_is_more_likely(tmp_path):
    tokenizer = make_tokenizer()
    model = make_model("bert")
    paradigms = [
        Paradigm(name=name, phenomenon=phenomenon, good=[good for good, _ in pairs], bad=[bad for _, bad in pairs])
        for (phenomenon, name), pairs in _PAIRS.items()
    ]
    checkpoint = CheckpointToScore(model=save_model(tmp_path, "bert"), step=None, pretraining=None)
    job = BlimpJob(
        checkpoint=checkpoint, task="blimp/all", seed=0, paradigms=paradigms, batch_tokens=512, is_partial=True
    )
    result = run_blimp_job(job)
    for paradigm in paradigms:
        values = [pseudo_log_likelihoods(model, tokenizer, texts, 512) for texts in (paradigm.good, paradigm.bad)]
        correct = [good > bad for good, bad in zip(*values, strict=True)]
        assert result.metrics[paradigm.name] == sum(correct) / len(correct)
        assert result.predictions[paradigm.name].predictions == "".join(str(int(value)) for value in correct)
        assert result.predictions[paradigm.name].labels == "1" * len(correct)


def test_a_tie_is_incorrect(tmp_path):
    paradigm = Paradigm(name="tie", phenomenon="tie", good=["The cat sleeps."], bad=["the CAT sleeps."])
    checkpoint = CheckpointToScore(model=save_model(tmp_path), step=None, pretraining=None)
    job = BlimpJob(
        checkpoint=checkpoint, task="blimp/tie", seed=0, paradigms=[paradigm], batch_tokens=512, is_partial=True
    )
    assert run_blimp_job(job).metrics == {"tie": 0.0}


@pytest.mark.usefixtures("forked")
def test_all_checkpoints_of_a_run_are_scored_once(finished, data, tmp_path):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(finished[1].path, run.path, symlinks=True)
    exit_code, output = _score(BlimpConfig(model=str(run.path), data=data, checkpoints="all"))
    assert exit_code == 0
    scores = read_scores(run.path / "scores.jsonl")
    assert {(score.step, score.task) for score in scores} == {
        (step, f"blimp/{phenomenon}") for step in (3, 6) for phenomenon in ("agreement", "order")
    }
    assert all(score.pretraining.tokens > 0 and score.is_partial for score in scores)
    last = scores[-1].pretraining
    result = json.loads(run.result.read_text())
    assert (last.eval_loss, last.eval_bits_per_byte) == (result["eval_loss"], result["eval_bits_per_byte"])
    assert last.cpu_seconds > 0
    for score, record in zip(scores, read_predictions(run.path / "predictions.jsonl"), strict=True):
        assert record.is_of(score)
        assert {name: split.prediction_array().mean() for name, split in record.splits.items()} == score.metrics
    assert "BLiMP (partial data)" in output and "step 6" in output
    assert _score(BlimpConfig(model=str(run.path), data=data))[0] == 0
    assert read_scores(run.path / "scores.jsonl") == scores


def test_a_model_that_is_not_a_run_has_its_own_folder(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "some" / "encoder", "bert")
    with pytest.raises(SystemExit) as exit_status:
        main(["blimp", "some/encoder", f"data={data}", "pairs_per_paradigm=1"])
    assert exit_status.value.code == 0
    scores = read_scores(tmp_path / "runs" / "some-encoder" / "scores.jsonl")
    assert {score.task for score in scores} == {"blimp/agreement", "blimp/order"}
    assert all(score.model_name == "some/encoder" and score.step is None for score in scores)


def test_an_unknown_setting_names_the_nearest_one(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_status:
        main(["blimp", str(tmp_path), "checkpoint=all"])
    assert exit_status.value.code == 2
    assert "unknown key `checkpoint`. Did you mean `checkpoints`?" in capsys.readouterr().err


def test_a_missing_model_is_rejected_before_any_job(data, tmp_path):
    config = BlimpConfig(model=str(tmp_path / "missing"), data=data, runs_folder=str(tmp_path))
    with pytest.raises(ConfigError, match="does not have a usable tokenizer"):
        blimp(config, Console(quiet=True))
