import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM

from mosaicbert import MosaicBertForMaskedLM
from mosaicbert.config import ConfigError
from mosaicbert.config.load import load_recipe
from mosaicbert.data.store import StoreRecord, open_tokenizer
from mosaicbert.export.fill_mask import fill_masks
from mosaicbert.export.hf_folder import export_folder, publish
from mosaicbert.export.parity import ParityError, _link_requirements, check_parity
from mosaicbert.export.published import load_model, save_published
from mosaicbert.model.factory import build_model
from mosaicbert.report.metrics import read_metrics
from mosaicbert.train.checkpoint.format import checkpoint_path, list_checkpoints, read_checkpoint, read_state, step_of
from mosaicbert.train.results import export_latest, export_step, summarize
from mosaicbert.train.run_folder import RunFolder
from tests.recipes import tiny_recipe


@pytest.fixture
def trained(finished):
    recipe, run, _ = finished
    return load_model(recipe, read_checkpoint(list_checkpoints(run.checkpoints)[-1]).model)


def test_an_exported_folder_contains_the_standard_files(finished):
    _, run, _ = finished
    names = {path.name for path in run.hugging_face.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "README.md"} <= names
    assert not list(run.path.rglob("*.partial")) + list(run.path.rglob("*.replaced"))


def test_every_checkpoint_is_exported_and_the_newest_is_linked(finished):
    _, run, _ = finished
    steps = [step_of(path) for path in list_checkpoints(run.checkpoints)]
    assert steps == [3, 6]
    for step in steps:
        assert _trained_tokens_line(run.export_of(step)).endswith(f", {step} steps) |")
    assert _trained_tokens_line(run.hugging_face) == _trained_tokens_line(run.export_of(6))


def _trained_tokens_line(folder):
    return next(
        line for line in (folder / "README.md").read_text().splitlines() if line.startswith("| training tokens")
    )


def test_each_exported_folder_contains_the_weights_of_its_checkpoint(finished):
    recipe, run, _ = finished
    for path in list_checkpoints(run.checkpoints):
        model = load_model(recipe, read_checkpoint(path).model)
        exported = MosaicBertForMaskedLM.from_pretrained(run.export_of(step_of(path))).state_dict()
        for name, weight in model.state_dict().items():
            assert torch.equal(weight, exported[name]), name


def test_the_model_card_contains_the_recipe_and_the_losses(finished):
    recipe, run, _ = finished
    card = (run.hugging_face / "README.md").read_text()
    result = json.loads(run.result.read_text())
    assert f"{result['eval_loss']:.4f} nats" in card
    assert f"{result['train_loss']:.4f} nats" in card
    assert f"duration: {recipe.train.duration}" in card


def test_an_exported_folder_contains_the_training_recipe(finished):
    recipe, run, _ = finished
    assert load_recipe(run.hugging_face / "recipe.yaml") == recipe


# The export in `finished` has checked both modes.
@pytest.mark.parametrize("mode", ["package", pytest.param("remote_code", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("forked")
def test_an_exported_folder_reproduces_the_logits_in_a_new_process(finished, trained, mode):
    _, run, _ = finished
    check_parity(trained, run.hugging_face, (mode,))


def test_remote_code_loads_without_this_package_and_composer(finished, tmp_path):
    _, run, _ = finished
    _link_requirements(tmp_path / "site", ("torch", "transformers"))
    code = (
        f"import sys; sys.path.append({str(tmp_path / 'site')!r})\n"
        "import importlib.util\n"
        "names = ('mosaicbert', 'composer', 'datasets', 'omegaconf')\n"
        "assert not any(importlib.util.find_spec(name) for name in names)\n"
        "from transformers import AutoModel, AutoModelForSequenceClassification\n"
        f"folder = {str(run.hugging_face)!r}\n"
        "encoder = AutoModel.from_pretrained(folder, trust_remote_code=True)\n"
        "Classifier = AutoModelForSequenceClassification\n"
        "classifier = Classifier.from_pretrained(folder, trust_remote_code=True, num_labels=4)\n"
        "print(type(encoder).__name__, classifier.classifier.out_proj.out_features)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    completed = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert completed.stdout.strip() == "MosaicBertModel 4", completed.stderr


@pytest.mark.parametrize("corruption", ["changed", "nan"])
@pytest.mark.usefixtures("forked")
def test_a_folder_with_different_weights_fails_the_parity_check(finished, trained, tmp_path, corruption):
    _, run, _ = finished
    copy = tmp_path / "hf"
    shutil.copytree(run.hugging_face / "latest", copy)
    weights = load_file(copy / "model.safetensors")
    bias = weights["decoder.bias"]
    weights["decoder.bias"] = bias + 1e-3 if corruption == "changed" else torch.full_like(bias, float("nan"))
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ParityError, match="logits must match the trained model"):
        check_parity(trained, copy, ("package",))


@pytest.mark.usefixtures("forked")
def test_a_failed_parity_check_keeps_the_older_export(finished, trained, tmp_path):
    recipe, run, _ = finished
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "older").touch()
    tokenizer = open_tokenizer(recipe.store_folder, StoreRecord.read(recipe.store_folder))
    result = json.loads(run.result.read_text())
    trained.decoder.bias.data[0] = float("nan")
    with pytest.raises(ParityError):
        export_folder(trained, tokenizer, recipe, result, folder)
    assert [path.name for path in folder.iterdir()] == ["older"]


def test_the_exported_tokenizer_equals_that_of_the_token_store(finished):
    recipe, run, _ = finished
    exported_tokenizer = AutoTokenizer.from_pretrained(run.hugging_face)
    expected_tokenizer = open_tokenizer(recipe.store_folder, StoreRecord.read(recipe.store_folder))
    assert exported_tokenizer("Return the object.")["input_ids"] == expected_tokenizer.encode("Return the object.").ids
    assert exported_tokenizer.mask_token_id == expected_tokenizer.token_to_id("[MASK]")
    assert exported_tokenizer.model_max_length == 8 * recipe.data.max_seq_len  # the longest measured inputs


def test_the_fill_mask_pipeline_returns_sorted_probabilities(finished):
    recipe, run, _ = finished
    ((sentence, predictions),) = fill_masks(run.hugging_face, recipe.eval.fill_mask)
    assert sentence == recipe.eval.fill_mask[0]
    probabilities = [probability for _, probability in predictions]
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0 < sum(probabilities) < 1


@pytest.fixture
def unfinished_run(finished, tmp_path, monkeypatch):
    """Copy of the run without its result, with an export of each checkpoint. Later exports are checked in one mode."""
    monkeypatch.setattr(
        "mosaicbert.export.hf_folder.check_parity",
        lambda model, folder, _modes: check_parity(model, folder, ("package",)),
    )
    recipe, run, _ = finished
    shutil.copytree(run.path, tmp_path / "tiny", symlinks=True)
    (tmp_path / "tiny" / "result.json").unlink()
    return tiny_recipe(tmp_path, recipe.data.sources["text"].path), RunFolder(tmp_path / "tiny")


@pytest.mark.usefixtures("forked")
def test_the_newest_checkpoint_of_an_unfinished_run_can_be_exported(unfinished_run):
    recipe, run = unfinished_run
    shutil.rmtree(run.hugging_face)
    shutil.rmtree(checkpoint_path(run.checkpoints, 6))
    exported = export_latest(recipe)
    assert exported.path == run.path
    assert "3 steps" in (exported.hugging_face / "README.md").read_text()


def test_a_corrupted_checkpoint_is_reported_and_the_previous_one_is_exported(unfinished_run, capsys):
    recipe, run = unfinished_run
    weights = checkpoint_path(run.checkpoints, 6) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    shutil.rmtree(run.export_of(6))
    export_latest(recipe)
    assert str(weights) in capsys.readouterr().out
    assert "3 steps" in (run.hugging_face / "README.md").read_text()
    assert not run.export_of(6).exists()


def test_exporting_a_run_without_a_valid_checkpoint_is_an_error(unfinished_run):
    recipe, run = unfinished_run
    shutil.rmtree(run.hugging_face)
    for path in list_checkpoints(run.checkpoints):
        (path / "state.json").write_text("{}")
    with pytest.raises(ConfigError, match="must have a valid checkpoint to export") as raised:
        export_latest(recipe)
    assert "\n" not in str(raised.value)


def test_exporting_a_run_that_has_not_started_is_an_error_that_writes_nothing(tmp_path, source):
    with pytest.raises(ConfigError, match="must have a valid checkpoint to export"):
        export_latest(tiny_recipe(tmp_path / "runs", source))
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("forked")
def test_exporting_an_older_checkpoint_keeps_the_links_to_the_newest(unfinished_run):
    _, run = unfinished_run
    shutil.rmtree(run.export_of(3))
    before = (run.hugging_face / "model.safetensors").read_bytes()
    assert export_step(run.path, 3) == run.export_of(3)
    assert (run.hugging_face / "model.safetensors").read_bytes() == before
    assert (run.export_of(3) / "model.safetensors").read_bytes() != before


def test_an_exported_checkpoint_is_not_exported_again(finished):
    _, run, _ = finished
    before = run.export_of(6).stat()
    export_step(run.path, 6)
    assert run.export_of(6).stat() == before


def _folder(path, **files):
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name).write_text(text)
    return path


def test_publish_links_the_files_of_the_newest_export(tmp_path):
    first = _folder(tmp_path / "step-1", weights="1", card="one", gone="old")
    second = _folder(tmp_path / "step-2", weights="2", card="two", fresh="new")
    for newest, expected_files in (
        (first, {"weights": "1", "card": "one", "gone": "old"}),
        (second, {"weights": "2", "card": "two", "fresh": "new"}),
        (second, {"weights": "2", "card": "two", "fresh": "new"}),
        (first, {"weights": "1", "card": "one", "gone": "old"}),
    ):
        publish(tmp_path, newest)
        assert {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()} == expected_files
    assert {path.name for path in first.iterdir()} == {"weights", "card", "gone"}


def test_published_links_are_valid_after_moving_the_parent_folder(tmp_path):
    publish(tmp_path / "hf", _folder(tmp_path / "hf" / "step-1", card="one"))
    (tmp_path / "hf").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "card").read_text() == "one"


def test_publish_keeps_files_that_are_not_links(tmp_path):
    (tmp_path / "notes").write_text("user notes")
    publish(tmp_path, _folder(tmp_path / "step-1", card="one"))
    assert (tmp_path / "notes").read_text() == "user notes"


def test_weights_with_mismatched_shapes_are_an_error(finished, trained):
    recipe, _, _ = finished
    narrower = replace(recipe, model=replace(recipe.model, hidden_size=16))
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_model(narrower, trained.state_dict())


def test_the_published_layout_reproduces_all_weights(trained, tmp_path):
    save_published(trained, tmp_path / "published")
    names = torch.load(tmp_path / "published" / "pytorch_model.bin", weights_only=True)
    assert "bert.encoder.layer.1.mlp.gated_layers.weight" in names
    reloaded = MosaicBertForMaskedLM.from_pretrained(tmp_path / "published")
    for (name, weight), reloaded_weight in zip(
        trained.state_dict().items(), reloaded.state_dict().values(), strict=True
    ):
        assert torch.equal(weight, reloaded_weight), name


def test_a_summary_before_the_first_evaluation_has_no_evaluation_metrics(finished):
    recipe, run, _ = finished
    state = read_state(checkpoint_path(run.checkpoints, 3))
    state["position"]["steps"] = 1
    summary = summarize(read_metrics(run.metrics), state, StoreRecord.read(recipe.store_folder))
    assert (summary.steps, summary.eval_loss, summary.eval_accuracy) == (1, None, None)


def test_a_summary_of_a_checkpoint_contains_the_metrics_of_its_step(finished):
    recipe, run, _ = finished
    metrics = read_metrics(run.metrics)
    state = read_state(checkpoint_path(run.checkpoints, 3))
    summary = summarize(metrics, state, StoreRecord.read(recipe.store_folder))
    (training,) = (line for line in metrics if line["step"] == 3 and "loss" in line)
    (evaluation,) = (line for line in metrics if line["step"] == 3 and "eval_loss" in line)
    assert (summary.steps, summary.samples, summary.tokens) == (3, 48, training["tokens"])
    assert (summary.train_loss, summary.eval_loss) == (training["loss"], evaluation["eval_loss"])


@pytest.mark.usefixtures("forked")
def test_a_bert_baseline_is_exported_as_hugging_face_bert(finished, tmp_path):
    recipe, run, _ = finished
    shape = replace(recipe.model, architecture="bert", attention_probs_dropout_prob=0.1)
    baseline = replace(recipe, model=shape)
    tokenizer = open_tokenizer(recipe.store_folder, StoreRecord.read(recipe.store_folder))
    result = json.loads(run.result.read_text())
    export_folder(build_model(shape).eval(), tokenizer, baseline, result, tmp_path / "hf")
    assert isinstance(AutoModelForMaskedLM.from_pretrained(tmp_path / "hf"), BertForMaskedLM)
    # The embeddings of later positions are untrained.
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").model_max_length == recipe.data.max_seq_len
    assert not list((tmp_path / "hf").glob("*.py"))
