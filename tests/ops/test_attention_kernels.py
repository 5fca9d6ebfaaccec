"""Probe and launches of the attention kernels. tests/ops/test_attention.py has the accuracy of all backends."""

import pytest
import torch

from mosaicbert.ops import attention as attention_module
from mosaicbert.ops.attention import (
    _BACKENDS,
    _GPU_PROBE_BATCHES,
    _compare_with_reference,
    alibi_slopes,
    attention,
    attention_reference,
)

FP32, BF16 = torch.float32, torch.bfloat16


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("seqlens", _GPU_PROBE_BATCHES, ids=["one-tile", "several-tiles"])
def test_the_probe_of_a_gpu_allows_the_rounding_of_pytorch(seqlens, backend, dtype, device):
    assert _compare_with_reference(backend, device, dtype, 64, seqlens) is None


def test_the_kernels_pass_the_probe_with_several_tiles(device):
    pytest.importorskip("mosaicbert.ops.attention_kernels")
    assert _compare_with_reference("triton", device, BF16, 32, (5, 0, 260)) is None


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
def test_the_kernels_pass_the_probe_of_a_gpu(dtype, device):
    pytest.importorskip("mosaicbert.ops.attention_kernels")
    for seqlens in _GPU_PROBE_BATCHES:
        assert _compare_with_reference("triton", device, dtype, 64, seqlens) is None


def wrong_output(qkv, documents, slopes, window):
    context = attention_reference(qkv, documents.cu_seqlens, slopes, window)
    return torch.cat([context[:-64], 1.2 * context[-64:]])


def no_gradient_of_the_last_of_129_tokens(qkv, documents, slopes, window):
    is_last = torch.arange(len(qkv), device=qkv.device)[:, None, None, None] == documents.cu_seqlens[2] - 1
    return attention_reference(torch.where(is_last, qkv.detach(), qkv), documents.cu_seqlens, slopes, window)


def undefined_output(qkv, documents, slopes, window):
    return attention_reference(qkv, documents.cu_seqlens, slopes, window) * torch.nan


@pytest.mark.parametrize(
    "backend, result",
    [
        (wrong_output, "output for a document of 384 tokens"),
        (no_gradient_of_the_last_of_129_tokens, "gradient of the queries for a document of 129 tokens"),
        (undefined_output, "output for a document of 7 tokens"),
    ],
)
def test_a_backend_that_is_wrong_in_one_tile_fails_the_probe(backend, result, device, monkeypatch):
    monkeypatch.setitem(_BACKENDS, "sdpa", backend)
    difference = _compare_with_reference("sdpa", device, BF16, 64, _GPU_PROBE_BATCHES[1])
    assert difference == f"its {result} differs from the PyTorch reference"


def test_the_probe_of_a_cpu_has_few_tokens():
    assert max(map(sum, attention_module._CPU_PROBE_BATCHES)) < 20


@pytest.mark.parametrize(
    "num_tokens, num_documents, max_seqlen, expected",
    [
        (128 * 512, 512, 128, (128, 128)),
        (128 * 512, 512, 512, (128, 512)),  # documents of 128 tokens in a recipe for at most 512
        (512 * 128, 128, 512, (512, 512)),
        (100, 300, 128, (1, 128)),
        (20_000, 1, 20_000, (8192, 8192)),
        (7, 1, 7, (8, 8)),
    ],
)
def test_the_autotuning_key_has_the_mean_and_maximum_length(num_tokens, num_documents, max_seqlen, expected):
    kernels = pytest.importorskip("mosaicbert.ops.attention_kernels")
    assert kernels.length_classes(num_tokens, num_documents, max_seqlen) == expected


def output_and_gradient(seqlens, max_seqlen, device):
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(sum(seqlens), 3, 1, 32, generator=generator).to(device, BF16).requires_grad_()
    cu_seqlens = torch.tensor([0, *seqlens], device=device).cumsum(0).int()
    context = attention(qkv, cu_seqlens, max_seqlen, alibi_slopes(1), "triton")
    (gradient,) = torch.autograd.grad(context, qkv, qkv[:, 0].detach())
    return context.detach(), gradient


@pytest.mark.parametrize("max_seqlen", [129, 300], ids=["two-tiles", "more-tiles"])
def test_a_larger_max_seqlen_does_not_change_a_bit(max_seqlen, device):
    # Documents of one tile have their own programs only if max_seqlen is at most one tile.
    expected = output_and_gradient([100, 0, 128], 128, device)
    assert all(map(torch.equal, output_and_gradient([100, 0, 128], max_seqlen, device), expected))


@pytest.mark.gpu
def test_more_documents_than_one_load_pass_the_probe(device):
    assert _compare_with_reference("triton", device, BF16, 64, (2,) * 1100 + (150,)) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="compiled kernels do not allow changed constants")
def test_documents_are_found_in_several_loads(device, monkeypatch):
    kernels = pytest.importorskip("mosaicbert.ops.attention_kernels")
    seqlens = [3, 0, 2, 3, 0, 150, 3, 1, 0, 5]
    expected = output_and_gradient(seqlens, 150, device)
    monkeypatch.setattr(kernels, "_DOCUMENTS_PER_LOAD", kernels.tl.constexpr(4))
    assert all(map(torch.equal, output_and_gradient(seqlens, 150, device), expected))


@pytest.mark.parametrize(
    "seqlens, expected",
    [
        ([128] * 6, {"forward": 6, "backward_whole": 6}),
        ([128, 129, 0], {"forward": 5, "backward_whole": 3, "backward_two_tiles": 3}),
        (
            [128, 129, 300],
            {
                "forward": 7,
                "backward_whole": 3,
                "backward_two_tiles": 3,
                "backward_query": 7,
                "backward_key": 7,
            },
        ),
    ],
    ids=["one-tile", "two-tiles", "more-tiles"],
)
def test_short_documents_need_few_programs_and_kernels(seqlens, expected, device, monkeypatch):
    kernels = pytest.importorskip("mosaicbert.ops.attention_kernels")
    num_tiles = {}

    def launch(_launcher, kernel, _config, num_programs_per_head, *_):
        name = kernel.__name__.removeprefix("_attention_").removesuffix("_kernel")
        num_tiles[name] = num_programs_per_head

    monkeypatch.setattr(kernels._KernelLauncher, "_launch", launch)
    output_and_gradient(seqlens, max(seqlens), device)
    assert num_tiles == expected
