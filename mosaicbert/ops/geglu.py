"""GEGLU: out = gelu(gate) * up, the activation of a gated MLP (Shazeer 2020, arXiv:2002.05202), with the exact GELU."""

import torch.nn.functional as F
from torch import Tensor


def geglu(gate_up: Tensor) -> Tensor:
    """Gates one half of the features with the other.

    Args:
        gate_up: (T, 2F), the gate's features first.

    Returns:
        (T, F), same dtype.

    Raises:
        ValueError: gate_up is not two-dimensional or its width is odd.
    """
    if gate_up.ndim != 2 or gate_up.shape[1] % 2:
        raise ValueError(f"geglu needs a (T, 2F) tensor, got {tuple(gate_up.shape)}; flatten batch and sequence first.")
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate) * up
