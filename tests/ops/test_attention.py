import importlib.util
import math
import os
import subprocess
import sys

import pytest
import torch

from mosaicbert.ops import attention as attention_module
from mosaicbert.ops.attention import (
    _MAX_SHORT_BF16_SEQLEN,
    DocumentLengths,
    _sdpa_padded,
    alibi_slopes,
    attention,
    attention_reference,
    choose_attention,
)
from tests.accuracy import assert_as_accurate

HEAD_DIM = 64
FP32, BF16 = torch.float32, torch.bfloat16

SEQLENS = {
    "one-token": [1],
    "only-single-tokens": [1, 1, 1, 1, 1],
    "primes": [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37],
    "one-long-and-many-short": [3] * 9 + [401] + [3] * 9 + [2] * 5,
    "runs-of-equal-lengths": [16] * 6 + [32] * 3 + [16] * 2 + [1] * 4,
    "around-the-short-limit": [_MAX_SHORT_BF16_SEQLEN - 1, _MAX_SHORT_BF16_SEQLEN, _MAX_SHORT_BF16_SEQLEN + 1],
    "above-a-power-of-two": [129, 64, 128],
    "empty-documents-at-the-end": [16, 16, 5, 0, 0, 0],
    "empty-documents-between": [0, 7, 0, 0, 7, 40, 0],
}


def cumulative(seqlens, device):
    return torch.tensor([0, *seqlens], device=device).cumsum(0).int()


def random_qkv(num_tokens, num_heads, device, dtype=torch.float64, head_dim=HEAD_DIM):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(num_tokens, 3, num_heads, head_dim, generator=generator, dtype=torch.float64).to(device, dtype)


def formula(qkv, cu_seqlens, slopes, window=None):
    """Compute attention over all tokens at once, with a bias of -inf between documents."""
    query, key, value = qkv.permute(1, 2, 0, 3)  # each (H, T, D)
    position = torch.arange(qkv.shape[0], device=qkv.device)
    document = torch.bucketize(position, cu_seqlens[1:-1].long(), right=True)
    distance = (position[:, None] - position[None, :]).abs()
    bias = -torch.tensor(slopes or [0.0], dtype=torch.float64, device=qkv.device)[:, None, None] * distance
    bias = bias.masked_fill(document[:, None] != document[None, :], -math.inf)
    if window is not None:
        bias = bias.masked_fill(distance > window, -math.inf)
    weights = torch.softmax(query @ key.transpose(1, 2) / math.sqrt(qkv.shape[-1]) + bias, dim=-1)
    return (weights @ value).transpose(0, 1)


def with_gradient(function, qkv, grad_context):
    qkv = qkv.detach().requires_grad_()
    context = function(qkv)
    (gradient,) = torch.autograd.grad(context, qkv, grad_context.to(context.dtype))
    return context.detach(), gradient


def assert_as_accurate_as_eager(
    backend, seqlens, num_heads, dtype, device, *, head_dim=HEAD_DIM, has_bias=True, window=None
):
    cu_seqlens, slopes = cumulative(seqlens, device), alibi_slopes(num_heads) if has_bias else None
    rounded = random_qkv(sum(seqlens), num_heads, device, dtype, head_dim)
    grad_context = random_qkv(sum(seqlens), num_heads, device, dtype, head_dim)[:, 0]

    def actual(qkv):
        return attention(qkv, cu_seqlens, max(seqlens), slopes, backend, window)

    expected = with_gradient(lambda qkv: formula(qkv, cu_seqlens, slopes, window), rounded.double(), grad_context)
    eager = with_gradient(lambda qkv: attention_reference(qkv, cu_seqlens, slopes, window), rounded, grad_context)
    actual = with_gradient(actual, rounded, grad_context)
    for name, *values in zip(("context", "grad_qkv"), actual, eager, expected, strict=True):
        assert_as_accurate(name, *values)


@pytest.mark.parametrize("seqlens", SEQLENS.values(), ids=SEQLENS.keys())
def test_the_reference_equals_the_formula(seqlens, device):
    cu_seqlens, slopes = cumulative(seqlens, device), alibi_slopes(3)
    qkv, grad_context = random_qkv(sum(seqlens), 3, device), random_qkv(sum(seqlens), 3, device)[:, 0]
    expected = with_gradient(lambda qkv: formula(qkv, cu_seqlens, slopes), qkv, grad_context)
    actual = with_gradient(lambda qkv: attention(qkv, cu_seqlens, max(seqlens), slopes, "eager"), qkv, grad_context)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("seqlens", SEQLENS.values(), ids=SEQLENS.keys())
def test_sdpa_is_as_accurate_as_eager(seqlens, dtype, device):
    assert_as_accurate_as_eager("sdpa", seqlens, 3, dtype, device)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("num_heads", [1, 2, 5, 12, 16])
def test_sdpa_is_as_accurate_as_eager_for_any_number_of_heads(num_heads, dtype, device):
    assert_as_accurate_as_eager("sdpa", [5, 40, 40, 200], num_heads, dtype, device)


@pytest.mark.parametrize("has_bias", [True, False], ids=["alibi", "no-bias"])
@pytest.mark.parametrize("window", [1, 33, 500])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_a_window_equals_the_formula_with_masked_bias(backend, window, has_bias, device):
    cu_seqlens, slopes = cumulative([5, 70, 1], device), alibi_slopes(3) if has_bias else None
    qkv, grad_context = random_qkv(76, 3, device), random_qkv(76, 3, device)[:, 0]
    expected = with_gradient(lambda qkv: formula(qkv, cu_seqlens, slopes, window), qkv, grad_context)
    actual = with_gradient(lambda qkv: attention(qkv, cu_seqlens, 70, slopes, backend, window), qkv, grad_context)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


# Tiles have 16 to 64 rows in fp32, 64 or 128 in bf16. The backward pass has one kernel for documents of one tile, one
# for documents of two tiles (in bf16), and two for longer documents.
TRITON_SEQLENS = {
    "one-token": [1],
    "primes": [2, 3, 5, 7, 11, 13, 17, 19],
    "around-a-tile-of-32": [31, 32, 33],
    "around-a-tile-of-64": [63, 64, 65],
    "around-a-tile-of-128": [127, 128, 129],
    "one-long-and-many-short": [3] * 4 + [140] + [3] * 4 + [2] * 3,
    "empty-documents": [0, 7, 0, 0, 40, 0, 0],
}


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("seqlens", TRITON_SEQLENS.values(), ids=TRITON_SEQLENS.keys())
def test_triton_is_as_accurate_as_eager(seqlens, dtype, device):
    assert_as_accurate_as_eager("triton", seqlens, 1, dtype, device)


def test_triton_is_as_accurate_as_eager_around_two_tiles_of_128(device):
    assert_as_accurate_as_eager("triton", [255, 3, 257], 1, BF16, device)


def test_triton_in_fp16_is_as_accurate_as_eager_around_a_tile_of_64(device):
    assert_as_accurate_as_eager("triton", TRITON_SEQLENS["around-a-tile-of-64"], 1, torch.float16, device)


@pytest.mark.slow
@pytest.mark.parametrize("seqlens", TRITON_SEQLENS.values(), ids=TRITON_SEQLENS.keys())
def test_triton_in_fp16_is_as_accurate_as_eager(seqlens, device):
    assert_as_accurate_as_eager("triton", seqlens, 1, torch.float16, device)


@pytest.mark.parametrize(
    "head_dim, dtype", [(32, FP32), (32, BF16), (128, BF16)], ids=["32-fp32", "32-bf16", "128-bf16"]
)
def test_triton_is_as_accurate_as_eager_for_other_head_sizes(head_dim, dtype, device):
    assert_as_accurate_as_eager("triton", [5, 40, 20], 3, dtype, device, head_dim=head_dim)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "window, has_bias",
    [
        *((window, True) for window in (1, 31, 32)),
        (None, False),
        *(pytest.param(window, True, marks=pytest.mark.slow) for window in (None, 100)),
        *(pytest.param(window, False, marks=pytest.mark.slow) for window in (1, 31, 32, 100)),
    ],
    ids=str,
)
def test_triton_is_as_accurate_as_eager_with_a_window(window, has_bias, dtype, device):
    seqlens = [5, 140, 33] if dtype == BF16 else [5, 70, 33]
    assert_as_accurate_as_eager("triton", seqlens, 1, dtype, device, has_bias=has_bias, window=window)


def test_triton_is_as_accurate_as_eager_with_a_window_and_more_than_two_tiles(device):
    assert_as_accurate_as_eager("triton", [5, 265], 1, BF16, device, window=100)


@pytest.mark.parametrize(
    "config_index, window",
    [
        *((1, None), (2, 33)),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 33), (2, None), (3, None), (3, 33))),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((4, None), (4, 33))),
    ],
)
def test_triton_is_as_accurate_as_eager_with_any_tile_config(config_index, window, device, monkeypatch):
    kernels = pytest.importorskip("mosaicbert.ops.attention_kernels")
    monkeypatch.setattr(kernels, "_MIN_ROWS_TO_AUTOTUNE", 0)
    monkeypatch.setattr(
        kernels, "choose_tile_config", lambda _kernel, _case, configs, _launch: configs[config_index % len(configs)]
    )
    assert_as_accurate_as_eager("triton", [5, 140, 257], 1, BF16, device, window=window)


@pytest.mark.gpu
@pytest.mark.parametrize("seqlens", [[128] * 64, [512] * 8, [8192, 100, 1000]], ids=["128", "512", "8192"])
@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=["bf16", "fp16"])
def test_triton_is_as_accurate_as_eager_at_recipe_sizes(seqlens, dtype, device):
    # The fp64 formula stores the scores of all tokens. Two heads fit a GPU that other tests also use.
    assert_as_accurate_as_eager("triton", seqlens, 2, dtype, device)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
def test_triton_is_bit_identical_in_repeated_calls(dtype, device):
    seqlens, slopes = [40, 150, 3], alibi_slopes(1)
    qkv, cu_seqlens = random_qkv(sum(seqlens), 1, device, dtype), cumulative(seqlens, device)

    def results():
        return with_gradient(lambda qkv: attention(qkv, cu_seqlens, 150, slopes, "triton"), qkv, qkv[:, 0])

    first = results()
    repeats = 20 if device == "cuda" else 1
    for _ in range(repeats):
        assert all(torch.equal(*pair) for pair in zip(first, results(), strict=True))


def test_triton_writes_every_element(device):
    # New memory is filled with NaN.
    seqlens, slopes = [0, 40, 150, 1, 0, 257], alibi_slopes(1)
    qkv, cu_seqlens = random_qkv(sum(seqlens), 1, device, BF16), cumulative(seqlens, device)
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        results = with_gradient(lambda qkv: attention(qkv, cu_seqlens, max(seqlens), slopes, "triton"), qkv, qkv[:, 0])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(result.isfinite().all() for result in results)


def test_triton_accepts_non_contiguous_input(device):
    slopes, cu_seqlens = alibi_slopes(2), cumulative([20, 9], device)
    qkv = random_qkv(29, 2, device, BF16)
    strided = qkv.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3)
    assert not strided.is_contiguous()

    def results(qkv):
        return with_gradient(lambda qkv: attention(qkv, cu_seqlens, 20, slopes, "triton"), qkv, qkv[:, 0])

    for expected_result, strided_result in zip(results(qkv), results(strided), strict=True):
        assert torch.equal(expected_result, strided_result)


def test_triton_is_captured_by_torch_compile_without_a_graph_break(device):
    slopes, cu_seqlens = alibi_slopes(2), cumulative([20, 9], device)
    qkv, weight = random_qkv(29, 2, device, FP32), torch.randn(3, device=device)
    attention(qkv, cu_seqlens, 20, slopes, "triton")  # the backend is probed before compilation

    def block(qkv):
        return attention(qkv * weight[:, None, None], cu_seqlens, 20, slopes, "triton").square()

    expected_result = with_gradient(block, qkv, qkv[:, 0])
    compiled = with_gradient(torch.compile(block, fullgraph=True, backend="aot_eager"), qkv, qkv[:, 0])
    assert all(torch.equal(*pair) for pair in zip(expected_result, compiled, strict=True))


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("has_bias", [True, False], ids=["alibi", "no-bias"])
def test_the_operators_pass_opcheck(has_bias, window, device):
    slopes, cu_seqlens = alibi_slopes(2) if has_bias else None, cumulative([9, 0, 5], device)
    qkv = random_qkv(14, 2, device, FP32)
    attention(qkv, cu_seqlens, 9, slopes, "triton")
    torch.library.opcheck(torch.ops.mosaicbert.attention.default, (qkv.requires_grad_(), cu_seqlens, 9, slopes, window))


@pytest.mark.gpu
@pytest.mark.parametrize("num_heads", [3, 12])
@pytest.mark.parametrize("seqlens", SEQLENS.values(), ids=SEQLENS.keys())
def test_flash_attention_2_is_as_accurate_as_eager(seqlens, num_heads, device):
    pytest.importorskip("flash_attn", reason="flash_attn is not installed")
    assert_as_accurate_as_eager("flash_attention_2", seqlens, num_heads, BF16, device)


# Values of get_alibi_slopes in the original implementation.
SQRT_HALF = 0.70710678
SLOPES = {
    8: [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256],
    12: [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256, SQRT_HALF, 0.35355339, 0.17677670, 0.08838835],
    16: [SQRT_HALF, 1 / 2, 0.35355339, 1 / 4, 0.17677670, 1 / 8, 0.08838835, 1 / 16, 0.04419417, 1 / 32, 0.02209709,
         1 / 64, 0.01104854, 1 / 128, 0.00552427, 1 / 256],
}  # fmt: skip


@pytest.mark.parametrize("num_heads", SLOPES)
def test_slopes_equal_those_of_the_original_implementation(num_heads):
    assert alibi_slopes(num_heads) == pytest.approx(SLOPES[num_heads], abs=1e-8)


@pytest.mark.parametrize("num_heads", range(1, 33))
def test_slopes_are_distinct_and_between_0_and_1(num_heads):
    slopes = alibi_slopes(num_heads)
    assert len(set(slopes)) == num_heads
    assert all(0 < slope < 1 for slope in slopes)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("backend", ["triton", "sdpa", "eager"])
def test_changing_a_document_does_not_change_a_bit_of_other_documents(backend, dtype, device):
    seqlens, changed_rows = [30, 30, 30, 140, 7], slice(30, 60)
    cu_seqlens, slopes = cumulative(seqlens, device), alibi_slopes(1)
    before = random_qkv(sum(seqlens), 1, device, dtype)
    after = before.clone()
    after[changed_rows] *= -3
    is_unchanged = torch.ones(sum(seqlens), dtype=torch.bool, device=device)
    is_unchanged[changed_rows] = False

    def results(qkv):
        return with_gradient(lambda qkv: attention(qkv, cu_seqlens, 140, slopes, backend), qkv, before[:, 0])

    for before_result, after_result in zip(results(before), results(after), strict=True):
        assert torch.equal(before_result[is_unchanged], after_result[is_unchanged])
        assert not torch.equal(before_result[changed_rows], after_result[changed_rows])


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_a_packed_document_equals_the_same_document_alone(backend, device):
    slopes, qkv = alibi_slopes(3), random_qkv(150, 3, device)
    together = attention(qkv, cumulative([100, 50], device), 100, slopes, backend)
    alone = attention(qkv[100:], cumulative([50], device), 50, slopes, backend)
    torch.testing.assert_close(together[100:], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("backend", ["triton", "sdpa", "eager"])
def test_empty_documents_do_not_change_a_bit_of_outputs_and_gradients(backend, dtype, device):
    seqlens, slopes = [9, 9, 140, 1], alibi_slopes(1)
    qkv, grad_context = (random_qkv(sum(seqlens), 1, device, dtype) for _ in range(2))

    def results(seqlens):
        cu_seqlens = cumulative(seqlens, device)
        return with_gradient(lambda qkv: attention(qkv, cu_seqlens, 140, slopes, backend), qkv, grad_context[:, 0])

    for expected_result, result_with_empty in zip(results(seqlens), results([0, 9, 0, 9, 140, 1, 0, 0]), strict=True):
        assert torch.equal(expected_result, result_with_empty)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_a_larger_max_seqlen_does_not_change_a_bit(backend, device):
    slopes, qkv, cu_seqlens = alibi_slopes(3), random_qkv(50, 3, device, FP32), cumulative([30, 20, 0], device)
    assert torch.equal(
        attention(qkv, cu_seqlens, 30, slopes, backend), attention(qkv, cu_seqlens, 512, slopes, backend)
    )


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_reversed_documents_have_reversed_outputs(backend, device):
    slopes, qkv, cu_seqlens = alibi_slopes(5), random_qkv(40, 5, device), cumulative([40], device)
    mirrored = attention(qkv.flip(0), cu_seqlens, 40, slopes, backend).flip(0)
    torch.testing.assert_close(mirrored, attention(qkv, cu_seqlens, 40, slopes, backend), rtol=1e-12, atol=1e-12)


def test_attention_does_not_modify_its_input(device):
    qkv = random_qkv(40, 3, device)
    before = qkv.clone()
    attention(qkv, cumulative([40], device), 40, alibi_slopes(3))
    assert torch.equal(qkv, before)


def test_attention_can_be_trained_after_inference(device):
    # Probes and biases are cached across calls. A tensor created in inference mode cannot be saved for a backward pass.
    slopes = tuple(0.3 + slope / 2 for slope in alibi_slopes(3))  # not cached by another test
    cu_seqlens = cumulative([20, 9], device)
    choose_attention.cache_clear()
    with torch.inference_mode():
        for_inference = attention(random_qkv(29, 3, device, FP32), cu_seqlens, 20, slopes)
    qkv = random_qkv(29, 3, device, FP32).requires_grad_()
    for_training = attention(qkv, cu_seqlens, 20, slopes)
    for_training.sum().backward()
    assert torch.equal(for_inference, for_training)
    assert qkv.grad.abs().sum() > 0


@pytest.mark.parametrize("backend", ["auto", "sdpa", "eager"])
def test_the_choice_of_a_backend_is_the_same_in_inference_mode(backend, device):
    choose_attention.cache_clear()
    with torch.inference_mode():
        inside = choose_attention(backend, device, FP32, HEAD_DIM)
    choose_attention.cache_clear()
    assert inside == choose_attention(backend, device, FP32, HEAD_DIM)


@pytest.mark.parametrize("max_entries", [2**28, 1000], ids=["one-call", "several-calls"])
@pytest.mark.parametrize("slopes, window", [(alibi_slopes(3), None), (alibi_slopes(3), 4), (None, None)])
@pytest.mark.parametrize("seqlens", SEQLENS.values(), ids=SEQLENS.keys())
def test_the_padded_calls_of_a_gpu_give_the_attention_of_each_document(
    seqlens, slopes, window, max_entries, device, monkeypatch
):
    monkeypatch.setattr(attention_module, "_MAX_GPU_BIAS_ENTRIES", max_entries)
    cu_seqlens = cumulative(seqlens, device)
    qkv = random_qkv(sum(seqlens), 3, device)
    grad_context = random_qkv(sum(seqlens), 3, device)[:, 0].contiguous()
    actual = with_gradient(
        lambda qkv: _sdpa_padded(qkv, DocumentLengths(cu_seqlens), slopes, window), qkv, grad_context
    )
    expected = with_gradient(lambda qkv: formula(qkv, cu_seqlens, slopes, window), qkv, grad_context)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_a_gpu_without_faster_backends_is_warned_once(monkeypatch):
    failures = {"flash_attention_2": "flash_attn is not installed", "triton": "mosaicbert is not installed"}
    monkeypatch.setattr(attention_module, "_probe", lambda name, *_: failures.get(name))
    choose_attention.cache_clear()
    with pytest.warns(UserWarning, match=r"attention: sdpa .* Install flash-attn, or this package") as warned:
        for _ in range(2):
            assert choose_attention("auto", "cuda", BF16, HEAD_DIM).name == "sdpa"
    assert len(warned) == 1
    choose_attention.cache_clear()


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash_attn is installed")
def test_requesting_a_backend_that_is_not_installed_is_an_error():
    with pytest.raises(RuntimeError) as raised:
        attention(random_qkv(4, 2, "cpu", FP32), cumulative([4], "cpu"), 4, alibi_slopes(2), "flash_attention_2")
    assert str(raised.value) == (
        "`attn_implementation='flash_attention_2'` is not supported on this machine: flash_attn is not installed. "
        "Use 'auto' for the fastest backend that works."
    )


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash_attn is installed")
def test_auto_describes_the_selected_backend_and_the_unavailable_ones():
    choice = choose_attention("auto", "cpu", FP32, HEAD_DIM)
    assert str(choice) == (
        "attention: sdpa (flash_attention_2 unavailable: flash_attn is not installed; "
        "triton unavailable: requires a GPU)"
    )


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_a_requested_backend_is_selected(backend, device):
    assert str(choose_attention(backend, device, FP32, HEAD_DIM)) == f"attention: {backend} (as requested)"


def test_an_unknown_backend_is_an_error_that_lists_the_known_ones(device):
    with pytest.raises(ValueError, match=r"must be one of auto, flash_attention_2, triton, sdpa, eager, got 'flash'"):
        attention(random_qkv(4, 2, device), cumulative([4], device), 4, alibi_slopes(2), "flash")


@pytest.mark.parametrize("head_dim", [16, 80])
def test_an_unsupported_head_size_is_an_error_that_lists_the_supported_ones(head_dim, device):
    with pytest.raises(RuntimeError, match=rf"`head_dim` must be one of 32, 64, 128, got {head_dim}"):
        choose_attention("triton", device, BF16, head_dim)


def test_fp32_heads_of_128_are_an_error_of_triton(device):
    with pytest.raises(RuntimeError, match="`head_dim` must be at most 64 in fp32, got 128"):
        choose_attention("triton", device, FP32, 128)


@pytest.mark.parametrize("head_dim, dtype", [(80, BF16), (128, FP32)])
def test_auto_skips_triton_for_an_unsupported_head_size(head_dim, dtype, device):
    assert choose_attention("auto", device, dtype, head_dim).name != "triton"


def test_requesting_triton_without_a_gpu_is_an_error():
    command = "from mosaicbert.ops.attention import *; choose_attention('triton', 'cpu', torch.bfloat16, 64)"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    completed = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True)
    assert "`attn_implementation='triton'` is not supported on this machine" in completed.stderr
    assert "`qkv` must be on a GPU, got a CPU tensor" in completed.stderr


def test_an_empty_batch_is_an_error(device):
    with pytest.raises(ValueError, match=r"with at least one token, got \(0, 3, 2, 64\)"):
        attention(random_qkv(0, 2, device), cumulative([0], device), 1, alibi_slopes(2))


@pytest.mark.parametrize("slopes", [(0.5,), (0.5, 0.0), (0.5, -1.0)], ids=["too-few", "zero", "negative"])
def test_slopes_other_than_one_positive_number_per_head_are_an_error(slopes, device):
    with pytest.raises(ValueError, match="slopes must be 2 positive numbers"):
        attention(random_qkv(4, 2, device), cumulative([4], device), 4, slopes)


def test_a_window_of_zero_is_an_error(device):
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        attention(random_qkv(4, 2, device), cumulative([4], device), 4, alibi_slopes(2), window=0)
