"""Attention, forward and backward.

On a GPU, in bf16: ours against flash-attn 2 where that is installed, PyTorch's SDPA and variable-length attention,
which have no bias, and FlexAttention with ALiBi and a mask of documents. Each gets its inputs in the layout that it
likes best, and nobody is timed who computes something else than ours does. On a CPU: which of our code paths is faster
at which length, and what uneven documents cost.

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
from documents import MADE_UP, cut, real_seqlens, web_like_seqlens
from harness import describe, dtype_name, measure, print_record, record, write_lines
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mosaicbert.ops import attention as ops

NUM_HEADS, HEAD_DIM = 12, 64  # MosaicBERT-Base
SLOPES = ops.alibi_slopes(NUM_HEADS)
EVEN_LENGTHS = (16, 32, 64, 128, 192, 256, 512, 1024, 2048)
NUM_EVEN_TOKENS, NUM_UNEVEN_TOKENS = 2048, 4096
MAX_UNEVEN_LENGTH = 512

NUM_GPU_TOKENS = 65_536
GPU_LENGTHS = (128, 512, 1024, 2048, 8192)
BACKWARD_FLOPS = 2.5  # times those of the forward pass: five products instead of two
CHECKED_DOCUMENTS = 2  # against the definition, which holds all scores
MAX_RELATIVE_DIFFERENCE = (
    0.02  # of a tensor's norm: some roundings of bf16; without its bias, attention differs by more than 0.1
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--store", type=Path, help="a token store, for real lengths on a GPU; without it they are made up"
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
    """Documents to attend within.

    Attributes:
        lengths: where they come from.
        seqlens: of each.
        qkv: (T, 3, H, D).
        grad: of the output, (T, H, D).
        cu_seqlens: (B + 1,) int32.
    """

    lengths: str
    seqlens: Sequence[int]
    qkv: Tensor
    grad: Tensor
    cu_seqlens: Tensor

    @property
    def even_length(self) -> int:
        """Of all documents.

        Raises:
            ValueError: they are of several lengths.
        """
        if len(set(self.seqlens)) > 1:
            raise ValueError("takes documents of one length only")
        return self.seqlens[0]


@dataclass(frozen=True)
class Version:
    """One implementation, on the inputs of a case.

    Attributes:
        leaves: qkv, or query, key and value, as the implementation likes them.
        attend: leaves -> output.
        pack: (output or one of three leaves) -> (T, H, D); qkv -> (T, 3, H, D).
        unpack: (T, H, D) -> the output's layout.
        has_bias: ALiBi.
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
    """Documents of 128 tokens, which are the main case, of a real text, and of other lengths."""
    uneven = (
        cut(web_like_seqlens(num_tokens, MAX_UNEVEN_LENGTH), num_tokens)
        if store is None
        else real_seqlens(store, num_tokens)
    )
    uneven_name = f"{MADE_UP if store is None else 'real'}, up to {max(uneven)}"
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

    def attend(*leaves: Tensor) -> Tensor:  # each (B, L, H, D), in memory as flash kernels want it
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

    # One function and one set of tensors for all cases, so that it is compiled once for all of them.
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


TRITON_VERSION = "ours (triton), ALiBi"
BUILDERS: dict[str, Callable[[Case], Version]] = {
    TRITON_VERSION: triton_version,
    "flash-attn 2, ALiBi": lambda case: flash_attn(case, SLOPES),
    "flash-attn 2, no bias": lambda case: flash_attn(case, None),
    "SDPA flash, no bias": sdpa_flash,
    "torch varlen_attn, no bias": varlen,
    "FlexAttention, ALiBi and document mask": flex,
}


def compare_on_gpu(cases: Iterator[Case], builders: dict[str, Callable[[Case], Version]] = BUILDERS) -> int:
    """Records every version on every case; 1 if ours did not work."""
    failures = 0
    for case in cases:
        versions: dict[str, Version] = {}
        errors: dict[str, str] = {}
        # What the others are held against: ours, which is held against the definition.
        references: dict[bool, list[Tensor]] = {}
        for by, build in builders.items():
            try:
                version = build(case)
                if version.has_bias not in references:
                    references[version.has_bias] = checked_reference(case, SLOPES if version.has_bias else None)
                check_results(results(version, case), references[version.has_bias])
                versions[by] = version
            except Exception as error:  # whatever keeps a version from running is its result
                errors[by] = describe(error)
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
    """Output (T, H, D), and the gradient of qkv (T, 3, H, D)."""
    out = version.attend(*version.leaves)
    grads = torch.autograd.grad(out, version.leaves, version.unpack(case.grad).contiguous())
    packed = [version.pack(grad) for grad in grads]
    return [version.pack(out).detach(), packed[0] if len(packed) == 1 else torch.stack(packed, dim=1)]


def checked_reference(case: Case, slopes: tuple[float, ...] | None) -> list[Tensor]:
    """Ours, whose first documents are the definition's."""
    actual = results(triton_version(case, slopes), case)
    num_tokens = sum(case.seqlens[:CHECKED_DOCUMENTS])
    qkv = case.qkv[:num_tokens].float().requires_grad_()
    out = ops.attention_reference(qkv, case.cu_seqlens[: CHECKED_DOCUMENTS + 1], slopes)
    (grad,) = torch.autograd.grad(out, qkv, case.grad[:num_tokens].float())
    check_results([tensor[:num_tokens] for tensor in actual], [out.detach(), grad])
    return actual


def check_results(actual: list[Tensor], expected: list[Tensor]) -> None:
    for name, result, reference in zip(("output", "gradient"), actual, expected, strict=True):
        difference = float((result.float() - reference.float()).norm() / reference.float().norm())
        if not difference <= MAX_RELATIVE_DIFFERENCE:
            raise ValueError(f"its {name} differs by {difference:.3f} of the norm")


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().requires_grad_()


def compare_paths(length: int, dtype: torch.dtype) -> None:
    """Times the path that the sdpa rung takes, the one that it does not, and the definition."""
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
    """Times uneven documents, even ones of as many tokens and as many products, and the uneven ones padded."""
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
