"""Attention forward and backward on a CPU: which code path is faster at which length, and what uneven documents cost.

Run: python scripts/bench/attention.py
"""

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from harness import record
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mosaicbert.ops import attention as ops

NUM_HEADS, HEAD_DIM = 12, 64  # MosaicBERT-Base
EVEN_LENGTHS = (16, 32, 64, 128, 192, 256, 512, 1024, 2048)
NUM_EVEN_TOKENS, NUM_UNEVEN_TOKENS = 2048, 4096
LONGEST_UNEVEN = 512
SLOPES = ops.alibi_slopes(NUM_HEADS)


def main() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        for length in EVEN_LENGTHS:
            compare_paths(length, dtype)
        compare_uneven_with_even(dtype)


def compare_paths(length: int, dtype: torch.dtype) -> None:
    """Times the path that the sdpa rung takes, the one that it does not, and the definition."""
    seqlens = [length] * (NUM_EVEN_TOKENS // length)
    qkv = random_qkv(sum(seqlens), dtype)
    documents, bias = qkv.unflatten(0, (-1, length)), ops._bias(SLOPES, None, length, dtype, qkv.device)
    taken = ops._sdpa_path(documents)
    other = ops._fused_kernel if taken is ops._batched_products else ops._batched_products
    versions = {
        f"sdpa, {taken.__name__.strip('_')}": training_step(lambda qkv: taken(qkv, bias), documents),
        f"sdpa, {other.__name__.strip('_')}": training_step(lambda qkv: other(qkv, bias), documents),
        "eager": training_step(packed_attention("eager", seqlens), qkv),
    }
    shape = {"documents": len(seqlens), "length": length, "heads": NUM_HEADS, "head_dim": HEAD_DIM}
    record("attention", "even documents", versions, shape=shape, dtype=dtype, seconds=1.0)


def compare_uneven_with_even(dtype: torch.dtype) -> None:
    """Times uneven documents, even ones of as many tokens and as many products, and the uneven ones padded."""
    uneven = web_like_seqlens()
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


def web_like_seqlens() -> list[int]:
    """Log-normal, half of them under 200 tokens, cut off as a recipe cuts them."""
    draw = random.Random(0)
    seqlens: list[int] = []
    while sum(seqlens) < NUM_UNEVEN_TOKENS:
        seqlens.append(min(LONGEST_UNEVEN, max(8, round(draw.lognormvariate(5.3, 1.0)))))
    return seqlens


def random_qkv(num_tokens: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_tokens, 3, NUM_HEADS, HEAD_DIM, generator=generator).to(dtype)


def packed_attention(rung: str, seqlens: list[int]) -> Callable[[Tensor], Tensor]:
    cu_seqlens = torch.tensor([0, *seqlens]).cumsum(0).int()
    return lambda qkv: ops.attention(qkv, cu_seqlens, max(seqlens), SLOPES, rung)


def padded_attention(qkv: Tensor, mask: Tensor) -> Tensor:
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, S, D)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def training_step(attend: Callable[[Tensor], Tensor], qkv: Tensor) -> Callable[[], object]:
    qkv = qkv.detach().requires_grad_()
    grad_context = torch.ones_like(attend(qkv))
    return lambda: torch.autograd.grad(attend(qkv), qkv, grad_context)


if __name__ == "__main__":
    main()
