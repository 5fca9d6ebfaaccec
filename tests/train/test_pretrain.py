"""Pretraining: run folder, console output, results, and all recipes."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mosaicbert.config import ConfigError
from mosaicbert.config.load import load_recipe
from mosaicbert.filesystem import lock_folder
from mosaicbert.report.metrics import read_metrics
from mosaicbert.train.pretrain import pretrain
from mosaicbert.train.resolve import resolve_run
from mosaicbert.train.run_folder import create_run_folder
from tests.data.corpus import texts, write_jsonl
from tests.recipes import tiny_recipe
from tests.train.running import evaluations_of, losses_of, pretrain_here, train_here

_RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def test_a_run_folder_contains_recipe_environment_result_figure_and_export(finished):
    recipe, run, _ = finished
    assert load_recipe(run.recipe) == recipe
    environment = json.loads(run.environment.read_text())
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
    result = json.loads(run.result.read_text())
    assert result["steps"] == 6
    assert run.loss_figure.read_bytes().startswith(b"\x89PNG")
    assert (run.hugging_face / "model.safetensors").is_file()


def test_the_result_contains_the_mean_fill_rate_and_the_total_data_wait(finished):
    _, run, _ = finished
    result = json.loads(run.result.read_text())
    lines = [line for line in read_metrics(run.metrics) if "loss" in line]
    assert result["fill_rate"] == pytest.approx(np.mean([line["fill_rate"] for line in lines]), abs=1e-4)
    assert result["data_wait_seconds"] == pytest.approx(sum(line["data_wait_seconds"] for line in lines), abs=0.006)


def test_the_console_shows_attention_precision_progress_and_predictions(finished):
    recipe, _, output = finished
    for expected in ("attention: ", "precision: float32", "tokens/s", "MFU", "validation loss", "unigram entropy"):
        assert expected in output
    assert recipe.eval.fill_mask[0] in output


def test_the_learning_rate_increases_to_its_peak_and_decays(source, tmp_path):
    recipe = tiny_recipe(
        tmp_path,
        source,
        train={"duration": "10 steps"},
        optimizer={"peak_lr": 1e-3, "warmup_fraction": 0.5, "final_lr_fraction": 0.1},
    )
    rates = [line["lr"] for line in read_metrics(train_here(recipe).metrics) if "lr" in line]
    assert rates == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3, 8.2e-4, 6.4e-4, 4.6e-4, 2.8e-4, 1e-4])


def test_a_finished_run_is_not_trained_again(finished, console):
    recipe, run, _ = finished
    before = run.metrics.read_bytes()
    pretrain_here(recipe, console)
    assert run.metrics.read_bytes() == before
    assert "this run is finished" in console.export_text()


@pytest.mark.slow
def test_the_final_loss_of_the_quickstart_is_well_below_the_unigram_entropy(tmp_path, console):
    recipe = load_recipe(_RECIPES[0].parent / "quickstart.yaml", [f"runs_folder={tmp_path}"])
    result = json.loads(pretrain_here(recipe, console).result.read_text())
    assert result["eval_loss"] < result["unigram_entropy"] - 0.5


def test_the_size_of_micro_batches_does_not_change_the_losses(finished, source, tmp_path):
    _, small, _ = finished
    large = train_here(tiny_recipe(tmp_path, source, train={"micro_batch_tokens": 4096}))
    assert losses_of(large) == pytest.approx(losses_of(small), rel=1e-4)
    assert evaluations_of(large) == pytest.approx(evaluations_of(small), rel=1e-4)


def test_losses_in_bf16_on_the_cpu_are_close_to_fp32(finished, source, tmp_path):
    _, fp32, _ = finished
    bf16 = train_here(tiny_recipe(tmp_path, source, train={"precision": "bf16"}))
    assert losses_of(bf16) != losses_of(fp32)
    assert losses_of(bf16) == pytest.approx(losses_of(fp32), rel=2e-2)


def test_the_loss_decreases(source, tmp_path):
    recipe = tiny_recipe(
        tmp_path, source, train={"duration": "60 steps"}, optimizer={"peak_lr": 1e-2}, eval={"interval": "60 steps"}
    )
    losses = losses_of(train_here(recipe))
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("path", _RECIPES, ids=lambda path: path.stem)
def test_every_recipe_runs_three_steps_with_a_small_model(path, tmp_path):
    names = list(load_recipe(path).data.sources)
    has_growing_batch = load_recipe(path).train.initial_batch_samples is not None
    for number, name in enumerate(names):
        write_jsonl(tmp_path / f"{name}.jsonl", texts()[number :: len(names)])
    recipe = load_recipe(
        path,
        [
            f"runs_folder={tmp_path}",
            *(
                f"data.sources.{name}.{key}"
                for name in names
                for key in (f"path={tmp_path / name}.jsonl", "subset=null", "validation_split=null", "text_column=text")
            ),
            "data.num_partitions=1",
            "data.validation_fraction=0.2",
            f"data.store={tmp_path / 'store'}",
            "data.num_workers=0",
            "tokenizer.source=train",
            "model.vocab_size=512",
            "model.hidden_size=48",
            "model.num_hidden_layers=2",
            "model.num_attention_heads=3",
            "model.intermediate_size=64",
            "train.duration=3 steps",
            "train.global_batch_samples=8",
            "train.compile=false",  # takes tens of seconds, and has its own test
            "train.cuda_graphs=false",
            "log.interval_steps=1",
            "log.loggers=[tensorboard]",  # Weights & Biases needs a network
            *(["train.initial_batch_samples=4"] if has_growing_batch else []),
        ],
    )
    losses = losses_of(train_here(recipe))
    assert len(losses) == 3
    assert np.isfinite(losses).all()


def test_recipes_are_named_after_their_files():
    assert _RECIPES
    for path in _RECIPES:
        assert load_recipe(path).run_name == path.stem


def test_a_run_folder_that_is_in_use_is_an_error(source, tmp_path, console):
    recipe = tiny_recipe(tmp_path, source)
    run = train_here(recipe, stop_after=1)
    with lock_folder(run.path), pytest.raises(ConfigError, match="must be trained by one process group at a time"):
        pretrain_here(recipe, console)


def test_signals_end_the_process_as_usual_during_the_final_export(source, tmp_path, console, monkeypatch):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    handlers_in_export = {}

    def finish_run(*_):
        handlers_in_export.update({number: signal.getsignal(number) for number in handlers})

    monkeypatch.setattr("mosaicbert.train.pretrain._finish", finish_run)
    pretrain_here(tiny_recipe(tmp_path, source, train={"duration": "1 steps"}), console)
    assert handlers_in_export == handlers


def test_a_run_folder_that_another_recipe_has_taken_meanwhile_is_not_used(source, tmp_path, console):
    recipe = tiny_recipe(tmp_path, source)
    resolved = resolve_run(recipe, console)
    create_run_folder(replace(recipe, seed=18), resolved.store)
    with pytest.raises(ConfigError, match=r"`seed` \(recorded: 18, now: 17\)"):
        pretrain(resolved, console)
