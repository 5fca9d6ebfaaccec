"""Bidirectional self-attention over packed documents, with ALiBi: out = softmax(q k^T / sqrt(D) - slope * |i - j|) v.

ALiBi: Press et al. 2022 (arXiv:2108.12409), here symmetric as in MosaicBERT (arXiv:2312.17482). No token sees another
document. Four rungs compute it: flash-attn on GPUs that have it, our Triton kernels on other GPUs, PyTorch's SDPA
everywhere, and the definition.
"""

import functools
import importlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_TF32_EPS = 2.0**-10
# PyTorch's CPU flash kernel converts every bf16 block it multiplies; up to this length its batched products are faster.
_MAX_SHORT_BF16_SEQLEN = 192  # tokens; measured by scripts/bench/attention.py


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """The slope of each head: 2^(-8 h / n) for n heads if n is a power of two.

    Otherwise the slopes of the next lower power of two, then every other slope of the next higher one
    (the ALiBi authors' rule, ofirpress/attention_with_linear_biases).
    """
    power_of_two = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * (head + 1) / power_of_two) for head in range(power_of_two)]
    interleaved_slopes = [2.0 ** (-8.0 * (head + 1) / (2 * power_of_two)) for head in range(0, 2 * power_of_two, 2)]
    return tuple(slopes + interleaved_slopes[: num_heads - power_of_two])


def attention_reference(
    qkv: Tensor, cu_seqlens: Tensor, slopes: tuple[float, ...] | None, window: int | None = None
) -> Tensor:
    """The definition, in plain PyTorch, one document after the other. Shapes as in `attention`."""
    documents = qkv.split([length for length in cu_seqlens.diff().tolist() if length])
    contexts: list[Tensor] = []
    for document in documents:
        query, key, value = document.permute(1, 2, 0, 3)  # each (H, L, D)
        scores = query @ key.transpose(1, 2) / math.sqrt(qkv.shape[-1])
        scores = scores + _bias(slopes, window, document.shape[0], qkv.dtype, qkv.device)
        weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(qkv.dtype, torch.float32))
        contexts.append((weights.to(qkv.dtype) @ value).transpose(0, 1))
    return torch.cat(contexts)


def _eager(
    qkv: Tensor, cu_seqlens: Tensor, _max_seqlen: int, slopes: tuple[float, ...] | None, window: int | None
) -> Tensor:
    return attention_reference(qkv, cu_seqlens, slopes, window)


def _sdpa(
    qkv: Tensor, cu_seqlens: Tensor, _max_seqlen: int, slopes: tuple[float, ...] | None, window: int | None
) -> Tensor:
    # Neighbours of equal length share a call: nothing is padded, nothing is masked out, and a batch costs what its
    # real tokens cost. split() rather than slices, since the gradient of a slice is as large as the whole tensor.
    seqlens: list[int] = [length for length in cu_seqlens.diff().tolist() if length]
    equal_length_runs = [(length, len(list(group))) for length, group in itertools.groupby(seqlens)]
    chunks = qkv.split([length * count for length, count in equal_length_runs])
    bias = _bias(slopes, window, 1 << (max(seqlens) - 1).bit_length(), qkv.dtype, qkv.device)
    contexts = [
        _sdpa_equal_lengths(chunk.unflatten(0, (count, length)), bias[:, :length, :length])
        for chunk, (length, count) in zip(chunks, equal_length_runs, strict=True)
    ]
    return torch.cat(contexts)


def _sdpa_equal_lengths(qkv: Tensor, bias: Tensor) -> Tensor:  # (B, L, 3, H, D) -> (B * L, H, D)
    if qkv.shape[1] == 1:
        return qkv[:, 0, 2]  # a token alone attends to itself; a kernel would add rounding, on some processors
    return _choose_sdpa_function(qkv)(qkv, bias).transpose(1, 2).flatten(0, 1)


def _choose_sdpa_function(qkv: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    is_short = qkv.device.type == "cpu" and qkv.dtype != torch.float32 and qkv.shape[1] <= _MAX_SHORT_BF16_SEQLEN
    return _batched_products if is_short else _fused_kernel


def _batched_products(qkv: Tensor, bias: Tensor) -> Tensor:
    query, key, value = qkv.permute(2, 0, 3, 1, 4).contiguous()  # each (B, H, L, D)
    # A bias of three dimensions is what keeps PyTorch from its CPU flash kernel.
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def _fused_kernel(qkv: Tensor, bias: Tensor) -> Tensor:
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, L, D)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias.expand(len(qkv), *bias.shape))


def _triton(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, slopes: tuple[float, ...] | None, window: int | None
) -> Tensor:
    # A registered operator, which torch.compile takes as it is. Choosing the rung has imported what registers it.
    operator: Any = torch.ops.mosaicbert.attention
    context, _log_sum_exp = operator(qkv, cu_seqlens, max_seqlen, slopes, window)
    return context


def _flash_attention_2(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, slopes: tuple[float, ...] | None, window: int | None
) -> Tensor:
    flash_attn: Any = importlib.import_module("flash_attn")
    return flash_attn.flash_attn_varlen_qkvpacked_func(
        qkv,
        cu_seqlens,
        max_seqlen,
        alibi_slopes=None if slopes is None else _slopes_tensor(slopes, qkv.device),
        window_size=(-1, -1) if window is None else (window, window),
        deterministic=True,
    )


# The ladder, fastest rung first; `auto` takes the first that works.
_BACKENDS: dict[str, Callable[[Tensor, Tensor, int, tuple[float, ...] | None, int | None], Tensor]] = {
    "flash_attention_2": _flash_attention_2,
    "triton": _triton,
    "sdpa": _sdpa,
    "eager": _eager,
}
ATTENTION_IMPLEMENTATIONS = ("auto", *_BACKENDS)

# What a rung needs, by name, because exported folders carry this file and transformers demands every import that it
# sees in one. They do not carry the kernels: there, this rung works where this package is installed.
_REQUIRED_MODULES = {"flash_attention_2": "flash_attn", "triton": "mosaicbert.ops.attention_kernels"}


@dataclass(frozen=True)
class AttentionChoice:
    """The rung that attention takes on a device, and why none above it."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"attention: {self.name} ({self.reason})"


@functools.cache
def choose_attention(implementation: str, device_type: str, dtype: torch.dtype, head_dim: int) -> AttentionChoice:
    """Tries rungs by a forward and a backward pass on two toy documents, against the definition.

    Args:
        implementation: "auto", or the rung to take.
        device_type: as in torch.device.
        dtype: of queries, keys and values.
        head_dim: D.

    Raises:
        ValueError: the implementation is unknown.
        RuntimeError: the rung asked for does not work here.
    """
    if implementation not in ATTENTION_IMPLEMENTATIONS:
        raise ValueError(
            f"attn_implementation={implementation!r} is unknown; choose one of {', '.join(ATTENTION_IMPLEMENTATIONS)}."
        )
    if implementation != "auto":
        if failure := _probe(implementation, device_type, dtype, head_dim):
            raise RuntimeError(
                f"attn_implementation={implementation!r} does not work here: {failure}; 'auto' takes one that does."
            )
        return AttentionChoice(implementation, "as asked")
    failures: list[str] = []
    for name in _BACKENDS:
        is_gpu_only = name == "triton" and device_type == "cpu"
        failure = "it is for GPUs" if is_gpu_only else _probe(name, device_type, dtype, head_dim)
        if failure is None:
            return AttentionChoice(name, "; ".join(failures) or "the fastest")
        failures.append(f"no {name}: {failure}")
    raise RuntimeError(f"no attention works on {device_type} in {dtype}: {'; '.join(failures)}.")


def attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    slopes: tuple[float, ...] | None,
    implementation: str = "auto",
    window: int | None = None,
) -> Tensor:
    """Self-attention within each document.

    Args:
        qkv: (T, 3, H, D), queries, keys and values of the documents one behind the other.
        cu_seqlens: (B + 1,) int32, where each document begins; the first is 0, the last is T. Documents may be empty.
        max_seqlen: tokens of the longest document, at least; with less, kernels leave what is behind it undefined.
        slopes: H positive numbers, see `alibi_slopes`; None for attention without a bias.
        implementation: "auto", or a rung by name.
        window: a token attends to those at most this far away, to both sides; None is to its whole document.

    Returns:
        (T, H, D), same dtype.

    Raises:
        ValueError: the implementation is unknown; there is no token; slopes are not H positive numbers; the window
            is less than 1.
        RuntimeError: the rung asked for does not work here.
    """
    _check_arguments(qkv, slopes, window)
    name = _choose_backend_name(implementation, qkv.device.type, qkv.dtype, qkv.shape[-1])
    if name == "triton":
        return _triton(qkv, cu_seqlens, max_seqlen, slopes, window)
    return _run_uncompiled(name, qkv, cu_seqlens, max_seqlen, slopes, window)


@torch.compiler.assume_constant_result
def _choose_backend_name(implementation: str, device_type: str, dtype: torch.dtype, head_dim: int) -> str:
    return choose_attention(implementation, device_type, dtype, head_dim).name


@torch.compiler.disable  # these rungs look at the documents' lengths; what is compiled is around them
def _run_uncompiled(name: str, *arguments: Any) -> Tensor:
    return _BACKENDS[name](*arguments)


def _check_arguments(qkv: Tensor, slopes: tuple[float, ...] | None, window: int | None) -> None:
    if qkv.ndim != 4 or qkv.shape[1] != 3 or not qkv.shape[0]:
        raise ValueError(f"attention needs a (T, 3, H, D) tensor of at least one token, got {tuple(qkv.shape)}.")
    if slopes is not None and (len(slopes) != qkv.shape[2] or min(slopes) <= 0):
        raise ValueError(f"attention needs {qkv.shape[2]} positive slopes, one for each head, or None; got {slopes}.")
    if window is not None and window < 1:
        raise ValueError(f"window={window} leaves every token alone; give at least 1, or None for the whole document.")


def _probe(name: str, device_type: str, dtype: torch.dtype, head_dim: int) -> str | None:
    """Says what is wrong with a rung, or None."""
    slopes = alibi_slopes(2)
    with torch.autocast(device_type, enabled=False), torch.enable_grad(), torch.inference_mode(False):
        cu_seqlens = torch.tensor([0, 7, 12, 12], dtype=torch.int32, device=device_type)
        generator = torch.Generator().manual_seed(0)
        probe_input = torch.randn(12, 3, 2, head_dim, generator=generator, dtype=torch.float64)
        results: list[tuple[Tensor, Tensor]] = []
        try:
            if name in _REQUIRED_MODULES:
                importlib.import_module(_REQUIRED_MODULES[name])
            for backend, input_dtype in ((_BACKENDS[name], dtype), (_eager, torch.float64)):
                qkv = probe_input.to(
                    device=device_type if backend is not _eager else "cpu", dtype=input_dtype
                ).requires_grad_()
                context = backend(qkv, cu_seqlens.to(qkv.device), 7, slopes, None)
                (gradient,) = torch.autograd.grad(context.double().square().sum(), qkv)
                results.append((context.detach().double().cpu(), gradient.double().cpu()))
        except ModuleNotFoundError as error:
            return f"{error.name} is not installed"
        except Exception as error:  # a driver, a compiler, a wheel: whatever fails in a probe is its answer
            return str(error).strip().split("\n")[0] or type(error).__name__
    # A rung may round; it may not compute something else. fp32 on a GPU may be TF32, which Composer for one allows.
    tolerance = 8 * (_TF32_EPS if dtype == torch.float32 and device_type != "cpu" else torch.finfo(dtype).eps)
    for actual, expected in zip(*results, strict=True):
        if not torch.allclose(actual, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())):
            return "its result differs from the definition's"
    return None


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)  # a cached tensor may serve inference first and training later
def _bias(
    slopes: tuple[float, ...] | None, window: int | None, length: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    position = torch.arange(length, device=device)
    distance = (position[:, None] - position[None, :]).abs()
    bias = torch.tensor(slopes or (0.0,), dtype=torch.float64, device=device)[:, None, None] * distance
    if window is not None:
        bias = bias.masked_fill(distance > window, torch.inf)
    return -bias.to(dtype)  # (H or 1, L, L)


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)
def _slopes_tensor(slopes: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(slopes, dtype=torch.float32, device=device)
