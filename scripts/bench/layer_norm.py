"""Benchmark of LayerNorm(dropout(hidden) + residual), forward and backward on a GPU.

The versions are the compiled reference, the eager reference, the Triton kernels, and, if installed, the LayerNorm of
Liger-Kernel after eager dropout and addition. Weight and bias are fp32 in all versions, as in training under autocast.

Run: python scripts/bench/layer_norm.py
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from harness import record
from torch import Tensor

from mosaicbert.config.load import load_recipe
from mosaicbert.ops.dispatch import choose_kernels
from mosaicbert.ops.layer_norm import dropout_add_layer_norm, dropout_add_layer_norm_reference

RECIPES = Path(__file__).parents[2] / "recipes"
SIZES = ("base", "large")
NUM_TOKENS = (65_536, 8_192)
DROPOUTS = (0.1, 0.0)
DTYPE = torch.bfloat16
EPS = 1e-12

Operation = Callable[[Tensor, Tensor, Tensor, Tensor, float, float], Tensor]


def main() -> int:
    kernel_choice = choose_kernels("cuda")
    if kernel_choice.name != "triton":
        print(
            f"scripts/bench/layer_norm.py must run on a GPU with kernels, got `{kernel_choice}`. Use a CUDA GPU.",
            file=sys.stderr,
        )
        return 2
    for size in SIZES:
        width = load_recipe(RECIPES / f"mosaicbert-{size}-c4.yaml").model.hidden_size
        for num_tokens in NUM_TOKENS:
            for dropout_p in DROPOUTS:
                compare(num_tokens, width, dropout_p)
    return 0


def compare(num_tokens: int, width: int, dropout_p: float) -> None:
    torch._dynamo.reset()
    operations: dict[str, Operation] = {
        "torch.compile": torch.compile(dropout_add_layer_norm_reference, dynamic=False),
        "eager": dropout_add_layer_norm_reference,
        "mosaicbert triton": dropout_add_layer_norm,
    }
    if importlib.util.find_spec("liger_kernel"):
        operations["Liger-Kernel, after eager dropout and addition"] = liger_layer_norm
    versions = {by: training_step(operation, num_tokens, width, dropout_p) for by, operation in operations.items()}
    # The forward pass reads hidden and residual and writes the output. The backward pass reads the gradient of the
    # output and one more tensor of that size, and writes the gradient of residual and, with dropout, that of hidden.
    elements_moved = num_tokens * width * (6 + bool(dropout_p))
    record(
        "layer_norm",
        f"dropout {dropout_p}, addition and LayerNorm, forward and backward",
        versions,
        shape={"tokens": num_tokens, "width": width},
        dtype=DTYPE,
        device="cuda",
        units=dict.fromkeys(versions, float(elements_moved * DTYPE.itemsize)),
    )


def liger_layer_norm(
    hidden: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout_p: float
) -> Tensor:
    liger: Any = importlib.import_module("liger_kernel.transformers.functional")
    dropped = F.dropout(hidden, dropout_p) if dropout_p else hidden
    return liger.liger_layer_norm(dropped + residual, weight, bias, eps)


def training_step(operation: Operation, num_tokens: int, width: int, dropout_p: float) -> Callable[[], object]:
    hidden, residual, grad_out = torch.randn(3, num_tokens, width, device="cuda", dtype=DTYPE).unbind()
    weight, bias = torch.randn(2, width, device="cuda").unbind()
    inputs = [tensor.detach().requires_grad_() for tensor in (hidden, residual, weight, bias)]

    def step() -> object:
        with torch.autocast("cuda", DTYPE):
            out = operation(*inputs, EPS, dropout_p)
        return torch.autograd.grad(out, inputs, grad_out)

    return step


if __name__ == "__main__":
    sys.exit(main())
