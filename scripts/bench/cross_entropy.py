"""Benchmark of the cross-entropy fused with the decoder product, forward and backward.

On a GPU, under bf16 autocast with fp32 parameters and at the sizes of Base and Large, it is compared with the compiled
reference, the eager reference and, if installed, Liger-Kernel, with the peak memory of each. On a CPU, in fp32 and at
the sizes of the quickstart recipe and of Base, it is compared with the eager reference.

Run: python scripts/bench/cross_entropy.py
"""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import record
from torch import Tensor

from mosaicbert.config.load import load_recipe
from mosaicbert.ops.cross_entropy import linear_cross_entropy, linear_cross_entropy_reference

RECIPES = Path(__file__).parents[2] / "recipes"
GPU_RECIPES, CPU_RECIPES = ("mosaicbert-base-c4", "mosaicbert-large-c4"), ("quickstart", "mosaicbert-base-c4")
NUM_GPU_ROWS = 19_660  # 30% of 65,536 tokens
NUM_CPU_ROWS = {"quickstart": 1000, "mosaicbert-base-c4": 1200}
DTYPE = torch.bfloat16  # autocast dtype on a GPU
WHAT = "decoder product, loss and number of correct predictions, forward and backward"

Operation = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def main() -> None:
    if torch.cuda.is_available():
        for recipe in GPU_RECIPES:
            compare_on_gpu(recipe)
    else:
        for recipe in CPU_RECIPES:
            compare_on_cpu(recipe)


def compare_on_gpu(recipe: str) -> None:
    torch._dynamo.reset()
    operations: dict[str, Operation] = {
        "torch.compile": torch.compile(linear_cross_entropy_reference, dynamic=False),
        "eager": linear_cross_entropy_reference,
        "mosaicbert": linear_cross_entropy,
    }
    if importlib.util.find_spec("liger_kernel"):
        operations["Liger-Kernel"] = liger_cross_entropy
    shape = sizes(recipe, NUM_GPU_ROWS)
    versions = {by: training_step(operation, shape, "cuda") for by, operation in operations.items()}
    extra_fields = {by: {"peak_mib": peak_mib(call)} for by, call in versions.items()}
    record("cross_entropy", WHAT, versions, shape=shape, dtype=DTYPE, device="cuda", extra_fields=extra_fields)


def compare_on_cpu(recipe: str) -> None:
    shape = sizes(recipe, NUM_CPU_ROWS[recipe])
    versions = {
        "eager": training_step(linear_cross_entropy_reference, shape, "cpu"),
        "mosaicbert": training_step(linear_cross_entropy, shape, "cpu"),
    }
    record("cross_entropy", WHAT, versions, shape=shape, dtype=torch.float32, seconds=20.0)


def sizes(recipe: str, num_rows: int) -> dict[str, int]:
    model = load_recipe(RECIPES / f"{recipe}.yaml").model
    return {"rows": num_rows, "vocab": model.vocab_size, "width": model.hidden_size}


def training_step(operation: Operation, shape: dict[str, int], device: str) -> Callable[[], object]:
    num_rows, vocab_size, width = shape.values()
    torch.manual_seed(0)
    hidden = torch.randn(num_rows, width, device=device, dtype=DTYPE if device == "cuda" else torch.float32)
    weight, bias = 0.02 * torch.randn(vocab_size, width, device=device), torch.zeros(vocab_size, device=device)
    labels = torch.randint(vocab_size, (num_rows,), device=device)
    inputs = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]

    def step() -> object:
        with torch.autocast(device, DTYPE, enabled=device == "cuda"):
            loss, _ = operation(*inputs, labels)
        return torch.autograd.grad(loss / num_rows, inputs)

    return step


def liger_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    liger: Any = importlib.import_module("liger_kernel.transformers.functional")
    # The gradient of the weight is summed in fp32, as in this package. token_accuracy is the number of correct labels.
    result = liger.liger_fused_linear_cross_entropy(
        hidden, weight, labels, bias, reduction="sum", accum_dtype=torch.float32, return_token_accuracy=True
    )
    return result.loss, result.token_accuracy


def peak_mib(call: Callable[[], object]) -> int:
    """Measure the peak memory of a call in MiB, including gradients and excluding inputs."""
    call()  # the first call compiles
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20)


if __name__ == "__main__":
    main()
