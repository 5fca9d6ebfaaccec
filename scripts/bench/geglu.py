"""Benchmark of GEGLU with dropout, forward and backward on a GPU.

The versions are the compiled reference, the eager reference and the Triton kernels. Liger-Kernel is not included,
because its GEGLU uses the tanh approximation of GELU.

Run: python scripts/bench/geglu.py
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from harness import record
from torch import Tensor

from mosaicbert.config.load import load_recipe
from mosaicbert.ops.dispatch import choose_kernels
from mosaicbert.ops.geglu import geglu, geglu_reference

RECIPES = Path(__file__).parents[2] / "recipes"
SIZES = ("base", "large")
NUM_TOKENS = (65_536, 8_192)
DROPOUTS = (0.1, 0.0)
DTYPE = torch.bfloat16
ELEMENTS_MOVED = 8  # per output: forward reads 2 and writes 1; backward reads 3 and writes 2


def main() -> int:
    kernel_choice = choose_kernels("cuda")
    if kernel_choice.name != "triton":
        print(
            f"scripts/bench/geglu.py must run on a GPU with kernels, got `{kernel_choice}`. Use a CUDA GPU.",
            file=sys.stderr,
        )
        return 2
    for size in SIZES:
        width = load_recipe(RECIPES / f"mosaicbert-{size}-c4.yaml").model.intermediate_size
        for num_tokens in NUM_TOKENS:
            for dropout_p in DROPOUTS:
                compare(num_tokens, width, dropout_p)
    return 0


def compare(num_tokens: int, width: int, dropout_p: float) -> None:
    torch._dynamo.reset()
    gate_up = torch.randn(num_tokens, 2 * width, device="cuda", dtype=DTYPE)
    versions = {
        "torch.compile": training_step(torch.compile(geglu_reference, dynamic=False), gate_up, dropout_p),
        "eager": training_step(geglu_reference, gate_up, dropout_p),
        "mosaicbert triton": training_step(geglu, gate_up, dropout_p),
    }
    record(
        "geglu",
        f"forward and backward, dropout {dropout_p}",
        versions,
        shape={"tokens": num_tokens, "width": width},
        dtype=DTYPE,
        device="cuda",
        units=dict.fromkeys(versions, float(ELEMENTS_MOVED * num_tokens * width * DTYPE.itemsize)),
    )


def training_step(
    function: Callable[[Tensor, float], Tensor], gate_up: Tensor, dropout_p: float
) -> Callable[[], object]:
    gate_up = gate_up.detach().requires_grad_()
    grad_out = torch.randn_like(gate_up[:, : gate_up.shape[1] // 2])
    return lambda: torch.autograd.grad(function(gate_up, dropout_p), gate_up, grad_out)


if __name__ == "__main__":
    sys.exit(main())
