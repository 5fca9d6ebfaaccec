"""Kernel dispatch for the memory-bound operations.

A fused Triton kernel reads and writes memory once, where the PyTorch reference does so several times. `torch.compile`
generates equivalent kernels from the references, so the Triton kernels are used only in eager mode on a GPU.
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
    """Selection between fused kernels and the PyTorch reference on a device.

    Attributes:
        name: "triton" for the fused Triton kernels, "none" for the PyTorch reference.
        reason: Reason why the kernels are not used; empty if they are.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"fused kernels: {self.name}" + (f" ({self.reason})" if self.reason else "")


@functools.cache
def choose_kernels(device_type: str) -> KernelChoice:
    """Select the kernels of the memory-bound operations for a device.

    On a CUDA GPU, the GEGLU kernel runs forward and backward on a small input and is compared with the fp64 PyTorch
    reference. The LayerNorm and cross-entropy kernels must compile and run. The result is cached per device type.

    Args:
        device_type: Device type as in torch.device, for example "cuda".

    Returns:
        The selection and the reason.
    """
    if device_type == "cpu":
        return KernelChoice("none", "the CPU uses the PyTorch reference")
    if device_type != "cuda" or not torch.cuda.is_available():
        return KernelChoice("none", "requires a CUDA GPU")
    failure = _probe(device_type)
    return KernelChoice("triton", "") if failure is None else KernelChoice("none", failure)


def uses_kernels(tensor: Tensor) -> bool:
    """Return True if an operation on a tensor uses its Triton kernel.

    The result is False while torch.compile traces, because the compiler fuses the PyTorch reference itself.

    Args:
        tensor: Input of the operation. The kernels compute in fp32, so fp64 inputs use the PyTorch reference.
    """
    if torch.compiler.is_compiling() or tensor.dtype not in _DTYPES:
        return False
    return choose_kernels(tensor.device.type).name == "triton"


def draw_seed(device: torch.device) -> Tensor:
    """Draw the dropout seed of one kernel call from PyTorch's default generator.

    Args:
        device: Device of the seed and of the generator.

    Returns:
        () int64. It stays on the device, so the host does not synchronize, and a CUDA graph draws a new seed per
        replay.
    """
    return torch.randint(2**63 - 1, (), device=device)


def _probe(device_type: str) -> str | None:
    """Return the reason why the kernels do not work, or None if they work."""
    with torch.autocast(device_type, enabled=False), torch.enable_grad(), torch.inference_mode(False):
        generator = torch.Generator().manual_seed(0)
        probe_input = torch.randn(3, 2 * 20, generator=generator).to(torch.bfloat16).double()
        try:
            # Imported by name: transformers requires every module in an import statement of an exported file.
            geglu_kernels: Any = importlib.import_module("mosaicbert.ops.geglu_kernels")
            gate_up = probe_input.to(device_type, torch.bfloat16).requires_grad_()
            actual = _output_and_gradient(geglu_kernels.geglu(gate_up, 0.0, None), gate_up)
            _run_remaining_kernels(gate_up.detach().clone())
        except ModuleNotFoundError as error:
            return f"{error.name} is not installed"
        except Exception as error:  # drivers, C compilers and Triton raise many types; the reference remains usable
            return str(error).strip().split("\n")[0] or type(error).__name__
        gate, up = probe_input.requires_grad_().chunk(2, dim=-1)
        expected = _output_and_gradient(F.gelu(gate) * up, probe_input)
    tolerance = 4 * torch.finfo(torch.bfloat16).eps  # the tolerance covers rounding errors only
    for kernel_result, reference_result in zip(actual, expected, strict=True):
        if not torch.allclose(
            kernel_result, reference_result, rtol=tolerance, atol=tolerance * float(reference_result.abs().max())
        ):
            return "the result of a kernel differs from the PyTorch reference"
    return None


def _run_remaining_kernels(probe_input: Tensor) -> None:
    """Compile and run the kernels whose results `_probe` does not compare, with dropout."""
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
