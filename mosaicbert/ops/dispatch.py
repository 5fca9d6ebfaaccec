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
class FusionChoice:
    """What computes the fused operations on a device, "triton" or "none", and why not the other."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"fused operations: {self.name}" + (f" ({self.reason})" if self.reason else "")


@functools.cache
def choose_fusion(device_type: str) -> FusionChoice:
    """Tries a kernel, forward and backward on a toy input, against the definition.

    Args:
        device_type: as in torch.device.
    """
    if device_type == "cpu":
        return FusionChoice("none", "the processor runs the definitions")
    if device_type != "cuda" or not torch.cuda.is_available():
        return FusionChoice("none", "for GPUs")
    failure = _probe(device_type)
    return FusionChoice("triton", "") if failure is None else FusionChoice("none", failure)


def runs_fused(tensor: Tensor) -> bool:
    """Whether an operation on this tensor takes its kernel. Never while torch.compile traces: it fuses by itself."""
    if torch.compiler.is_compiling() or tensor.dtype not in _DTYPES:
        return False
    return choose_fusion(tensor.device.type).name == "triton"


def draw_seed(device: torch.device) -> Tensor:
    """What one call's dropout follows from: () int64, from the generator that dropout itself draws from.

    It stays on its device: nobody waits for it, and a CUDA graph draws it anew each time.
    """
    return torch.randint(2**63 - 1, (), device=device)


def _probe(device_type: str) -> str | None:
    """Says what is wrong with the kernels, or None."""
    with torch.autocast(device_type, enabled=False), torch.enable_grad(), torch.inference_mode(False):
        generator = torch.Generator().manual_seed(0)
        toy = torch.randn(3, 2 * 20, generator=generator).to(torch.bfloat16).double()
        try:
            # By name, because exported folders carry this file and transformers demands every import that it sees.
            kernels: Any = importlib.import_module("mosaicbert.ops.geglu_kernels")
            gate_up = toy.to(device_type, torch.bfloat16).requires_grad_()
            ours = _with_gradient(kernels.geglu(gate_up, 0.0, None), gate_up)
            _run_others(gate_up.detach().clone())
        except ModuleNotFoundError as error:
            return f"{error.name} is not installed"
        except Exception as error:  # whatever a driver, a C compiler or Triton may raise: the definitions remain
            return str(error).strip().split("\n")[0] or type(error).__name__
        gate, up = toy.requires_grad_().chunk(2, dim=-1)
        truth = _with_gradient(F.gelu(gate) * up, toy)
    tolerance = 4 * torch.finfo(torch.bfloat16).eps  # a kernel may round; it may not compute something else
    for result, expected in zip(ours, truth, strict=True):
        if not torch.allclose(result, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())):
            return "a kernel's result differs from the definition's"
    return None


def _run_others(toy: Tensor) -> None:
    """The kernels that `_probe` does not judge, with dropout: they must at least compile and run."""
    norms: Any = importlib.import_module("mosaicbert.ops.layer_norm_kernels")
    losses: Any = importlib.import_module("mosaicbert.ops.cross_entropy_kernels")
    hidden, width = toy.clone().requires_grad_(), toy.shape[1]
    weight, bias, seed = toy.new_ones(width), toy.new_zeros(width), toy.new_zeros((), dtype=torch.int64)
    normed, *_ = norms.dropout_add_layer_norm(hidden, toy, weight, bias, 1e-5, 0.1, seed, True)
    torch.autograd.grad(normed.float().sum(), hidden)
    labels = toy.new_zeros(len(toy), dtype=torch.int64)
    losses.softmax_cross_entropy_(toy, labels, toy.new_empty(len(toy), dtype=torch.float32), labels.int(), -100, True)
    if toy.is_cuda:
        torch.cuda.synchronize()


def _with_gradient(out: Tensor, gate_up: Tensor) -> tuple[Tensor, Tensor]:
    (gradient,) = torch.autograd.grad(out.double().square().sum(), gate_up)
    return out.detach().double().cpu(), gradient.double().cpu()
