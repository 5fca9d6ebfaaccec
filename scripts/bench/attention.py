"""Benchmark of attention, forward and backward.

On a GPU in bf16, the Triton kernels of this package are compared with flash-attn 2 (if installed), PyTorch SDPA and
variable-length attention (both without bias), and FlexAttention with ALiBi and a document mask. Each version gets its
inputs in its preferred layout, and is timed only if its results match. On a CPU, the benchmark compares the two SDPA
code paths at several lengths, and measures the cost of uneven documents.

Run: python scripts/bench/attention.py [--store STORE]
"""

import argparse
import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from documents import SIMULATED, cut, real_seqlens, web_like_seqlens
from harness import dtype_name, measure, print_record, record, write_lines
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mosaicbert.bench.timing import describe_error
from mosaicbert.ops import attention as ops

NUM_HEADS, HEAD_DIM = 12, 64  # MosaicBERT-Base
SLOPES = ops.alibi_slopes(NUM_HEADS)
EVEN_LENGTHS = (16, 32, 64, 128, 192, 256, 512, 1024, 2048)
NUM_EVEN_TOKENS, NUM_UNEVEN_TOKENS = 2048, 4096
MAX_UNEVEN_LENGTH = 512

NUM_GPU_TOKENS = 65_536
GPU_LENGTHS = (128, 512, 1024, 2048, 8192)
BACKWARD_FLOPS = 2.5  # multiple of the forward FLOPs: five products instead of two
NUM_CHECKED_DOCUMENTS = 2  # compared with the PyTorch reference, which stores all scores
MAX_RELATIVE_DIFFERENCE = (
    0.02  # relative to the norm of a tensor; covers bf16 rounding, while a missing bias gives more than 0.1
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--store", type=Path, help="token store with real document lengths for a GPU; default: synthetic lengths"
    )
    store: Path | None = parser.parse_args().store
    if torch.cuda.is_available():
        return compare_on_gpu(gpu_cases(store, NUM_GPU_TOKENS, GPU_LENGTHS))
    for dtype in (torch.bfloat16, torch.float32):
        for length in EVEN_LENGTHS:
            compare_paths(length, dtype)
        compare_uneven_with_even(dtype)
    return 0


@dataclass(frozen=True)
class Case:
    """Input of one measurement.

    Attributes:
        lengths: Description of the document lengths.
        seqlens: Length of each document in tokens.
        qkv: (T, 3, H, D), queries, keys and values.
        grad: (T, H, D), gradient of the output.
        cu_seqlens: (B + 1,) int32, start index of each document, followed by T.
    """

    lengths: str
    seqlens: Sequence[int]
    qkv: Tensor
    grad: Tensor
    cu_seqlens: Tensor

    @property
    def even_length(self) -> int:
        """Length of all documents in tokens.

        Raises:
            ValueError: If the documents have different lengths.
        """
        if len(set(self.seqlens)) > 1:
            raise ValueError("Documents of different lengths are not supported by this version.")
        return self.seqlens[0]


@dataclass(frozen=True)
class Version:
    """Implementation of attention with the inputs of a case.

    Attributes:
        leaves: qkv, or query, key and value, in the preferred layout of the implementation.
        attend: Function of the leaves that returns the output.
        pack: Function that converts the output or one of three leaves to (T, H, D), or qkv to (T, 3, H, D).
        unpack: Function that converts (T, H, D) to the layout of the output.
        has_bias: True for attention with ALiBi.
    """

    leaves: list[Tensor]
    attend: Callable[..., Tensor]
    pack: Callable[[Tensor], Tensor]
    unpack: Callable[[Tensor], Tensor]
    has_bias: bool


def gpu_cases(
    store: Path | None,
    num_tokens: int,
    lengths: Sequence[int],
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
) -> Iterator[Case]:
    """Yield cases with documents of 128 tokens (the main case), of uneven lengths, and of other fixed lengths."""
    uneven = (
        cut(web_like_seqlens(num_tokens, MAX_UNEVEN_LENGTH), num_tokens)
        if store is None
        else real_seqlens(store, num_tokens)
    )
    uneven_name = f"{SIMULATED if store is None else 'real'}, up to {max(uneven)}"
    even = [(f"all {length}", [length] * (num_tokens // length)) for length in lengths]
    for name, seqlens in (even[0], (uneven_name, sorted(uneven, reverse=True)), *even[1:]):
        generator = torch.Generator(device).manual_seed(0)
        qkv = torch.randn(num_tokens, 3, NUM_HEADS, HEAD_DIM, generator=generator, device=device, dtype=dtype)
        grad = torch.randn(num_tokens, NUM_HEADS, HEAD_DIM, generator=generator, device=device, dtype=dtype)
        cu_seqlens = torch.tensor([0, *seqlens], device=device).cumsum(0).int()
        yield Case(name, seqlens, qkv, grad, cu_seqlens)


def triton_version(case: Case, slopes: tuple[float, ...] | None = SLOPES, backend: str = "triton") -> Version:
    max_seqlen = max(case.seqlens)
    return Version(
        [leaf(case.qkv)],
        lambda qkv: ops.attention(qkv, case.cu_seqlens, max_seqlen, slopes, backend),
        lambda packed: packed,
        lambda packed: packed,
        slopes is not None,
    )


def flash_attn(case: Case, slopes: tuple[float, ...] | None) -> Version:
    library: Any = importlib.import_module("flash_attn")
    max_seqlen = max(case.seqlens)
    on_device = None if slopes is None else torch.tensor(slopes, device=case.qkv.device)
    attend = functools.partial(
        library.flash_attn_varlen_qkvpacked_func,
        cu_seqlens=case.cu_seqlens,
        max_seqlen=max_seqlen,
        alibi_slopes=on_device,
    )
    return Version([leaf(case.qkv)], attend, lambda packed: packed, lambda packed: packed, slopes is not None)


def sdpa_flash(case: Case) -> Version:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    length = case.even_length

    def attend(*leaves: Tensor) -> Tensor:  # each (B, L, H, D), the memory layout of flash kernels
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(*(tensor.transpose(1, 2) for tensor in leaves)).transpose(1, 2)

    leaves = [leaf(tensor.unflatten(0, (-1, length))) for tensor in case.qkv.unbind(1)]
    return Version(
        leaves, attend, lambda out: out.flatten(0, 1), lambda packed: packed.unflatten(0, (-1, length)), False
    )


def varlen(case: Case) -> Version:
    varlen_attn: Any = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    max_seqlen = max(case.seqlens)
    return Version(
        [leaf(tensor) for tensor in case.qkv.unbind(1)],
        lambda q, k, v: varlen_attn(q, k, v, case.cu_seqlens, case.cu_seqlens, max_seqlen, max_seqlen),
        lambda packed: packed,
        lambda packed: packed,
        False,
    )


def flex(case: Case) -> Version:
    from torch.nn.attention.flex_attention import create_block_mask

    # One function and one set of tensors for all cases avoid recompilation.
    attend, in_document, document_of = _flex(len(case.qkv), case.qkv.device)
    document_of.copy_(torch.repeat_interleave(case.cu_seqlens.diff()))
    num_tokens = len(case.qkv)
    mask = create_block_mask(in_document, None, None, num_tokens, num_tokens, device=case.qkv.device)
    return Version(
        [leaf(tensor.transpose(0, 1)[None]) for tensor in case.qkv.unbind(1)],  # each (1, H, T, D)
        lambda q, k, v: attend(q, k, v, mask),
        lambda out: out[0].transpose(0, 1),
        lambda packed: packed.transpose(0, 1)[None],
        True,
    )


@functools.cache
def _flex(num_tokens: int, device: torch.device) -> tuple[Callable[..., Tensor], Callable[..., Tensor], Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    document_of = torch.zeros(num_tokens, dtype=torch.int64, device=device)
    slopes = torch.tensor(SLOPES, device=device)
    compiled: Any = torch.compile(flex_attention, dynamic=False) if device.type == "cuda" else flex_attention

    def alibi(score: Tensor, _batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return score - slopes[head] * (row - column).abs()

    def in_document(_batch: Tensor, _head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return document_of[row] == document_of[column]

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: object) -> Tensor:
        return compiled(query, key, value, score_mod=alibi, block_mask=mask)

    return attend, in_document, document_of


TRITON_VERSION = "mosaicbert triton, ALiBi"
BUILDERS: dict[str, Callable[[Case], Version]] = {
    TRITON_VERSION: triton_version,
    "flash-attn 2, ALiBi": lambda case: flash_attn(case, SLOPES),
    "flash-attn 2, no bias": lambda case: flash_attn(case, None),
    "SDPA flash, no bias": sdpa_flash,
    "torch varlen_attn, no bias": varlen,
    "FlexAttention, ALiBi and document mask": flex,
}


def compare_on_gpu(cases: Iterator[Case], builders: dict[str, Callable[[Case], Version]] = BUILDERS) -> int:
    """Record every version on every case, and return 1 if the Triton version failed."""
    failures = 0
    for case in cases:
        versions: dict[str, Version] = {}
        errors: dict[str, str] = {}
        # Results of the Triton version, checked against the PyTorch reference, are expected of the other versions.
        references: dict[bool, list[Tensor]] = {}
        for by, build in builders.items():
            try:
                version = build(case)
                if version.has_bias not in references:
                    references[version.has_bias] = checked_reference(case, SLOPES if version.has_bias else None)
                check_results(results(version, case), references[version.has_bias])
                versions[by] = version
            except Exception as error:  # any failure of a version is its result
                errors[by] = describe_error(error)
        failures += TRITON_VERSION in errors
        references.clear()
        record_case(case, versions, errors, is_training=True)
        record_case(case, versions, errors, is_training=False)
    return min(failures, 1)


def record_case(case: Case, versions: dict[str, Version], errors: dict[str, str], is_training: bool) -> None:
    device = case.qkv.device.type
    make = training_call if is_training else forward_call
    timings, late_errors = measure({by: make(version, case) for by, version in versions.items()}, device, seconds=0.5)
    forward = 4.0 * HEAD_DIM * NUM_HEADS * sum(length**2 for length in case.seqlens)
    flops = forward * (1.0 + BACKWARD_FLOPS) if is_training else forward
    best = min((timing.median for timing in timings.values()), default=0.0)
    shape = {
        "documents": len(case.seqlens),
        "tokens": len(case.qkv),
        "longest": max(case.seqlens),
        "heads": NUM_HEADS,
        "head_dim": HEAD_DIM,
    }
    for by in {**versions, **errors}:
        line: dict[str, Any] = {
            "what": "forward and backward" if is_training else "forward",
            "by": by,
            "lengths": case.lengths,
            "shape": shape,
            "dtype": dtype_name(case.qkv.dtype),
        }
        if by in timings:
            median = timings[by].median
            line |= {"median_us": round(median, 1), "iqr_us": round(timings[by].iqr, 1)}
            line |= {"tflops": round(flops / median / 1e6, 1), "fraction_of_best": round(best / median, 3)}
        else:
            line["error"] = {**errors, **late_errors}[by]
        write_lines("attention", [line], device)
        print_record(line)


def forward_call(version: Version, _case: Case) -> Callable[[], object]:
    leaves = [tensor.detach() for tensor in version.leaves]

    def call() -> object:
        with torch.no_grad():
            return version.attend(*leaves)

    return call


def training_call(version: Version, case: Case) -> Callable[[], object]:
    grad = version.unpack(case.grad).contiguous()
    return lambda: torch.autograd.grad(version.attend(*version.leaves), version.leaves, grad)


def results(version: Version, case: Case) -> list[Tensor]:
    """Compute the output, (T, H, D), and the gradient of qkv, (T, 3, H, D)."""
    out = version.attend(*version.leaves)
    grads = torch.autograd.grad(out, version.leaves, version.unpack(case.grad).contiguous())
    packed = [version.pack(grad) for grad in grads]
    return [version.pack(out).detach(), packed[0] if len(packed) == 1 else torch.stack(packed, dim=1)]


def checked_reference(case: Case, slopes: tuple[float, ...] | None) -> list[Tensor]:
    """Compute the results of the Triton version, and check the first documents against the PyTorch reference."""
    actual = results(triton_version(case, slopes), case)
    num_tokens = sum(case.seqlens[:NUM_CHECKED_DOCUMENTS])
    qkv = case.qkv[:num_tokens].float().requires_grad_()
    out = ops.attention_reference(qkv, case.cu_seqlens[: NUM_CHECKED_DOCUMENTS + 1], slopes)
    (grad,) = torch.autograd.grad(out, qkv, case.grad[:num_tokens].float())
    check_results([tensor[:num_tokens] for tensor in actual], [out.detach(), grad])
    return actual


def check_results(actual: list[Tensor], expected: list[Tensor]) -> None:
    for name, result, reference in zip(("output", "gradient"), actual, expected, strict=True):
        difference = float((result.float() - reference.float()).norm() / reference.float().norm())
        if not difference <= MAX_RELATIVE_DIFFERENCE:
            raise ValueError(
                f"Relative difference of the {name} must be at most {MAX_RELATIVE_DIFFERENCE}, got {difference:.3f}."
            )


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().requires_grad_()


def compare_paths(length: int, dtype: torch.dtype) -> None:
    """Time the selected code path of the sdpa backend, the other one, and the eager backend."""
    seqlens = [length] * (NUM_EVEN_TOKENS // length)
    qkv = random_qkv(sum(seqlens), dtype)
    documents, bias = qkv.unflatten(0, (-1, length)), ops._bias(SLOPES, None, length, dtype, qkv.device)
    chosen = ops._choose_sdpa_function(documents)
    other = ops._fused_kernel if chosen is ops._batched_products else ops._batched_products
    versions = {
        f"sdpa, {chosen.__name__.strip('_')}": training_step(lambda qkv: chosen(qkv, bias), documents),
        f"sdpa, {other.__name__.strip('_')}": training_step(lambda qkv: other(qkv, bias), documents),
        "eager": training_step(packed_attention("eager", seqlens), qkv),
    }
    shape = {"documents": len(seqlens), "length": length, "heads": NUM_HEADS, "head_dim": HEAD_DIM}
    record("attention", "even documents", versions, shape=shape, dtype=dtype, seconds=1.0)


def compare_uneven_with_even(dtype: torch.dtype) -> None:
    """Time uneven documents, even documents with equal numbers of tokens and products, and padded uneven documents."""
    uneven = web_like_seqlens(NUM_UNEVEN_TOKENS, MAX_UNEVEN_LENGTH)
    even_length = round(sum(length**2 for length in uneven) / sum(uneven))
    num_even, rest = divmod(sum(uneven), even_length)
    even = [even_length] * num_even + [rest] * (rest > 0)
    qkv = random_qkv(sum(uneven), dtype)
    padded = pad_sequence(qkv.split(uneven), batch_first=True)
    mask = ops._bias(SLOPES, None, max(uneven), dtype, qkv.device).repeat(len(uneven), 1, 1, 1)
    for number, length in enumerate(uneven):
        mask[number, ..., length:] = -torch.inf
    versions = {
        "sdpa, even documents": training_step(packed_attention("sdpa", even), qkv),
        "sdpa, uneven documents": training_step(packed_attention("sdpa", uneven), qkv),
        "SDPA, padded to the longest": training_step(lambda qkv: padded_attention(qkv, mask), padded),
    }
    shape = {
        "documents": len(uneven),
        "tokens": sum(uneven),
        "longest": max(uneven),
        "padded_tokens": len(uneven) * max(uneven),
        "heads": NUM_HEADS,
        "head_dim": HEAD_DIM,
    }
    record("attention", "uneven documents, per real token", versions, shape=shape, dtype=dtype, seconds=4.0)


def random_qkv(num_tokens: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_tokens, 3, NUM_HEADS, HEAD_DIM, generator=generator).to(dtype)


def packed_attention(backend: str, seqlens: list[int]) -> Callable[[Tensor], Tensor]:
    cu_seqlens = torch.tensor([0, *seqlens]).cumsum(0).int()
    return lambda qkv: ops.attention(qkv, cu_seqlens, max(seqlens), SLOPES, backend)


def padded_attention(qkv: Tensor, mask: Tensor) -> Tensor:
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, S, D)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def training_step(attend: Callable[[Tensor], Tensor], qkv: Tensor) -> Callable[[], object]:
    qkv = qkv.detach().requires_grad_()
    grad_context = torch.ones_like(attend(qkv))
    return lambda: torch.autograd.grad(attend(qkv), qkv, grad_context)


if __name__ == "__main__":
    sys.exit(main())
