"""Encoders with a new classifier: ours, a published one, and Hugging Face's, by one road."""

import json
import shutil

import pytest
import torch
from transformers import BertForMaskedLM, XLMConfig, XLMForSequenceClassification

from mosaicbert.config import ConfigError
from mosaicbert.finetune.metrics import REGRESSION
from mosaicbert.finetune.model import is_unpadded, load_pretrained_tokenizer, max_input_length, save_encoder
from mosaicbert.model.modeling import MosaicBertForSequenceClassification
from tests.finetune.encoders import load_fresh


@pytest.mark.parametrize("kind", ["mosaicbert_folder", "bert_folder"])
def test_only_the_new_weights_depend_on_the_seed(kind, request):
    name = request.getfixturevalue(kind)
    first, repeated, other = load_fresh(name), load_fresh(name), load_fresh(name, seed=8364)
    for key, weight in first.state_dict().items():
        assert torch.equal(repeated.state_dict()[key], weight), key
        is_new = key in ("classifier.weight", "pooler.dense.weight", "bert.pooler.dense.weight")
        assert torch.equal(other.state_dict()[key], weight) != is_new, key
    assert is_unpadded(first) == (kind == "mosaicbert_folder")


def test_the_encoder_is_that_of_the_folder(bert_folder):
    pretrained = BertForMaskedLM.from_pretrained(bert_folder).bert.state_dict()
    loaded = load_fresh(bert_folder).bert.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in pretrained.items())


@pytest.mark.parametrize("kind", ["masked_lm", "sequence_classification"])
def test_a_published_mosaicbert_is_loaded_as_one(kind, original_mosaicbert):
    assert isinstance(load_fresh(str(original_mosaicbert / kind)), MosaicBertForSequenceClassification)


@pytest.mark.parametrize("kind", ["mosaicbert_folder", "bert_folder"])
def test_another_task_begins_with_the_encoder_and_a_new_classifier(kind, request, tmp_path):
    name = request.getfixturevalue(kind)
    first = load_fresh(name, num_labels=3)
    with torch.no_grad():
        for weight in first.parameters():
            weight += 1.0
    save_encoder(first, load_pretrained_tokenizer(name), tmp_path)
    second = load_fresh(str(tmp_path), num_labels=1, problem_type=REGRESSION)
    assert second.classifier.out_features == 1
    encoder_keys = [key for key in first.state_dict() if not key.startswith("classifier.")]
    assert any("pooler" in key for key in encoder_keys)
    assert all(torch.equal(second.state_dict()[key], first.state_dict()[key]) for key in encoder_keys)
    assert float(second.classifier.weight.detach().abs().max()) < 0.5


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is no encoder that can be fine-tuned"):
        load_fresh(str(tmp_path))
    with pytest.raises(ConfigError, match="has no tokenizer that fits"):
        load_pretrained_tokenizer(str(tmp_path))


@pytest.mark.parametrize("change", [-1, 1], ids=["too-many-tokens", "as-many"])
def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(change, bert_folder, tmp_path):
    shutil.copytree(bert_folder, tmp_path / "model")
    written = tmp_path / "model" / "config.json"
    size = len(load_pretrained_tokenizer(bert_folder)) + change
    written.write_text(json.dumps(json.loads(written.read_text()) | {"vocab_size": size}))
    if change > 0:
        assert load_pretrained_tokenizer(str(tmp_path / "model"))
        return
    with pytest.raises(ConfigError, match=r"has no tokenizer that fits: .* tokens were found, and the model has"):
        load_pretrained_tokenizer(str(tmp_path / "model"))


def test_a_model_without_its_tokenizers_files_is_refused(bert_folder, tmp_path):
    BertForMaskedLM.from_pretrained(bert_folder).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no tokenizer that fits"):
        load_pretrained_tokenizer(str(tmp_path))


def test_weights_of_another_kind_of_model_are_refused(bert_folder, tmp_path):
    model = BertForMaskedLM.from_pretrained(bert_folder)
    renamed = {name.replace("attention", "mixing"): weight for name, weight in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=renamed)
    with pytest.raises(ConfigError, match="its weights are not those of BertForSequenceClassification"):
        load_fresh(str(tmp_path))


@pytest.mark.parametrize("kind", ["mosaicbert_folder", "bert_folder"])
def test_weights_of_another_shape_are_refused(kind, request, tmp_path):
    shutil.copytree(request.getfixturevalue(kind), tmp_path / "model")
    written = tmp_path / "model" / "config.json"
    config = json.loads(written.read_text())
    written.write_text(json.dumps(config | {"intermediate_size": 2 * config["intermediate_size"]}))
    with pytest.raises(ConfigError, match="are missing or of another shape"):
        load_fresh(str(tmp_path / "model"))


@pytest.mark.parametrize("kind", ["mosaicbert_folder", "bert_folder"])
@pytest.mark.parametrize("num_labels", [2, 3])
def test_a_classifier_that_is_there_is_left_behind(kind, num_labels, request, tmp_path):
    before = load_fresh(request.getfixturevalue(kind), seed=1)
    before.save_pretrained(tmp_path)
    after = load_fresh(str(tmp_path), num_labels=num_labels, seed=2)
    assert after.classifier.out_features == num_labels
    assert not torch.equal(after.classifier.weight[:2], before.classifier.weight)


def test_the_classifier_of_an_xlm_is_left_behind_as_well(tmp_path):
    config = XLMConfig(vocab_size=512, emb_dim=32, n_layers=1, n_heads=2, num_labels=3)
    before = XLMForSequenceClassification(config)
    before.save_pretrained(tmp_path)
    after = load_fresh(str(tmp_path), num_labels=3, seed=2)
    assert not torch.equal(after.sequence_summary.summary.weight, before.sequence_summary.summary.weight)
    assert torch.equal(after.transformer.embeddings.weight, before.transformer.embeddings.weight)


def test_a_model_with_positions_is_given_no_more_tokens_than_it_has(mosaicbert_folder, bert_folder):
    assert max_input_length(load_fresh(bert_folder), 256) == 48
    assert max_input_length(load_fresh(mosaicbert_folder), 256) == 256
