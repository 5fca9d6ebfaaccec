from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mosaicbert.accounting import count_parameters, plan, training_flops
from mosaicbert.config import ModelConfig
from mosaicbert.model.build import build_model
from tests.recipes import tiny_recipe

_LARGE = ModelConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)


@pytest.mark.parametrize(
    "model",
    [ModelConfig(), _LARGE, ModelConfig(architecture="bert"), ModelConfig(hidden_size=120, num_attention_heads=5)],
    ids=["base", "large", "bert", "odd"],
)
def test_parameters_are_counted_as_torch_counts_them(model):
    with torch.device("meta"):
        built = build_model(model)
    assert count_parameters(model) == sum(weight.numel() for weight in built.parameters())


@pytest.mark.parametrize(("model", "expected"), [(ModelConfig(), 737e6), (_LARGE, 2.51e9)], ids=["base", "large"])
def test_flops_per_token_are_those_of_the_design(model, expected):
    flops = training_flops(model, tokens=128, squared_lengths=128**2, masked=0.3 * 128) / 128
    assert flops == pytest.approx(expected, rel=2e-3)


def test_matrix_products_are_counted_as_torch_counts_them():
    model = ModelConfig(
        vocab_size=512, hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=96
    )
    built = build_model(model).eval()  # in evaluation every token passes the last layer and the head
    built.set_attn_implementation("eager")
    input_ids = torch.randint(0, 512, (2, 40))
    built(input_ids)  # the first call tries the attention on a toy input, which would count as well
    with FlopCounterMode(display=False) as counter:
        built(input_ids).logits.sum().backward()
    assert counter.get_total_flops() == training_flops(model, tokens=80, squared_lengths=2 * 40**2, masked=80)


def test_a_plan_multiplies_out(tmp_path):
    recipe = tiny_recipe(tmp_path, tmp_path)
    expected = plan(recipe)
    assert expected.steps == 6
    assert expected.tokens == 96 * 32
    longer = plan(replace(recipe, train=replace(recipe.train, total_samples=192)))
    assert longer.flops == pytest.approx(2 * expected.flops)
    assert longer.memory_bytes == expected.memory_bytes
