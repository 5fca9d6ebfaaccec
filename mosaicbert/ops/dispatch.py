"""Whether the memory-bound operations run as Triton kernels, each of them one pass over memory instead of several.

`torch.compile` makes such kernels by itself, from the definitions. These are for a GPU without it.
"""

import functools
import importlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # the kernels compute in fp32


@dataclass(frozen=True)
class KernelChoice:
    """What computes the fused operations on a device, "triton" or "none", and why not the other."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"fused operations: {self.name}" + (f" ({self.reason})" if self.reason else "")


@functools.cache
def choose_kernels(device_type: str) -> KernelChoice:
    """Tries a kernel, forward and backward on a toy input, against the definition.

    Args:
        device_type: as in torch.device.
    """
    if device_type == "cpu":
        return KernelChoice("none", "the processor runs the definitions")
    if device_type != "cuda" or not torch.cuda.is_available():
        return KernelChoice("none", "for GPUs")
    failure = _probe(device_type)
    return KernelChoice("triton", "") if failure is None else KernelChoice("none", failure)


def uses_kernels(tensor: Tensor) -> bool:
    """Whether an operation on this tensor takes its kernel. Never while torch.compile traces: it fuses by itself."""
    if torch.compiler.is_compiling() or tensor.dtype not in _DTYPES:
        return False
    return choose_kernels(tensor.device.type).name == "triton"


def draw_seed(device: torch.device) -> Tensor:
    """What one call's dropout follows from: () int64, from the generator that dropout itself draws from.

    It stays on its device: nobody waits for it, and a CUDA graph draws it anew each time.
    """
    return torch.randint(2**63 - 1, (), device=device)


def _probe(device_type: str) -> str | None:
    """Says what is wrong with the kernels, or None."""
    with torch.autocast(device_type, enabled=False), torch.enable_grad(), torch.inference_mode(False):
        generator = torch.Generator().manual_seed(0)
        probe_input = torch.randn(3, 2 * 20, generator=generator).to(torch.bfloat16).double()
        try:
            # By name, because exported folders carry this file and transformers demands every import that it sees.
            geglu_kernels: Any = importlib.import_module("mosaicbert.ops.geglu_kernels")
            gate_up = probe_input.to(device_type, torch.bfloat16).requires_grad_()
            actual = _output_and_gradient(geglu_kernels.geglu(gate_up, 0.0, None), gate_up)
            _run_remaining_kernels(gate_up.detach().clone())
        except ModuleNotFoundError as error:
            return f"{error.name} is not installed"
        except Exception as error:  # whatever a driver, a C compiler or Triton may raise: the definitions remain
            return str(error).strip().split("\n")[0] or type(error).__name__
        gate, up = probe_input.requires_grad_().chunk(2, dim=-1)
        expected = _output_and_gradient(F.gelu(gate) * up, probe_input)
    tolerance = 4 * torch.finfo(torch.bfloat16).eps  # a kernel may round; it may not compute something else
    for kernel_result, reference_result in zip(actual, expected, strict=True):
        if not torch.allclose(
            kernel_result, reference_result, rtol=tolerance, atol=tolerance * float(reference_result.abs().max())
        ):
            return "a kernel's result differs from the definition's"
    return None


def _run_remaining_kernels(probe_input: Tensor) -> None:
    """The kernels that `_probe` does not judge, with dropout: they must at least compile and run."""
    layer_norm_kernels: Any = importlib.import_module("mosaicbert.ops.layer_norm_kernels")
    cross_entropy_kernels: Any = importlib.import_module("mosaicbert.ops.cross_entropy_kernels")
    hidden, width = probe_input.clone().requires_grad_(), probe_input.shape[1]
    weight, bias, seed = (
        probe_input.new_ones(width),
        probe_input.new_zeros(width),
        probe_input.new_zeros((), dtype=torch.int64),
    )
    normed, *_ = layer_norm_kernels.dropout_add_layer_norm(hidden, probe_input, weight, bias, 1e-5, 0.1, seed, True)
    torch.autograd.grad(normed.float().sum(), hidden)
    labels = probe_input.new_zeros(len(probe_input), dtype=torch.int64)
    cross_entropy_kernels.softmax_cross_entropy_(
        probe_input, labels, probe_input.new_empty(len(probe_input), dtype=torch.float32), labels.int(), -100, True
    )
    if probe_input.is_cuda:
        torch.cuda.synchronize()


def _output_and_gradient(out: Tensor, gate_up: Tensor) -> tuple[Tensor, Tensor]:
    (gradient,) = torch.autograd.grad(out.double().square().sum(), gate_up)
    return out.detach().double().cpu(), gradient.double().cpu()
