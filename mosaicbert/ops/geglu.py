"""GEGLU: out = gelu(gate) * up, the activation of a gated MLP (Shazeer 2020, arXiv:2002.05202), with the exact GELU."""

import importlib
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mosaicbert.ops.dispatch import draw_seed, uses_kernels


def geglu_reference(gate_up: Tensor, dropout_p: float = 0.0) -> Tensor:
    """The definition, in plain PyTorch. Arguments as in `geglu`."""
    gate, up = gate_up.chunk(2, dim=-1)
    activated = F.gelu(gate) * up
    return F.dropout(activated, dropout_p) if dropout_p else activated


def geglu(gate_up: Tensor, dropout_p: float = 0.0) -> Tensor:
    """Gates one half of the features with the other, then drops some.

    Args:
        gate_up: (T, 2F), the gate's features first.
        dropout_p: how many elements become zero, on average; the others grow by 1 / (1 - dropout_p).

    Returns:
        (T, F), same dtype.

    Raises:
        ValueError: gate_up is not two-dimensional or its width is odd.
    """
    if gate_up.ndim != 2 or gate_up.shape[1] % 2:
        raise ValueError(f"geglu needs a (T, 2F) tensor, got {tuple(gate_up.shape)}; flatten batch and sequence first.")
    if not uses_kernels(gate_up):
        return geglu_reference(gate_up, dropout_p)
    # By name, because exported folders carry this file and transformers demands every import that it sees in one.
    kernels: Any = importlib.import_module("mosaicbert.ops.geglu_kernels")
    return kernels.geglu(gate_up, dropout_p, draw_seed(gate_up.device) if dropout_p else None)
