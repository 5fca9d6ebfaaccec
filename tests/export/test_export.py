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
from mosaicbert.data.store import StoreRecord, open_tokenizer
from mosaicbert.export.checkpoint import load_checkpoint, save_published
from mosaicbert.export.folder import export_folder
from mosaicbert.export.parity import ParityError, _link_requirements, check_parity
from mosaicbert.export.prompts import fill_masks
from mosaicbert.model.build import build_model
from mosaicbert.train.monitor import read_metrics
from mosaicbert.train.result import export_latest, summarise
from tests.recipes import tiny_recipe


@pytest.fixture
def trained(finished):
    recipe, run, _ = finished
    return load_checkpoint(recipe, run.latest_checkpoint())[0]


def test_a_folder_holds_what_hugging_face_users_expect(finished):
    _, run, _ = finished
    names = {path.name for path in run.hugging_face.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "README.md"} <= names
    assert not list(run.path.glob("hf.*"))


def test_the_card_gives_the_recipe_and_the_losses(finished):
    recipe, run, _ = finished
    card = (run.hugging_face / "README.md").read_text()
    result = json.loads(run.result.read_text())
    assert f"{result['eval_loss']:.4f} nats" in card
    assert f"{result['train_loss']:.4f} nats" in card
    assert f"total_samples: {recipe.train.total_samples}" in card


@pytest.mark.parametrize("mode", ["package", "remote_code"])
def test_a_folder_gives_the_trained_models_logits_in_a_process_of_its_own(finished, trained, mode):
    _, run, _ = finished
    check_parity(trained, run.hugging_face, (mode,))


def test_remote_code_is_loaded_where_neither_this_package_nor_its_trainer_can_be_imported(finished, tmp_path):
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
        "print(type(encoder).__name__, classifier.classifier.out_features)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    answer = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert answer.stdout.strip() == "MosaicBertModel 4", answer.stderr


@pytest.mark.parametrize("damage", ["changed", "nan"])
def test_a_folder_with_other_weights_fails_the_gate(finished, trained, tmp_path, damage):
    _, run, _ = finished
    copy = tmp_path / "hf"
    shutil.copytree(run.hugging_face, copy)
    weights = load_file(copy / "model.safetensors")
    bias = weights["decoder.bias"]
    weights["decoder.bias"] = bias + 1e-3 if damage == "changed" else torch.full_like(bias, float("nan"))
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ParityError, match="logits differ"):
        check_parity(trained, copy, ("package",))


def test_an_export_that_fails_the_gate_leaves_the_older_one_in_place(finished, trained, tmp_path):
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


def test_the_tokenizer_of_a_folder_is_the_stores(finished):
    recipe, run, _ = finished
    theirs = AutoTokenizer.from_pretrained(run.hugging_face)
    ours = open_tokenizer(recipe.store_folder, StoreRecord.read(recipe.store_folder))
    assert theirs("Return the object.")["input_ids"] == ours.encode("Return the object.").ids
    assert theirs.mask_token_id == ours.token_to_id("[MASK]")
    assert theirs.model_max_length == recipe.data.max_seq_len


def test_the_fill_mask_pipeline_answers(finished):
    recipe, run, _ = finished
    ((sentence, guesses),) = fill_masks(run.hugging_face, recipe.eval.fill_mask)
    assert sentence == recipe.eval.fill_mask[0]
    shares = [share for _, share in guesses]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) < 1


def test_the_newest_checkpoint_of_an_unfinished_run_can_be_exported(finished, tmp_path):
    recipe, run, _ = finished
    shutil.copytree(run.path, tmp_path / "tiny")
    shutil.rmtree(tmp_path / "tiny" / "hf")
    moved = tiny_recipe(tmp_path, recipe.data.sources["text"].path)
    latest = tmp_path / "tiny" / "checkpoints" / "latest-rank0.pt"
    latest.unlink()
    latest.symlink_to("step-3-rank0.pt")
    exported = export_latest(moved)
    assert "3 steps" in (exported.hugging_face / "README.md").read_text()


def test_weights_survive_the_published_layout_and_back(trained, tmp_path):
    save_published(trained, tmp_path / "published")
    names = torch.load(tmp_path / "published" / "pytorch_model.bin", weights_only=True)
    assert "bert.encoder.layer.1.mlp.gated_layers.weight" in names
    back = MosaicBertForMaskedLM.from_pretrained(tmp_path / "published")
    for (name, ours), theirs in zip(trained.state_dict().items(), back.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_summary_before_the_first_evaluation_has_none(finished):
    recipe, run, _ = finished
    first = [line for line in read_metrics(run.metrics) if line["step"] == 1]
    summary = summarise(first, StoreRecord.read(recipe.store_folder))
    assert (summary.steps, summary.eval_loss) == (1, None)


def test_the_baseline_exports_as_hugging_faces_own_bert(finished, tmp_path):
    recipe, run, _ = finished
    shape = replace(recipe.model, architecture="bert", attention_probs_dropout_prob=0.1)
    baseline = replace(recipe, model=shape)
    tokenizer = open_tokenizer(recipe.store_folder, StoreRecord.read(recipe.store_folder))
    result = json.loads(run.result.read_text())
    export_folder(build_model(shape).eval(), tokenizer, baseline, result, tmp_path / "hf")
    assert isinstance(AutoModelForMaskedLM.from_pretrained(tmp_path / "hf"), BertForMaskedLM)
    assert not list((tmp_path / "hf").glob("*.py"))
