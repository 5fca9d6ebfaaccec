"""Export to ONNX, and the libraries that read it."""

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import BertConfig

from mosaicbert import (
    MosaicBertConfig,
    MosaicBertForMaskedLM,
    MosaicBertForQuestionAnswering,
    MosaicBertForSequenceClassification,
    MosaicBertForTokenClassification,
    MosaicBertModel,
)
from mosaicbert.config import ConfigError
from mosaicbert.export import onnx as onnx_export
from mosaicbert.export.onnx import export_onnx
from mosaicbert.export.parity import ParityError
from tests.model.test_inputs import SIZES, make_inputs
from tests.tokenizers import letter_tokenizer

CLASSES = [
    MosaicBertForSequenceClassification,
    pytest.param(MosaicBertModel, marks=pytest.mark.slow),
    pytest.param(MosaicBertForMaskedLM, marks=pytest.mark.slow),
    pytest.param(MosaicBertForTokenClassification, marks=pytest.mark.slow),
    pytest.param(MosaicBertForQuestionAnswering, marks=pytest.mark.slow),
]


def save_model(model_class, folder):
    torch.manual_seed(2)
    model = model_class(MosaicBertConfig(**SIZES)).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("model_class", CLASSES, ids=lambda model_class: model_class.__name__)
def test_onnxruntime_reproduces_uneven_batches(model_class, tmp_path):
    model = save_model(model_class, tmp_path)
    session = onnxruntime.InferenceSession(export_onnx(tmp_path), providers=["CPUExecutionProvider"])
    for seqlens in ((1,), (5, 9, 1, 7), (3, 100, 77)):
        inputs = make_inputs(seqlens)
        with torch.no_grad():
            expected = model(**inputs).to_tuple()
        actual = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        for output, values in zip(actual, expected, strict=True):
            np.testing.assert_allclose(output, values.numpy(), rtol=1e-4, atol=1e-4)


def test_openvino_reproduces_uneven_batches(tmp_path):
    model = save_model(MosaicBertForMaskedLM, tmp_path)
    compiled = openvino.compile_model(export_onnx(tmp_path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for seqlens in ((5, 9, 1, 7), (3, 60)):
        inputs = make_inputs(seqlens)
        with torch.no_grad():
            expected = model(**inputs).logits.numpy()
        actual = compiled({name: tensor.numpy() for name, tensor in inputs.items()})["logits"]
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_another_task_of_the_encoder_can_be_exported(tmp_path):
    model = save_model(MosaicBertForMaskedLM, tmp_path)
    session = onnxruntime.InferenceSession(export_onnx(tmp_path, "feature-extraction"))
    inputs = make_inputs()
    (actual,) = session.run(["last_hidden_state"], {name: tensor.numpy() for name, tensor in inputs.items()})
    with torch.no_grad():
        expected = model.model(**inputs).last_hidden_state.numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_bert_of_hugging_face_is_an_error(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(
        ConfigError, match=r"must be a folder of a MosaicBERT, got model_type 'bert'\. Export .* optimum"
    ):
        export_onnx(tmp_path)


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_a_task_without_a_trained_head_is_an_error(task, tmp_path):
    save_model(MosaicBertForMaskedLM, tmp_path)
    with pytest.raises(ConfigError, match=r"got no weights of classifier\..*Fine-tune the model for this task first"):
        export_onnx(tmp_path, task)


def test_a_classifier_has_no_masked_language_model(tmp_path):
    save_model(MosaicBertForSequenceClassification, tmp_path)
    with pytest.raises(ConfigError, match=r"must be a folder of ModelForMaskedLM, got .* missing weights"):
        export_onnx(tmp_path, "fill-mask")


@pytest.mark.slow
def test_the_torchscript_exporter_gives_the_same_outputs(tmp_path):
    model = save_model(MosaicBertForSequenceClassification, tmp_path)
    inputs, names = make_inputs(), ["input_ids", "attention_mask", "token_type_ids"]
    axes = {name: {0: "batch", 1: "sequence"} for name in names}
    model.config.return_dict = False
    torch.onnx.export(
        model, tuple(inputs.values()), tmp_path / "model.onnx", input_names=names, dynamic_axes=axes, dynamo=False
    )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for batch in (inputs, make_inputs((3, 60))):
        (logits,) = session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, model(**batch)[0].numpy(), rtol=1e-4, atol=1e-4)


def test_wrong_outputs_keep_the_older_file(tmp_path, monkeypatch):
    save_model(MosaicBertForMaskedLM, tmp_path)
    (tmp_path / "model.onnx").write_text("older")
    monkeypatch.setattr(onnx_export, "TOLERANCE", 0.0)
    with pytest.raises(ParityError, match="must reproduce `logits` within 0, got a difference of"):
        export_onnx(tmp_path)
    assert (tmp_path / "model.onnx").read_text() == "older"
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


@pytest.mark.parametrize(
    "content",
    [None, "{", '{"model_type": "mosaicbert", "architectures": ["MosaicBertForMultipleChoice"]}'],
    ids=["no-file", "invalid", "no-task"],
)
def test_a_folder_without_a_known_class_is_an_error(content, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"must be a Hugging Face folder|must name a class that ends with"):
        export_onnx(tmp_path)


@pytest.fixture
def embedding_folder(tmp_path):
    """Folder of an encoder with a tokenizer, saved by sentence-transformers."""
    save_model(MosaicBertForMaskedLM, tmp_path / "encoder")
    letter_tokenizer().save_pretrained(tmp_path / "encoder")
    SentenceTransformer(str(tmp_path / "encoder"), device="cpu").save(str(tmp_path / "embeddings"))
    return tmp_path / "embeddings"


def test_a_saved_embedding_model_loads_its_onnx_file(embedding_folder):
    texts = ["a b c", "d", "e f g h i j k l m n"]
    expected = SentenceTransformer(str(embedding_folder), device="cpu").encode(texts)
    assert list(embedding_folder.glob("*.py"))  # the code, so that it loads without this package
    session = onnxruntime.InferenceSession(export_onnx(embedding_folder))
    assert [output.name for output in session.get_outputs()] == ["last_hidden_state"]
    encoded = SentenceTransformer(str(embedding_folder), device="cpu").tokenizer(
        texts, padding=True, return_tensors="np", return_token_type_ids=True
    )
    (states,) = session.run(None, {name: encoded[name] for name in ("input_ids", "attention_mask", "token_type_ids")})
    weights = encoded["attention_mask"][:, :, None]
    np.testing.assert_allclose((states * weights).sum(1) / weights.sum(1), expected, rtol=1e-4, atol=1e-4)
