import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
)

import mosaicbert  # noqa: F401 - registers the classes
from mosaicbert.model.configuration import MosaicBertConfig
from mosaicbert.model.modeling import MosaicBertForMaskedLM, MosaicBertForSequenceClassification
from mosaicbert.model.published import _NAME_PAIRS, published_key_mapping, to_published

HEADS = {"masked_lm": MosaicBertForMaskedLM, "sequence_classification": MosaicBertForSequenceClassification}
AUTO_CLASSES = {"masked_lm": AutoModelForMaskedLM, "sequence_classification": AutoModelForSequenceClassification}


def apply_key_mapping(name, model_class):
    mapping = published_key_mapping(model_class._has_classification_head)
    matches = [(pattern, internal) for pattern, internal in mapping.items() if re.search(pattern, name)]
    assert len(matches) <= 1, f"{name} must match at most one pattern, got {len(matches)}"
    return re.sub(*matches[0], name) if matches else name


def test_the_name_mapping_is_one_to_one():
    published, internal = zip(*_NAME_PAIRS, strict=True)
    assert len(set(published)) == len(set(internal)) == len(_NAME_PAIRS)


@pytest.mark.parametrize("model_class", HEADS.values(), ids=HEADS.keys())
def test_published_names_of_all_weights_map_back_to_the_weights(model_class):
    config = MosaicBertConfig(
        vocab_size=64, hidden_size=8, num_hidden_layers=12, num_attention_heads=2, intermediate_size=8
    )
    with torch.device("meta"):
        state = model_class(config).state_dict()
    published = to_published(state)
    assert len(published) == len(state)
    assert [apply_key_mapping(name, model_class) for name in published] == list(state)


def test_a_layer_index_of_two_digits_is_kept():
    weight = torch.ones(1)
    assert to_published({"model.layers.11.mlp.down.bias": weight}) == {"bert.encoder.layer.11.mlp.wo.bias": weight}


def test_a_weight_without_a_published_name_is_an_error():
    with pytest.raises(KeyError, match=r"model\.layers\.\{\}\.adapter"):
        to_published({"model.layers.0.adapter.weight": torch.ones(1)})


@pytest.mark.parametrize("folder, model_class", HEADS.items(), ids=HEADS.keys())
def test_a_published_checkpoint_is_reproduced_exactly_after_loading(folder, model_class, original_mosaicbert):
    published = torch.load(original_mosaicbert / folder / "pytorch_model.bin", weights_only=True)
    restored = to_published(model_class.from_pretrained(original_mosaicbert / folder).state_dict())
    assert restored.keys() == published.keys()
    for name, tensor in published.items():
        assert torch.equal(restored[name], tensor), name


@pytest.mark.parametrize("folder, model_class", HEADS.items(), ids=HEADS.keys())
def test_a_loaded_published_checkpoint_is_saved_under_the_names_of_this_package(
    folder, model_class, original_mosaicbert, tmp_path
):
    model = model_class.from_pretrained(original_mosaicbert / folder)
    model.save_pretrained(tmp_path)
    tied = set(model.all_tied_weights_keys)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys() - tied


@pytest.mark.parametrize("trust_remote_code", [None, True])
@pytest.mark.parametrize("folder, model_class", HEADS.items(), ids=HEADS.keys())
def test_the_auto_classes_load_a_published_checkpoint(folder, model_class, trust_remote_code, original_mosaicbert):
    auto_class = AUTO_CLASSES[folder]
    path = original_mosaicbert / folder
    loaded = auto_class.from_pretrained(path, trust_remote_code=trust_remote_code)
    assert type(loaded) is model_class
    for name, tensor in model_class.from_pretrained(path).state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_other_configurations_are_loaded_as_before(tmp_path):
    BertConfig(num_hidden_layers=3).save_pretrained(tmp_path)
    config, unused = AutoConfig.from_pretrained(tmp_path, return_unused_kwargs=True, other=1)
    assert type(config) is BertConfig and config.num_hidden_layers == 3 and unused == {"other": 1}
    assert type(AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)) is BertConfig


@pytest.mark.parametrize("trust_remote_code", [False, True])
def test_a_configuration_is_loaded_by_keyword_without_warnings(trust_remote_code, tmp_path, caplog):
    BertConfig(num_hidden_layers=3).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(
        pretrained_model_name_or_path=tmp_path, trust_remote_code=trust_remote_code, num_hidden_layers=2
    )
    assert config.num_hidden_layers == 2
    assert not caplog.records


def test_the_pooler_of_a_classifier_is_loaded_by_an_encoder(tmp_path):
    config = MosaicBertConfig(
        vocab_size=64, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    classifier = MosaicBertForSequenceClassification(config)
    classifier.save_pretrained(tmp_path)
    encoder = AutoModel.from_pretrained(tmp_path, add_pooling_layer=True)
    assert torch.equal(encoder.pooler.dense.weight, classifier.classifier.dense.weight)
    assert AutoModel.from_pretrained(tmp_path).pooler is None


def test_the_pooler_of_a_published_classifier_is_loaded(original_mosaicbert):
    folder = original_mosaicbert / "sequence_classification"
    published = torch.load(folder / "pytorch_model.bin", weights_only=True)
    encoder = AutoModel.from_pretrained(folder, add_pooling_layer=True)
    assert torch.equal(encoder.pooler.dense.weight, published["bert.pooler.dense.weight"])
