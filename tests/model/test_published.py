import re

import pytest
import torch
from safetensors.torch import load_file

from mosaicbert.model.configuration import MosaicBertConfig
from mosaicbert.model.modeling import MosaicBertForMaskedLM, MosaicBertForSequenceClassification
from mosaicbert.model.published import _NAME_PAIRS, published_key_mapping, to_published

HEADS = {"masked_lm": MosaicBertForMaskedLM, "sequence_classification": MosaicBertForSequenceClassification}


def apply_key_mapping(name):
    matches = [(pattern, internal) for pattern, internal in published_key_mapping().items() if re.search(pattern, name)]
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
    assert [apply_key_mapping(name) for name in published] == list(state)


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
