"""Tests of the command `export` for Hugging Face folders and published checkpoints."""

import json
import shutil

import onnxruntime
import pytest
import torch
from composer import Trainer
from composer.models import HuggingFaceModel
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
)

from mosaicbert.cli import _ONNX_TASKS, main
from mosaicbert.export.onnx import TASKS
from mosaicbert.model.modeling import MosaicBertForMaskedLM, MosaicBertForSequenceClassification, MosaicBertModel
from tests.model.test_inputs import make_inputs, make_model


def run(*arguments):
    with pytest.raises(SystemExit) as exit_info:
        main(["export", *map(str, arguments)])
    return exit_info.value.code


def test_the_command_lists_the_tasks_of_onnx():
    assert tuple(TASKS) == _ONNX_TASKS


def test_an_onnx_file_is_written_beside_the_weights(tmp_path, capsys):
    model = make_model(MosaicBertForSequenceClassification)
    model.save_pretrained(tmp_path)
    assert run(tmp_path, "--format", "onnx") == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "model.onnx")
    inputs = make_inputs()
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (logits,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})
    torch.testing.assert_close(torch.from_numpy(logits), model(**inputs).logits.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_class", [MosaicBertModel, MosaicBertForMaskedLM, MosaicBertForSequenceClassification])
def test_a_folder_is_written_in_the_published_layout(model_class, finished, tmp_path):
    model = make_model(model_class)
    model.save_pretrained(tmp_path / "model")
    _, trained, _ = finished
    for path in trained.hugging_face.glob("token*.json"):
        shutil.copy(path, tmp_path / "model")
    model.resize_token_embeddings(512)
    model.save_pretrained(tmp_path / "model")
    assert run(tmp_path / "model", "--format", "published", "--output", tmp_path / "published") == 0
    loaded = model_class.from_pretrained(tmp_path / "published")
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in model.state_dict().items())


def test_a_published_checkpoint_with_a_tokenizer_is_converted(original_mosaicbert, finished, tmp_path):
    _, trained, _ = finished
    published = tmp_path / "published"
    published.mkdir()
    for path in (original_mosaicbert / "masked_lm").iterdir():
        (published / path.name).symlink_to(path)
    for path in trained.hugging_face.glob("token*.json"):
        (published / path.name).symlink_to(path)
    assert run(published, "--output", tmp_path / "converted") == 0
    converted = AutoModelForMaskedLM.from_pretrained(tmp_path / "converted")
    expected = MosaicBertForMaskedLM.from_pretrained(published).state_dict()
    assert all(torch.equal(weight, converted.state_dict()[name]) for name, weight in expected.items())
    config = json.loads((tmp_path / "converted" / "config.json").read_text())
    assert config["model_type"] == "mosaicbert" and "AutoModelForMaskedLM" in config["auto_map"]
    assert (tmp_path / "converted" / "tokenizer.json").exists()


def save_composer_checkpoint(model, tokenizer, config, folder):
    """Let Composer's Trainer save a checkpoint of a Hugging Face model, with the configuration of the original code."""
    examples = [{name: tensor[0] for name, tensor in make_inputs().items()}]
    wrapped = HuggingFaceModel(model, tokenizer=tokenizer)
    wrapped.config = BertConfig(**config)
    trainer = Trainer(
        model=wrapped,
        train_dataloader=DataLoader(examples),
        max_duration="0ba",
        optimizers=torch.optim.AdamW(model.parameters()),
        progress_bar=False,
    )
    path = trainer.save_checkpoint(str(folder / "ep0-ba0-rank0.pt"))
    trainer.close()
    return path


@pytest.mark.parametrize(
    "name, model_class, auto_class",
    [
        ("masked_lm", MosaicBertForMaskedLM, AutoModelForMaskedLM),
        ("sequence_classification", MosaicBertForSequenceClassification, AutoModelForSequenceClassification),
    ],
)
def test_a_composer_checkpoint_of_the_original_code_is_converted(
    name, model_class, auto_class, original_mosaicbert, finished, tmp_path
):
    folder = original_mosaicbert / name
    expected = model_class.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(finished[1].hugging_face)
    config = json.loads((folder / "config.json").read_text())
    config.pop("architectures")  # as if the model had not been created by from_pretrained
    weights = torch.load(folder / "pytorch_model.bin")
    checkpoint = save_composer_checkpoint(expected, tokenizer, config, tmp_path)
    state = torch.load(checkpoint, weights_only=False)
    state["state"]["model"] = {f"model.{key}": tensor for key, tensor in weights.items()}
    torch.save(state, checkpoint)
    assert run(checkpoint, "--output", tmp_path / "converted") == 0
    converted = auto_class.from_pretrained(tmp_path / "converted")
    assert all(torch.equal(weight, converted.state_dict()[key]) for key, weight in expected.state_dict().items())
    assert AutoTokenizer.from_pretrained(tmp_path / "converted").get_vocab() == tokenizer.get_vocab()


class Code:
    def __reduce__(self):
        return print, ("code of the file",)


@pytest.mark.parametrize(
    "state, message",
    [
        ({"state": {"model": {"model.x": Code()}}}, "got UnpicklingError while reading it"),
        ({"model": {}}, "got KeyError while reading it"),
        ({"state": {"model": {}, "integrations": {}}}, "got KeyError while reading it"),
        (
            {"state": {"model": {}, "integrations": {"huggingface": {"model": {"config": {"content": {}}}}}}},
            "has no `alibi_starting_size`",
        ),
    ],
)
def test_another_file_than_a_checkpoint_of_mosaicbert_is_an_error(state, message, tmp_path, capsys):
    torch.save(state, tmp_path / "other.pt")
    assert run(tmp_path / "other.pt", "--output", tmp_path / "new") == 2
    printed = capsys.readouterr()
    assert message in printed.err and "code of the file" not in printed.out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--format", "onnx", "--output", "new"], "`--output` is not supported with `--format onnx`"),
        (["--format", "published"], "`--output` must be a new folder for `--format published`, got none"),
        (["--output", "model"], "must be a new folder for `--format huggingface`, got model, which exists"),
        (["--output", "new", "--task", "fill-mask"], "`--task` is not supported with `--format huggingface`"),
        ([], "must have --format, --output or --push and no overrides, got none of them"),
        (["run_name=x", "--format", "onnx"], "must have --format, --output or --push and no overrides, got overrides"),
    ],
)
def test_an_unusable_output_is_an_error(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_model(MosaicBertForMaskedLM).save_pretrained("model")
    assert run("model", *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_bert_of_hugging_face_is_an_error(tmp_path, capsys):
    sizes = {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 8}
    BertForMaskedLM(BertConfig(vocab_size=16, **sizes)).save_pretrained(tmp_path / "bert")
    assert run(tmp_path / "bert", "--output", tmp_path / "new") == 2
    assert "must be a folder of a MosaicBERT, got model_type 'bert'" in capsys.readouterr().err
