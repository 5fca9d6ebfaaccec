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
def test_the_number_of_parameters_is_that_of_the_model(model):
    with torch.device("meta"):
        built = build_model(model)
    assert count_parameters(model) == sum(weight.numel() for weight in built.parameters())


@pytest.mark.parametrize(("model", "expected"), [(ModelConfig(), 737e6), (_LARGE, 2.51e9)], ids=["base", "large"])
def test_flops_per_token_are_those_of_the_design_document(model, expected):
    flops = training_flops(model, num_tokens=128, squared_lengths=128**2, num_masked=0.3 * 128) / 128
    assert flops == pytest.approx(expected, rel=2e-3)


def test_flops_equal_those_of_the_torch_flop_counter():
    model = ModelConfig(
        vocab_size=512, hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=96
    )
    built = build_model(model).eval()  # evaluation mode computes the last layer and the head for all tokens
    built.set_attn_implementation("eager")
    input_ids = torch.randint(0, 512, (2, 40))
    built(input_ids)  # the first call probes the attention backends, whose FLOPs would be counted
    with FlopCounterMode(display=False) as counter:
        built(input_ids).logits.sum().backward()
    assert counter.get_total_flops() == training_flops(model, num_tokens=80, squared_lengths=2 * 40**2, num_masked=80)


def _estimate(recipe):
    plan = TrainPlan(recipe.data, recipe.train, tokens_per_sample=recipe.data.max_seq_len)
    return estimate(recipe, plan.num_samples)


def _with_duration(recipe, duration, **fields):
    return replace(recipe, train=replace(recipe.train, duration=duration, **fields))


@pytest.mark.parametrize("duration", ["6 steps", "96 samples", "3072 tokens"])
def test_the_flops_of_a_run_are_tokens_times_flops_per_token(tmp_path, duration):
    expected = _estimate(_with_duration(tiny_recipe(tmp_path, tmp_path), duration))
    assert expected.num_tokens == 96 * 32
    assert expected.flops == pytest.approx(expected.num_tokens * expected.flops_per_token)


def test_twice_the_duration_doubles_the_flops_but_not_the_memory(tmp_path):
    recipe = tiny_recipe(tmp_path, tmp_path)
    single, double = (_estimate(_with_duration(recipe, duration)) for duration in ("6 steps", "12 steps"))
    assert double.flops == pytest.approx(2 * single.flops)
    assert (double.memory_bytes, double.flops_per_token) == (single.memory_bytes, single.flops_per_token)


def test_a_duration_in_time_has_only_flops_per_token(tmp_path):
    recipe = tiny_recipe(tmp_path, tmp_path)
    in_steps, in_time = (_estimate(_with_duration(recipe, duration)) for duration in ("6 steps", "30min"))
    assert (in_time.num_tokens, in_time.flops) == (None, None)
    assert (in_time.num_parameters, in_time.flops_per_token, in_time.memory_bytes) == (
        in_steps.num_parameters,
        in_steps.flops_per_token,
        in_steps.memory_bytes,
    )


def test_tokens_of_a_growing_batch_follow_the_batch_sizes(tmp_path):
    # 8 batches with 8 to 15 samples of 32 tokens, then 16 samples.
    growing = _with_duration(
        tiny_recipe(tmp_path, tmp_path), "10 steps", initial_batch_samples=8, batch_warmup_tokens=8 * 8 * 32
    )
    assert _estimate(growing).num_tokens == (sum(range(8, 16)) + 2 * 16) * 32


def test_the_head_is_counted_at_the_mean_mask_rate(tmp_path):
    recipe = tiny_recipe(tmp_path, tmp_path, data={"mask_rate": 0.2})
    falling = replace(recipe, data=replace(recipe.data, mask_rate=0.3, final_mask_rate=0.1))
    assert _estimate(falling).flops == pytest.approx(_estimate(recipe).flops)


def test_bf16_needs_less_memory_than_fp32(tmp_path):
    recipe = tiny_recipe(tmp_path, tmp_path)
    fp32, bf16 = (_estimate(_with_duration(recipe, "6 steps", precision=name)) for name in ("fp32", "bf16"))
    assert bf16.memory_bytes < fp32.memory_bytes
