"""GEGLU, the activation of a gated MLP: out = gelu(gate) * up, with the exact (erf) GELU.

Source: Shazeer 2020, arXiv:2002.05202.
"""

import importlib
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mosaicbert.ops.dispatch import draw_seed, uses_kernels


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
    if not uses_kernels(gate_up):
        return geglu_reference(gate_up, dropout_p)
    # Imported by name: transformers requires every module in an import statement of an exported file.
    kernels: Any = importlib.import_module("mosaicbert.ops.geglu_kernels")
    return kernels.geglu(gate_up, dropout_p, draw_seed(gate_up.device) if dropout_p else None)
