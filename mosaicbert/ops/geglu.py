"""GEGLU, the activation of a gated MLP: out = gelu(gate) * up, with the exact (erf) GELU.

Source: Shazeer 2020, arXiv:2002.05202.
"""

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mosaicbert.modes import is_traced
from mosaicbert.ops.dispatch import draw_seed, uses_kernels


class _CpuGeglu(torch.autograd.Function):
    # The gradients of gate and up are written into one tensor. Automatic differentiation of `geglu_reference` computes
    # the same values, but concatenates two tensors of half the size, and saves one tensor more.

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:  # (T, 2F) -> (T, F)
        gate, up = gate_up.chunk(2, dim=-1)
        activated = F.gelu(gate)
        ctx.save_for_backward(gate_up, activated)
        return activated * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        gate_up, activated = ctx.saved_tensors
        grad_gate_up = torch.empty_like(gate_up)
        (gate, up), (grad_gate, grad_up) = gate_up.chunk(2, dim=-1), grad_gate_up.chunk(2, dim=-1)
        torch.mul(grads[0], activated, out=grad_up)
        aten: Any = torch.ops.aten
        aten.gelu_backward.grad_input(grads[0] * up, gate, grad_input=grad_gate)
        return grad_gate_up


def geglu_reference(gate_up: Tensor, dropout_p: float = 0.0) -> Tensor:
    """Compute GEGLU and dropout in plain PyTorch.

    Args:
        gate_up: (T, 2F), gate features followed by up features.
        dropout_p: Dropout probability in [0, 1).

    Returns:
        (T, F), same dtype as gate_up.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    activated = F.gelu(gate) * up
    return F.dropout(activated, dropout_p) if dropout_p else activated


def geglu(gate_up: Tensor, dropout_p: float = 0.0) -> Tensor:
    """Compute dropout(gelu(gate) * up).

    Args:
        gate_up: (T, 2F), gate features followed by up features.
        dropout_p: Dropout probability in [0, 1). Kept elements are scaled by 1 / (1 - dropout_p).

    Returns:
        (T, F), same dtype as gate_up.

    Raises:
        ValueError: If gate_up is not two-dimensional or its second size is odd.
    """
    if gate_up.ndim != 2 or gate_up.shape[1] % 2:
        shape = tuple(gate_up.shape)
        raise ValueError(f"`geglu` input must be (T, 2F), got {shape}. Flatten batch and sequence first.")
    if gate_up.device.type == "cpu" and not is_traced(gate_up):
        activated: Any = _CpuGeglu.apply(gate_up)
        return F.dropout(activated, dropout_p) if dropout_p else activated
    if not uses_kernels(gate_up):
        return geglu_reference(gate_up, dropout_p)
    # Imported by name: transformers requires every module in an import statement of an exported file.
    kernels: Any = importlib.import_module("mosaicbert.ops.geglu_kernels")
    return kernels.geglu(gate_up, dropout_p, draw_seed(gate_up.device) if dropout_p else None)
