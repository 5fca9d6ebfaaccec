"""Profile of a compiled training step of MosaicBERT-Base by category, with a lower bound for each. Requires a GPU.

The lower bound of a category is the longer of two times: its FLOPs at the rate of a large matrix product, and its bytes
at the rate of a large copy. Both rates are measured. The bytes count each tensor that must be read or written once.

Run: python scripts/bench/profile_step.py
"""

import re
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from documents import random_batch
from harness import measure, write_lines
from step import training_step
from torch.profiler import ProfilerActivity, profile

from mosaicbert.batch import MicroBatch
from mosaicbert.config import ModelConfig
from mosaicbert.config.load import load_recipe
from mosaicbert.estimate import count_parameters, training_flops
from mosaicbert.model.factory import build_model
from mosaicbert.train.compile import compile_model

RECIPE = Path(__file__).parents[2] / "recipes" / "mosaicbert-base-c4.yaml"
NUM_TOKENS, LENGTH = 65_536, 128  # tokens of a micro-batch, and of each of its documents
NUM_PROFILED = 5
MATRIX_SIZE, COPY_BYTES = 8192, 4 * 2**30
BF16_BYTES, FP32_BYTES = 2, 4  # bytes per value
ADAMW_FP32_VALUES = 7  # per weight: weight, gradient and two moments read; weight and moments written

# Patterns of kernel names by category; the first match is used. Other kernels are counted as memory-bound rest.
CATEGORIES = {
    "attention": r"^_attention_|flash|fmha",
    "cross-entropy": r"^_cross_entropy_",
    "optimizer": r"multi_tensor_apply|adam",
    "matrix products": r"gemm|nvjet|cutlass|cublas|xmma|matmul",
}
MEMORY_BOUND = "memory-bound rest"


def main() -> int:
    if not torch.cuda.is_available():
        print("scripts/bench/profile_step.py must run on a GPU, got no CUDA device. Use a CUDA GPU.", file=sys.stderr)
        return 2
    recipe = load_recipe(RECIPE)
    config = recipe.model
    batch = random_batch([LENGTH] * (NUM_TOKENS // LENGTH), config.vocab_size, recipe.data.mask_rate).to("cuda")
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = build_model(config).train()
    compile_model(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    step = training_step(model, batch, torch.bfloat16, optimizer)
    timings, errors = measure({"step": step}, "cuda", seconds=3.0)
    if errors:
        print(errors["step"], file=sys.stderr)
        return 1
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(NUM_PROFILED):
            step()
        torch.cuda.synchronize()
    busy = busy_milliseconds([(event.name, event.device_time) for event in profiled.events() or ()])
    wall = timings["step"].median / 1e3
    busy["gaps"] = wall - sum(busy.values())
    bounds = lower_bounds(config, batch, matrix_rate(), copy_rate())
    shape = {"tokens": batch.num_tokens, "documents": batch.num_sequences, "longest": batch.max_seqlen}
    print(f"{'':20}{'ms':>10}{'fraction':>10}{'bound, ms':>12}")
    for category, milliseconds in sorted(busy.items(), key=lambda item: -item[1]):
        bound = bounds.get(category)
        line: dict[str, Any] = {
            "what": "compiled step of MosaicBERT-Base",
            "category": category,
            "shape": shape,
            "dtype": "bfloat16",
            "ms": round(milliseconds, 3),
            "fraction": round(milliseconds / wall, 4),
            "lower_bound_ms": None if bound is None else round(bound, 3),
            "step_ms": round(wall, 3),
        }
        write_lines("profile_step", [line], "cuda")
        bound_text = "" if bound is None else f"{bound:.2f}"
        print(f"{category:20}{milliseconds:>10.2f}{milliseconds / wall:>10.1%}{bound_text:>12}")
    return 0


def busy_milliseconds(kernels: list[tuple[str, float]]) -> dict[str, float]:
    """Sum the kernel times of all profiled steps by category, in milliseconds per step.

    Args:
        kernels: Name and duration in microseconds of each kernel.
    """
    busy: defaultdict[str, float] = defaultdict(float)
    for name, microseconds in kernels:
        category = next(
            (key for key, names in CATEGORIES.items() if re.search(names, name, re.IGNORECASE)), MEMORY_BOUND
        )
        busy[category] += microseconds / 1e3 / NUM_PROFILED
    return dict(busy)


def lower_bounds(config: ModelConfig, batch: MicroBatch, flops_rate: float, bytes_rate: float) -> Mapping[str, float]:
    """Compute the minimum time of each category in milliseconds, from rates in FLOP/s and bytes/s."""
    width, intermediate_size, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    tokens, masked = batch.num_tokens, batch.num_masked
    sum_of_squared_lengths = float(batch.cu_seqlens.diff().double().square().sum())
    matrices = training_flops(config, num_tokens=tokens, squared_lengths=0.0, num_masked=masked)
    attention = training_flops(config, num_tokens=0, squared_lengths=sum_of_squared_lengths, num_masked=0)
    # Forward: read q, k and v, write the output. Backward: read these and the gradient of the output, write three
    # gradients.
    attention_bytes = BF16_BYTES * tokens * layers * width * (4 + 8)
    # Each norm reads two and writes two tensors in each pass. GEGLU: 3 F forward, 5 F backward. Gradients of biases: 5
    # C.
    rest_bytes = BF16_BYTES * tokens * layers * ((8 + 8 + 5) * width + 8 * intermediate_size)
    return {
        "matrix products": 1e3 * matrices / flops_rate,
        "attention": 1e3 * max(attention / flops_rate, attention_bytes / bytes_rate),
        "cross-entropy": 1e3 * 2 * BF16_BYTES * masked * config.vocab_size / bytes_rate,  # read logits, write gradients
        "optimizer": 1e3 * ADAMW_FP32_VALUES * FP32_BYTES * count_parameters(config) / bytes_rate,
        MEMORY_BOUND: 1e3 * rest_bytes / bytes_rate,
    }


def matrix_rate() -> float:
    """Measure the FLOP/s of a large product of random bf16 matrices."""
    left, right = (torch.randn(MATRIX_SIZE, MATRIX_SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    timings, _ = measure({"product": lambda: left @ right}, "cuda", seconds=1.0)
    return 2 * MATRIX_SIZE**3 / timings["product"].median * 1e6


def copy_rate() -> float:
    """Measure the bytes per second of a large copy, reads and writes together."""
    source = torch.empty(COPY_BYTES, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    timings, _ = measure({"copy": lambda: target.copy_(source)}, "cuda", seconds=1.0)
    return 2 * COPY_BYTES / timings["copy"].median * 1e6


if __name__ == "__main__":
    sys.exit(main())
