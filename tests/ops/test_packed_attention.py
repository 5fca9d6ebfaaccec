"""Attention by batched half-precision products on a CPU, against the formula and the PyTorch reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.ops import attention as attention_module
from mosaicbert.ops.attention import _bias, alibi_slopes, attention, attention_reference
from mosaicbert.ops.packed_attention import MAX_SEQLEN, packed_attention, padded_length
from tests.accuracy import assert_as_accurate

SEQLENS = {
    "one-token": [1],
    "full-documents": [32, 32, 32],
    "one-token-more-and-less": [33, 32, 31],
    "several-lengths-in-a-group": [64, 60, 40, 33, 32, 7, 1],
    "groups-in-any-order": [5, 70, 1, 40, 96],
}


def random_inputs(seqlens, dtype, num_heads=3, head_dim=8):
    generator = torch.Generator().manual_seed(3)
    qkv = torch.randn(sum(seqlens), 3, num_heads, head_dim, generator=generator, dtype=torch.float64).to(dtype)
    grad_context = torch.randn(sum(seqlens), num_heads, head_dim, generator=generator, dtype=torch.float64).to(dtype)
    return qkv, grad_context


def with_gradient(function, qkv, grad_context):
    qkv = qkv.detach().requires_grad_()
    context = function(qkv)
    return context.detach(), torch.autograd.grad(context, qkv, grad_context.to(context.dtype))[0]


def packed(seqlens, slopes, window=None):
    def call(qkv):
        bias = _bias(slopes, window, padded_length(max(seqlens)), qkv.dtype, qkv.device)
        return packed_attention(qkv, tuple(seqlens), bias)

    return call


def reference(seqlens, slopes, window=None):
    cu_seqlens = torch.tensor([0, *seqlens]).cumsum(0).int()
    return lambda qkv: attention_reference(qkv, cu_seqlens, slopes, window)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), st.sampled_from([None, 1, 33]), st.booleans())
def test_outputs_and_gradients_equal_the_reference(seqlens, window, has_bias):
    slopes = alibi_slopes(3) if has_bias else None
    qkv, grad_context = random_inputs(seqlens, torch.float64)
    actual = with_gradient(packed(seqlens, slopes, window), qkv, grad_context)
    expected = with_gradient(reference(seqlens, slopes, window), qkv, grad_context)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("seqlens", SEQLENS.values(), ids=SEQLENS.keys())
def test_half_precision_is_as_accurate_as_the_reference(seqlens, dtype):
    slopes = alibi_slopes(3)
    qkv, grad_context = random_inputs(seqlens, dtype)
    expected = with_gradient(reference(seqlens, slopes), qkv.double(), grad_context)
    eager = with_gradient(reference(seqlens, slopes), qkv, grad_context)
    actual = with_gradient(packed(seqlens, slopes), qkv, grad_context)
    for name, *values in zip(("context", "grad_qkv"), actual, eager, expected, strict=True):
        assert_as_accurate(name, *values)


def test_changing_a_document_does_not_change_a_bit_of_other_documents():
    seqlens, slopes = [40, 37, 33, 5], alibi_slopes(3)
    results = []
    for value in (1.0, float("nan")):
        qkv, grad_context = random_inputs(seqlens, torch.bfloat16)
        qkv[40:77] *= value
        results.append(with_gradient(packed(seqlens, slopes), qkv, grad_context))
    for first, second in zip(*results, strict=True):
        assert second[40:77].isnan().all()
        assert torch.equal(first[:40], second[:40]) and torch.equal(first[77:], second[77:])


def test_the_bias_is_not_changed():
    slopes = alibi_slopes(3)
    bias = _bias(slopes, None, 32, torch.float64, torch.device("cpu"))
    before = bias.clone()
    qkv, _ = random_inputs([32], torch.float64)
    packed_attention(qkv, (32,), bias)
    assert torch.equal(bias, before)


@pytest.mark.parametrize("longest", [MAX_SEQLEN, MAX_SEQLEN + 1], ids=["longest", "too-long"])
def test_sdpa_with_half_precision_products_is_as_accurate_as_the_reference(longest, monkeypatch):
    monkeypatch.setattr(attention_module, "_has_half_precision_products", lambda *_: True)  # as on a CPU with AMX
    seqlens, slopes = [0, longest, 3, 0, 3], alibi_slopes(1)
    qkv, grad_context = random_inputs(seqlens, torch.bfloat16, num_heads=1)
    cu_seqlens = torch.tensor([0, *seqlens]).cumsum(0).int()
    actual = with_gradient(lambda qkv: attention(qkv, cu_seqlens, longest, slopes, "sdpa"), qkv, grad_context)
    expected = with_gradient(reference(seqlens, slopes), qkv.double(), grad_context)
    eager = with_gradient(reference(seqlens, slopes), qkv, grad_context)
    for name, *values in zip(("context", "grad_qkv"), actual, eager, expected, strict=True):
        assert_as_accurate(name, *values)
