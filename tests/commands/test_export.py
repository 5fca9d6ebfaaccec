"""Tests of the command `export` for Hugging Face folders and published checkpoints."""

import json
import shutil

import onnxruntime
import pytest
import torch
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM

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
