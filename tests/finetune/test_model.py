"""Tests of loading MosaicBERT and Hugging Face encoders with a new classifier."""

import json
import shutil

import pytest
import torch
from transformers import BertForMaskedLM, XLMConfig, XLMForSequenceClassification

from mosaicbert.config import ConfigError
from mosaicbert.finetune.metrics import REGRESSION, SINGLE_LABEL
from mosaicbert.finetune.model import (
    find_output_layer,
    is_unpadded,
    load_classifier,
    max_input_length,
    save_encoder,
    scale_output,
)
from mosaicbert.model.modeling import MosaicBertForSequenceClassification
from mosaicbert.model.pretrained import load_pretrained_tokenizer
from tests.finetune.encoders import load_test_classifier

_FOLDERS = ["mosaicbert_folder", "bert_folder"]  # names of fixtures
_NEW_WEIGHTS = {  # other new parameters are biases, which are zero for every seed
    "mosaicbert_folder": ("classifier.dense.weight", "classifier.out_proj.weight"),
    "bert_folder": ("bert.pooler.dense.weight", "classifier.weight"),
}
_OUTPUT_LAYERS = {"mosaicbert_folder": "classifier.out_proj", "bert_folder": "classifier"}


@pytest.mark.parametrize("fixture", _FOLDERS)
def test_only_new_weights_depend_on_the_seed(fixture, request):
    name = request.getfixturevalue(fixture)
    first, same_seed, other_seed = (load_test_classifier(name, seed=seed) for seed in (19, 19, 8364))
    for key, weight in first.state_dict().items():
        assert torch.equal(same_seed.state_dict()[key], weight), key
        is_new = key in _NEW_WEIGHTS[fixture]
        assert torch.equal(other_seed.state_dict()[key], weight) != is_new, key
    assert is_unpadded(first) == (fixture == "mosaicbert_folder")


def test_the_encoder_has_the_pretrained_weights(bert_folder):
    pretrained = BertForMaskedLM.from_pretrained(bert_folder).bert.state_dict()
    loaded = load_test_classifier(bert_folder).bert.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in pretrained.items())


@pytest.mark.parametrize("kind", ["masked_lm", "sequence_classification"])
def test_a_published_mosaicbert_is_loaded_as_a_mosaicbert(kind, original_mosaicbert):
    model = load_test_classifier(str(original_mosaicbert / kind))
    assert isinstance(model, MosaicBertForSequenceClassification)


@pytest.mark.parametrize("fixture", _FOLDERS)
def test_a_saved_encoder_is_loaded_with_a_new_classifier(fixture, request, tmp_path):
    name = request.getfixturevalue(fixture)
    first = load_test_classifier(name, num_labels=3)
    with torch.no_grad():
        for weight in first.parameters():
            weight += 1.0
    save_encoder(first, load_pretrained_tokenizer(name), tmp_path)
    second = load_test_classifier(str(tmp_path), num_labels=1, problem_type=REGRESSION)
    output_layer = second.get_submodule(_OUTPUT_LAYERS[fixture])
    assert output_layer.out_features == 1
    encoder_keys = [key for key in first.state_dict() if not key.startswith(f"{_OUTPUT_LAYERS[fixture]}.")]
    assert len(encoder_keys) == len(first.state_dict()) - 2
    assert all(torch.equal(second.state_dict()[key], first.state_dict()[key]) for key in encoder_keys)
    assert float(output_layer.weight.detach().abs().max()) < 0.5


@pytest.mark.parametrize("fixture", _FOLDERS)
def test_dropout_can_be_changed(fixture, request):
    name = request.getfixturevalue(fixture)
    changed, unchanged = (
        load_classifier(name, num_labels=2, problem_type=SINGLE_LABEL, seed=19, dropout=dropout)
        for dropout in (0.25, None)
    )
    probabilities = {module.p for module in changed.modules() if isinstance(module, torch.nn.Dropout)}
    assert changed.config.hidden_dropout_prob == 0.25
    # The dropout of the attention of a BERT is another setting.
    assert probabilities == {0.25, *([0.1] if fixture == "bert_folder" else [])}
    assert unchanged.config.hidden_dropout_prob != 0.25
    inputs = {"input_ids": torch.arange(5, 25)[None]}
    assert torch.equal(changed.eval()(**inputs).logits, unchanged.eval()(**inputs).logits)
    first, second = (changed.train()(**inputs).logits for _ in range(2))
    assert not torch.equal(first, second)


def test_dropout_of_an_encoder_with_other_names_is_an_error(tmp_path):
    sizes = {"emb_dim": 8, "n_layers": 1, "n_heads": 1}
    XLMForSequenceClassification(XLMConfig(vocab_size=16, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"`dropout` must be null for .* no `hidden_dropout_prob`, got 0.1"):
        load_classifier(str(tmp_path), num_labels=2, problem_type=SINGLE_LABEL, seed=19, dropout=0.1)


def test_an_empty_folder_is_rejected(tmp_path):
    with pytest.raises(ConfigError, match="cannot be loaded as a classifier"):
        load_test_classifier(str(tmp_path))
    with pytest.raises(ConfigError, match="does not have a usable tokenizer"):
        load_pretrained_tokenizer(str(tmp_path))


@pytest.mark.parametrize("change", [-1, 1], ids=["more-tokens-than-the-model", "fewer-tokens-than-the-model"])
def test_only_a_tokenizer_with_more_tokens_than_the_model_is_rejected(change, bert_folder, tmp_path):
    shutil.copytree(bert_folder, tmp_path / "model")
    config_path = tmp_path / "model" / "config.json"
    size = len(load_pretrained_tokenizer(bert_folder)) + change
    config_path.write_text(json.dumps(json.loads(config_path.read_text()) | {"vocab_size": size}))
    if change > 0:
        assert load_pretrained_tokenizer(str(tmp_path / "model"))
        return
    message = rf"does not have a usable tokenizer \(it must have at most the {size:,} tokens of the model"
    with pytest.raises(ConfigError, match=message):
        load_pretrained_tokenizer(str(tmp_path / "model"))


def test_a_model_without_tokenizer_files_is_rejected(bert_folder, tmp_path):
    BertForMaskedLM.from_pretrained(bert_folder).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="does not have a usable tokenizer"):
        load_pretrained_tokenizer(str(tmp_path))


def test_weights_of_a_different_architecture_are_rejected(bert_folder, tmp_path):
    model = BertForMaskedLM.from_pretrained(bert_folder)
    renamed = {name.replace("attention", "mixing"): weight for name, weight in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=renamed)
    with pytest.raises(ConfigError, match="must match BertForSequenceClassification"):
        load_test_classifier(str(tmp_path))


@pytest.mark.parametrize("fixture", _FOLDERS)
def test_weights_of_a_different_shape_are_rejected(fixture, request, tmp_path):
    shutil.copytree(request.getfixturevalue(fixture), tmp_path / "model")
    config_path = tmp_path / "model" / "config.json"
    config = json.loads(config_path.read_text())
    config_path.write_text(json.dumps(config | {"intermediate_size": 2 * config["intermediate_size"]}))
    with pytest.raises(ConfigError, match="missing or mismatched weights, such as"):
        load_test_classifier(str(tmp_path / "model"))


@pytest.mark.parametrize("fixture", _FOLDERS)
@pytest.mark.parametrize("num_labels", [2, 3])
def test_an_existing_classifier_is_replaced(fixture, num_labels, request, tmp_path):
    before = load_test_classifier(request.getfixturevalue(fixture), seed=1)
    before.save_pretrained(tmp_path)
    after = load_test_classifier(str(tmp_path), num_labels=num_labels, seed=2)
    after_layer, before_layer = (model.get_submodule(_OUTPUT_LAYERS[fixture]) for model in (after, before))
    assert after_layer.out_features == num_labels
    assert not torch.equal(after_layer.weight[:2], before_layer.weight)


def test_an_existing_classifier_of_xlm_is_replaced(tmp_path):
    config = XLMConfig(vocab_size=512, emb_dim=32, n_layers=1, n_heads=2, num_labels=3)
    before = XLMForSequenceClassification(config)
    before.save_pretrained(tmp_path)
    after = load_test_classifier(str(tmp_path), num_labels=3, seed=2)
    assert not torch.equal(after.sequence_summary.summary.weight, before.sequence_summary.summary.weight)
    assert torch.equal(after.transformer.embeddings.weight, before.transformer.embeddings.weight)


def test_position_embeddings_limit_the_input_length(mosaicbert_folder, bert_folder):
    assert max_input_length(load_test_classifier(bert_folder), 256) == 48
    assert max_input_length(load_test_classifier(mosaicbert_folder), 256) == 256


@pytest.mark.parametrize("fixture", _FOLDERS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_the_output_of_a_regression_is_scaled(fixture, has_bias, request):
    model = load_test_classifier(request.getfixturevalue(fixture), num_labels=1, problem_type=REGRESSION).eval()
    inputs = {"input_ids": torch.tensor([[2, 9, 10, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    layer = find_output_layer(model)
    if not has_bias:
        layer.bias = None
    expected = 300.0 * model(**inputs).logits + (7.0 if has_bias else 0.0)
    scale_output(layer, 300.0, 7.0 if has_bias else 0.0)
    torch.testing.assert_close(model(**inputs).logits, expected)


def test_a_model_with_several_outputs_has_no_output_layer_of_a_regression(mosaicbert_folder):
    with pytest.raises(ConfigError, match="must have one linear layer with one output for a regression, got 0"):
        find_output_layer(load_test_classifier(mosaicbert_folder))
