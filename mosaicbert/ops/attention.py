"""Attention backends for packed documents with ALiBi: out = softmax(q k^T / sqrt(D) - slope * |i - j|) v.

Attention is bidirectional and restricted to the tokens of one document. ALiBi is defined by Press et al. 2022
(arXiv:2108.12409); this module uses the symmetric form of MosaicBERT (arXiv:2312.17482).

Backends in fallback order: flash-attn (GPUs where it is installed), the Triton kernels of this package (GPUs), PyTorch
SDPA (all devices), and the eager PyTorch reference.
"""

import functools
import importlib
import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mosaicbert.modes import is_out_of_memory, run_without_modes
from mosaicbert.ops.packed_attention import MAX_SEQLEN, packed_attention, padded_length

_TF32_EPS = 2.0**-10
# Document lengths of the batches that probe a backend. GPU kernels have tiles of 16 to 128 tokens. The documents of the
# first batch have at most one tile. The second batch has partial and full tiles and reaches every kernel and loop.
_GPU_PROBE_BATCHES = ((7, 5, 0, 128), (7, 129, 0, 300, 5, 256, 384))
_CPU_PROBE_BATCHES = ((7, 5, 0),)
# PyTorch's CPU flash kernel converts every bf16 block before multiplying it. For documents up to this length, batched
# matrix products are faster.
_MAX_SHORT_BF16_SEQLEN = 192  # tokens; measured by scripts/bench/attention.py
_MAX_GPU_BIAS_ENTRIES = 2**28  # of a padded call of SDPA, 0.5 GiB in half precision


class DocumentLengths:
    """Lengths of the documents of a packed batch on the host. They are read from the device once, when needed.

    Args:
        cu_seqlens: (B + 1,) int32, see `attention`.
    """

    def __init__(self, cu_seqlens: Tensor) -> None:
        self._cu_seqlens = cu_seqlens
        self._padded: dict[Any, tuple[Tensor, tuple[Tensor, ...]]] = {}

    @functools.cached_property
    def seqlens(self) -> tuple[int, ...]:
        """Number of tokens of each document, without empty documents."""
        return tuple(length for length in self._cu_seqlens.diff().tolist() if length)

    def padded(
        self, slopes: tuple[float, ...] | None, window: int | None, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return what the layers need to compute the batch padded to its longest document. It is computed once.

        Args:
            slopes: See `attention`.
            window: See `attention`.
            dtype: dtype of the bias.
            device: Device of the tensors.

        Returns:
            (T,) int64, position of each token in the padded batch; and the bias of the scores in chunks of documents,
            (B, H or 1, L, L) each, the lowest finite value where a key is not visible.
        """
        key = (slopes, window, dtype, device)
        if key not in self._padded:
            seqlens, longest = self.seqlens, max(self.seqlens)
            rows = [range(row * longest, row * longest + length) for row, length in enumerate(seqlens)]
            positions = torch.tensor([*itertools.chain(*rows)], device=device)
            is_token = torch.zeros(len(seqlens) * longest, dtype=torch.bool, device=device)
            is_token = is_token.index_fill_(0, positions, True).view(-1, 1, 1, longest)
            # Finite, since a query at padding may have no key, and NaN would reach the gradients of all keys.
            lowest = torch.finfo(dtype).min
            alibi = _bias(slopes, window, longest, dtype, device).clamp_min(lowest)
            chunk = max(1, _MAX_GPU_BIAS_ENTRIES // (len(alibi) * longest**2))
            biases = tuple(torch.where(is_key, alibi, lowest) for is_key in is_token.split(chunk))
            self._padded[key] = positions, biases
        return self._padded[key]


class PackedDocuments(NamedTuple):
    """Documents of a packed batch, for `attend`.

    Attributes:
        cu_seqlens: (B + 1,) int32, see `attention`.
        max_seqlen: Number of tokens of the longest document, or more.
        backend: Name of the attention backend.
        lengths: Lengths on the host, for backends that need them.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    backend: str
    lengths: DocumentLengths


class AttentionRecorder:
    """Attention weights of the layers of one forward pass.

    It is not a list, which hooks of accelerate and FSDP copy when they move the inputs of a layer.

    Attributes:
        weights: Weights of each layer, (B, H, S, P + S) each.
    """

    def __init__(self) -> None:
        self.weights: list[Tensor] = []


class PaddedDocuments(NamedTuple):
    """Documents of a padded batch, for `attend`. The attention is computed by SDPA without data-dependent code.

    Attributes:
        bias: (B, H, S, P + S) bias of the scores, the lowest finite value at padding, see `padded_bias`.
        recorder: Recorder of the attention weights, or None.
        prefix: Keys and values of P tokens before those of each sequence, (B, H, P, D) each, or None if P is 0.
    """

    bias: Tensor
    recorder: AttentionRecorder | None
    prefix: tuple[Tensor, Tensor] | None = None


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """Compute the ALiBi slope of each attention head.

    If the number of heads n is a power of two, head h (counted from 1) has the slope 2^(-8 h / n). Otherwise the slopes
    of the next lower power of two are followed by every second slope of the next higher power of two.

    Args:
        num_heads: Number of attention heads, at least 1.

    Returns:
        num_heads slopes, each greater than 0 and less than 1.

    Source: ofirpress/attention_with_linear_biases, the reference code of Press et al. 2022 (arXiv:2108.12409).
    """
    power_of_two = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * (head + 1) / power_of_two) for head in range(power_of_two)]
    interleaved_slopes = [2.0 ** (-8.0 * (head + 1) / (2 * power_of_two)) for head in range(0, 2 * power_of_two, 2)]
    return tuple(slopes + interleaved_slopes[: num_heads - power_of_two])


def attention_reference(
    qkv: Tensor, cu_seqlens: Tensor, slopes: tuple[float, ...] | None, window: int | None = None
) -> Tensor:
    """Compute attention in plain PyTorch, one document at a time.

    Args:
        qkv: (T, 3, H, D), see `attention`.
        cu_seqlens: (B + 1,) int32, see `attention`.
        slopes: H positive numbers, or None for attention without a bias.
        window: Maximum distance between two tokens that attend to each other, or None for no limit.

    Returns:
        (T, H, D), same dtype as qkv. The softmax is computed in fp32 or in the wider dtype of qkv.
    """
    documents = qkv.split([length for length in cu_seqlens.diff().tolist() if length])
    contexts: list[Tensor] = []
    for document in documents:
        query, key, value = document.permute(1, 2, 0, 3)  # each (H, L, D)
        scores = query @ key.transpose(1, 2) / math.sqrt(qkv.shape[-1])
        scores = scores + _bias(slopes, window, document.shape[0], qkv.dtype, qkv.device)
        weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(qkv.dtype, torch.float32))
        contexts.append((weights.to(qkv.dtype) @ value).transpose(0, 1))
    return torch.cat(contexts)


def _eager(qkv: Tensor, documents: PackedDocuments, slopes: tuple[float, ...] | None, window: int | None) -> Tensor:
    return attention_reference(qkv, documents.cu_seqlens, slopes, window)


def _sdpa(qkv: Tensor, documents: PackedDocuments, slopes: tuple[float, ...] | None, window: int | None) -> Tensor:
    seqlens = documents.lengths.seqlens
    if qkv.device.type != "cpu":
        return _sdpa_padded(qkv, documents.lengths, slopes, window)
    if max(seqlens) <= MAX_SEQLEN and _has_half_precision_products(qkv.device.type, qkv.dtype):
        length = padded_length(max(seqlens))
        return packed_attention(qkv, seqlens, _bias(slopes, window, length, qkv.dtype, qkv.device))
    # Consecutive documents of equal length are processed in one call, so no padding and no document mask is needed.
    # split() is used instead of slices because the gradient of a slice has the size of the whole tensor.
    equal_length_runs = [(length, len(list(group))) for length, group in itertools.groupby(seqlens)]
    chunks = qkv.split([length * count for length, count in equal_length_runs])
    bias = _bias(slopes, window, 1 << (max(seqlens) - 1).bit_length(), qkv.dtype, qkv.device)
    contexts = [
        _sdpa_equal_lengths(chunk.unflatten(0, (count, length)), bias[:, :length, :length])
        for chunk, (length, count) in zip(chunks, equal_length_runs, strict=True)
    ]
    return torch.cat(contexts)


def _sdpa_padded(qkv: Tensor, lengths: DocumentLengths, slopes: tuple[float, ...] | None, window: int | None) -> Tensor:
    # Documents are padded to the longest one, so that a GPU needs few launches.
    positions, biases = lengths.padded(slopes, window, qkv.dtype, qkv.device)
    longest = biases[0].shape[-1]
    padded = qkv.new_zeros(len(lengths.seqlens) * longest, *qkv.shape[1:]).index_copy_(0, positions, qkv)
    batches = padded.unflatten(0, (-1, longest)).split([len(bias) for bias in biases])
    contexts = [_fused_kernel(batch, bias) for batch, bias in zip(batches, biases, strict=True)]  # (B, H, L, D) each
    return torch.cat(contexts).transpose(1, 2).flatten(0, 1)[positions]


@functools.cache
def _has_half_precision_products(device_type: str, dtype: torch.dtype) -> bool:
    """Return whether the CPU multiplies matrices of this half-precision dtype with its own instructions."""
    mkldnn: Any = torch.ops.mkldnn
    supported = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    return device_type == "cpu" and dtype in supported and getattr(mkldnn, supported[dtype])()


def _sdpa_equal_lengths(qkv: Tensor, bias: Tensor) -> Tensor:  # (B, L, 3, H, D) -> (B * L, H, D)
    if qkv.shape[1] == 1:
        return qkv[:, 0, 2]  # one token attends only to itself; kernels of some CPUs would add rounding errors
    return _choose_sdpa_function(qkv)(qkv, bias).transpose(1, 2).flatten(0, 1)


def _choose_sdpa_function(qkv: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    is_short = qkv.device.type == "cpu" and qkv.dtype != torch.float32 and qkv.shape[1] <= _MAX_SHORT_BF16_SEQLEN
    return _batched_products if is_short else _fused_kernel


def _batched_products(qkv: Tensor, bias: Tensor) -> Tensor:
    query, key, value = qkv.permute(2, 0, 3, 1, 4).contiguous()  # each (B, H, L, D)
    # PyTorch does not select its CPU flash kernel for a three-dimensional bias.
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def _fused_kernel(qkv: Tensor, bias: Tensor) -> Tensor:
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, L, D)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias.expand(len(qkv), *bias.shape[-3:]))


def _triton(qkv: Tensor, documents: PackedDocuments, slopes: tuple[float, ...] | None, window: int | None) -> Tensor:
    # torch.compile does not trace into a registered operator. The module that registers it was imported when the
    # backend was chosen.
    operator: Any = torch.ops.mosaicbert.attention
    context, _log_sum_exp = operator(qkv, documents.cu_seqlens, documents.max_seqlen, slopes, window)
    return context


def _flash_attention_2(
    qkv: Tensor, documents: PackedDocuments, slopes: tuple[float, ...] | None, window: int | None
) -> Tensor:
    flash_attn: Any = importlib.import_module("flash_attn")
    return flash_attn.flash_attn_varlen_qkvpacked_func(
        qkv,
        documents.cu_seqlens,
        documents.max_seqlen,
        alibi_slopes=None if slopes is None else _slopes_tensor(slopes, qkv.device),
        window_size=(-1, -1) if window is None else (window, window),
        deterministic=True,
    )


# Fallback order, fastest backend first. `auto` selects the first backend that passes the probe.
_BACKENDS: dict[str, Callable[[Tensor, PackedDocuments, tuple[float, ...] | None, int | None], Tensor]] = {
    "flash_attention_2": _flash_attention_2,
    "triton": _triton,
    "sdpa": _sdpa,
    "eager": _eager,
}
ATTENTION_IMPLEMENTATIONS = ("auto", *_BACKENDS)

# Modules are imported by name: exported folders contain this file, and transformers requires every module that it finds
# in an import statement of such a file. Exported folders do not contain the kernels, so the Triton backend of an
# exported model requires the installed package.
_REQUIRED_MODULES = {"flash_attention_2": "flash_attn", "triton": "mosaicbert.ops.attention_kernels"}


@dataclass(frozen=True)
class AttentionChoice:
    """Attention backend selected for a device.

    Attributes:
        name: Name of the backend.
        reason: Reason for the selection, including why earlier backends of the fallback order are unavailable.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"attention: {self.name} ({self.reason})"


@functools.cache
def choose_attention(implementation: str, device_type: str, dtype: torch.dtype, head_dim: int) -> AttentionChoice:
    """Select an attention backend by probing it on this machine.

    The probe runs a forward and a backward pass on a few short documents, on a GPU also on documents of up to 384
    tokens, and compares outputs and gradients with the fp64 PyTorch reference. The result is cached per combination of
    arguments. The modes of the caller, such as inference mode or a default device, have no effect on it.

    Args:
        implementation: Name of a backend, or "auto" for the first backend of the fallback order that passes the probe.
        device_type: Device type as in torch.device, for example "cuda".
        dtype: dtype of queries, keys and values.
        head_dim: Head size D.

    Returns:
        The selected backend and the reason.

    Raises:
        ValueError: If implementation is not a known name.
        RuntimeError: If the requested backend, or with "auto" every backend, fails the probe.
        RuntimeError: If the device has too little memory for the probe.
    """
    if implementation not in ATTENTION_IMPLEMENTATIONS:
        raise ValueError(
            f"`attn_implementation` must be one of {', '.join(ATTENTION_IMPLEMENTATIONS)}, got {implementation!r}. "
            "Use 'auto' for the fastest backend that works."
        )
    if implementation != "auto":
        if failure := _probe(implementation, device_type, dtype, head_dim):
            raise RuntimeError(
                f"`attn_implementation={implementation!r}` is not supported on this machine: {failure.rstrip('.')}. "
                "Use 'auto' for the fastest backend that works."
            )
        return AttentionChoice(implementation, "as requested")
    failures: list[str] = []
    for name in _BACKENDS:
        is_gpu_only = name == "triton" and device_type == "cpu"
        failure = "requires a GPU" if is_gpu_only else _probe(name, device_type, dtype, head_dim)
        if failure is None:
            choice = AttentionChoice(name, "; ".join(failures) or "first in the fallback order")
            if device_type == "cuda" and name in ("sdpa", "eager"):
                warnings.warn(
                    f"{choice}. It computes padding. Install flash-attn, or this package for its Triton kernels.",
                    stacklevel=2,
                )
            return choice
        failures.append(f"{name} unavailable: {failure.rstrip('.')}")
    raise RuntimeError(
        f"No attention backend is supported on device {device_type!r} with {dtype}: {'; '.join(failures)}. "
        "Use a different device or dtype."
    )


def attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    slopes: tuple[float, ...] | None,
    implementation: str = "auto",
    window: int | None = None,
) -> Tensor:
    """Compute self-attention within each document of a packed batch.

    Args:
        qkv: (T, 3, H, D), queries, keys and values of the concatenated documents, T at least 1.
        cu_seqlens: (B + 1,) int32, start index of each document, followed by T. The first entry is 0. Documents may be
            empty.
        max_seqlen: Number of tokens of the longest document, or more. If it is smaller, the kernels leave the results
            of later tokens undefined.
        slopes: H positive numbers, see `alibi_slopes`, or None for attention without a bias.
        implementation: Name of a backend, or "auto" for the first backend that works, see `choose_attention`.
        window: Maximum distance in tokens, in both directions, between two tokens that attend to each other; at least
            1, or None for no limit.

    Returns:
        (T, H, D), same dtype as qkv.

    Raises:
        ValueError: If implementation is not a known name, qkv has a different shape or no token, slopes are not H
            positive numbers, or window is less than 1.
        RuntimeError: If the requested backend is not supported on this machine.
    """
    _check_arguments(qkv, slopes, window)
    documents = pack_documents(cu_seqlens, max_seqlen, implementation, qkv.device.type, qkv.dtype, qkv.shape[-1])
    return attend(qkv, documents, slopes, window)


def pack_documents(
    cu_seqlens: Tensor, max_seqlen: int, implementation: str, device_type: str, dtype: torch.dtype, head_dim: int
) -> PackedDocuments:
    """Choose the attention backend of a packed batch, once for all layers.

    Args:
        cu_seqlens: (B + 1,) int32, see `attention`.
        max_seqlen: Number of tokens of the longest document, or more.
        implementation: Name of a backend, or "auto", see `choose_attention`.
        device_type: Device type as in torch.device, for example "cuda".
        dtype: dtype of queries, keys and values.
        head_dim: Head size D.

    Raises:
        ValueError: If implementation is not a known name.
        RuntimeError: If the requested backend is not supported on this machine.
    """
    backend = _choose_backend_name(implementation, device_type, dtype, head_dim)
    return PackedDocuments(cu_seqlens, max_seqlen, backend, DocumentLengths(cu_seqlens))


def padded_bias(
    is_token: Tensor, is_prefix: Tensor, is_start: Tensor | None, slopes: tuple[float, ...], dtype: torch.dtype
) -> Tensor:
    """Compute the bias of the scores of a padded batch: -slope * |i - j|, the lowest finite value if j is not visible.

    Args:
        is_token: (B, S) bool, True for real tokens. Distances count real tokens only.
        is_prefix: (B, P) bool, True for the visible tokens before each sequence, which have no position (bias 0).
        is_start: (B, S) bool, True for the first token of a document within a row, or None if each row is a document.
        slopes: H positive numbers, see `alibi_slopes`.
        dtype: dtype of the bias.

    Returns:
        (B, H, S, P + S).
    """
    position = is_token.int().cumsum(dim=1)  # (B, S)
    distance = (position[:, :, None] - position[:, None, :]).abs()  # (B, S, S)
    alibi = -torch.tensor(slopes, device=is_token.device)[:, None, None] * distance[:, None]  # (B, H, S, S) fp32
    is_visible = is_token[:, None, :].expand(distance.shape)
    if is_start is not None:
        document = is_start.int().cumsum(dim=1)
        is_visible = is_visible & (document[:, :, None] == document[:, None, :])
    prefix_length = is_prefix.shape[1]
    if prefix_length:
        alibi = F.pad(alibi, (prefix_length, 0))
        is_visible = torch.cat([is_prefix[:, None, :].expand(-1, distance.shape[1], -1), is_visible], dim=2)
    return torch.where(is_visible[:, None], alibi.to(dtype), torch.finfo(dtype).min)


def attend(
    qkv: Tensor,
    documents: PackedDocuments | PaddedDocuments,
    slopes: tuple[float, ...] | None,
    window: int | None = None,
) -> Tensor:
    """Compute `attention` with the backend that `pack_documents` has chosen, or of a padded batch.

    Args:
        qkv: (T, 3, H, D), for a padded batch (B * S, 3, H, D).
        documents: Documents of the batch.
        slopes: H positive numbers, or None. Not used for a padded batch, whose bias contains them.
        window: See `attention`. None for a padded batch.

    Returns:
        (T, H, D), same dtype as qkv.
    """
    if isinstance(documents, PaddedDocuments):
        return _attend_padded(qkv, documents)
    if documents.backend == "triton":
        return _triton(qkv, documents, slopes, window)
    return _run_uncompiled(documents.backend, qkv, documents, slopes, window)


def _attend_padded(qkv: Tensor, documents: PaddedDocuments) -> Tensor:
    rows = qkv.reshape(-1, documents.bias.shape[-2], *qkv.shape[1:])  # (B, S, 3, H, D)
    query, key, value = rows.permute(2, 0, 3, 1, 4)  # each (B, H, S, D)
    if documents.prefix is not None:
        key, value = (torch.cat(pair, dim=2) for pair in zip(documents.prefix, (key, value), strict=True))
    bias = documents.bias.to(qkv.dtype)
    if documents.recorder is None:
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    else:
        scores = query @ key.transpose(2, 3) / math.sqrt(qkv.shape[-1]) + bias
        weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(qkv.dtype, torch.float32)).to(qkv.dtype)
        documents.recorder.weights.append(weights)
        context = weights @ value
    return context.transpose(1, 2).flatten(0, 1)


@torch.compiler.assume_constant_result
def _choose_backend_name(implementation: str, device_type: str, dtype: torch.dtype, head_dim: int) -> str:
    return choose_attention(implementation, device_type, dtype, head_dim).name


@torch.compiler.disable  # these backends read the document lengths on the host, which torch.compile cannot trace
def _run_uncompiled(name: str, *arguments: Any) -> Tensor:
    return _BACKENDS[name](*arguments)


def _check_arguments(qkv: Tensor, slopes: tuple[float, ...] | None, window: int | None) -> None:
    if qkv.ndim != 4 or qkv.shape[1] != 3 or not qkv.shape[0]:
        raise ValueError(
            f"`attention` qkv must be (T, 3, H, D) with at least one token, got {tuple(qkv.shape)}. "
            "Remove padding and skip empty batches first."
        )
    if slopes is not None and (len(slopes) != qkv.shape[2] or min(slopes) <= 0):
        raise ValueError(
            f"`attention` slopes must be {qkv.shape[2]} positive numbers, one per head, got {slopes}. "
            "Use alibi_slopes(num_heads), or None for attention without a bias."
        )
    if window is not None and window < 1:
        raise ValueError(f"`attention` window must be at least 1, got {window}. Use None for the whole document.")


def _probe(name: str, device_type: str, dtype: torch.dtype, head_dim: int) -> str | None:
    """Return the reason why a backend does not work, or None if it works."""

    def compare() -> str | None:
        for seqlens in _CPU_PROBE_BATCHES if device_type == "cpu" else _GPU_PROBE_BATCHES:
            if failure := _compare_with_reference(name, device_type, dtype, head_dim, seqlens):
                return failure
        return None

    try:
        if name in _REQUIRED_MODULES:
            importlib.import_module(_REQUIRED_MODULES[name])
        return run_without_modes(compare)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except Exception as error:  # drivers, compilers and wheels fail in many ways, each of which is a reason
        if is_out_of_memory(error):
            raise
        return str(error).strip().split("\n")[0] or type(error).__name__


def _compare_with_reference(
    name: str, device_type: str, dtype: torch.dtype, head_dim: int, seqlens: tuple[int, ...]
) -> str | None:
    """Return where a backend differs from the fp64 PyTorch reference by more than rounding, or None."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(sum(seqlens), 4, 2, head_dim, generator=generator, dtype=torch.float64).to(dtype)
    actual = _output_and_gradients(name, inputs.to(device_type), seqlens)
    expected = _output_and_gradients("eager", inputs.double(), seqlens)
    tolerance = _probe_tolerance(name, device_type, dtype)
    for result in expected:
        # Each document has its own tolerance: the results of long documents are averages, and smaller.
        documents = zip(actual[result].split(seqlens), expected[result].split(seqlens), strict=True)
        for values, reference in documents:
            if len(reference) and not (values - reference).abs().max() <= tolerance * reference.abs().max():  # or NaN
                return f"its {result} for a document of {len(reference)} tokens differs from the PyTorch reference"
    return None


def _probe_tolerance(name: str, device_type: str, dtype: torch.dtype) -> float:
    """Return the largest rounding error of a backend, relative to the largest result of a document."""
    if dtype in (torch.bfloat16, torch.float16):
        return 4 * torch.finfo(dtype).eps
    if device_type == "cpu":
        return 64 * torch.finfo(dtype).eps
    # On a GPU, PyTorch's fp32 products may use TF32, which Composer enables. The Triton kernels split each fp32 number
    # into two TF32 numbers, and one of them alone must not pass.
    return 512 * torch.finfo(dtype).eps if name == "triton" else 4 * _TF32_EPS


def _output_and_gradients(name: str, inputs: Tensor, seqlens: tuple[int, ...]) -> dict[str, Tensor]:
    """Run a backend on queries, keys, values and the gradient of the output, (T, 4, H, D)."""
    cu_seqlens = torch.tensor([0, *itertools.accumulate(seqlens)], dtype=torch.int32, device=inputs.device)
    qkv = inputs[:, :3].contiguous().requires_grad_()
    documents = PackedDocuments(cu_seqlens, max(seqlens), name, DocumentLengths(cu_seqlens))
    context = _BACKENDS[name](qkv, documents, alibi_slopes(inputs.shape[2]), None)
    (gradient,) = torch.autograd.grad(context, qkv, inputs[:, 3].contiguous())
    results = (context.detach(), *gradient.unbind(1))
    names = ("output", "gradient of the queries", "gradient of the keys", "gradient of the values")
    return {name: result.double().cpu() for name, result in zip(names, results, strict=True)}


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)  # a cached tensor may be used for inference first and for training later
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
