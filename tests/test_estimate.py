from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mosaicbert.config import ModelConfig
from mosaicbert.estimate import count_parameters, estimate, training_flops
from mosaicbert.model.factory import build_model
from mosaicbert.train_plan import TrainPlan
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


def _estimate(recipe):
    plan = TrainPlan(recipe.data, recipe.train, tokens_per_sample=recipe.data.max_seq_len)
    return estimate(recipe, plan.num_samples)


def _trained(recipe, duration, **fields):
    return replace(recipe, train=replace(recipe.train, duration=duration, **fields))


@pytest.mark.parametrize("duration", ["6 steps", "96 samples", "3072 tokens"])
def test_an_estimate_multiplies_out(tmp_path, duration):
    expected = _estimate(_trained(tiny_recipe(tmp_path, tmp_path), duration))
    assert expected.tokens == 96 * 32
    assert expected.flops == pytest.approx(expected.tokens * expected.flops_per_token)


def test_twice_the_length_is_twice_the_work_in_the_same_memory(tmp_path):
    recipe = tiny_recipe(tmp_path, tmp_path)
    once, twice = (_estimate(_trained(recipe, duration)) for duration in ("6 steps", "12 steps"))
    assert twice.flops == pytest.approx(2 * once.flops)
    assert (twice.memory_bytes, twice.flops_per_token) == (once.memory_bytes, once.flops_per_token)


def test_a_time_tells_no_amount_of_work_but_that_of_a_token(tmp_path):
    recipe = tiny_recipe(tmp_path, tmp_path)
    counted, timed = (_estimate(_trained(recipe, duration)) for duration in ("6 steps", "30min"))
    assert (timed.tokens, timed.flops) == (None, None)
    assert (timed.parameters, timed.flops_per_token, timed.memory_bytes) == (
        counted.parameters,
        counted.flops_per_token,
        counted.memory_bytes,
    )


def test_steps_of_a_growing_batch_are_counted_with_their_sizes(tmp_path):
    # 8 sizes from 8 to 15 samples of 32 tokens, each for one batch.
    growing = _trained(
        tiny_recipe(tmp_path, tmp_path), "10 steps", initial_batch_samples=8, batch_warmup_tokens=8 * 8 * 32
    )
    assert _estimate(growing).tokens == (sum(range(8, 16)) + 2 * 16) * 32


def test_the_head_costs_what_is_masked_in_the_mean(tmp_path):
    recipe = tiny_recipe(tmp_path, tmp_path, data={"mask_rate": 0.2})
    falling = replace(recipe, data=replace(recipe.data, mask_rate=0.3, final_mask_rate=0.1))
    assert _estimate(falling).flops == pytest.approx(_estimate(recipe).flops)


def test_half_as_wide_numbers_take_less_memory(tmp_path):
    recipe = tiny_recipe(tmp_path, tmp_path)
    wide, narrow = (_estimate(_trained(recipe, "6 steps", precision=name)) for name in ("fp32", "bf16"))
    assert narrow.memory_bytes < wide.memory_bytes
