"""LayerNorm that stays in the autocast's dtype, with statistics in fp32 (Ba et al. 2016, arXiv:1607.06450)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def layer_norm(hidden: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalises the last dimension: (hidden - mean) / sqrt(variance + eps) * weight + bias.

    Autocast alone would return fp32 here and so double the traffic of every residual stream. PyTorch's kernels
    accumulate mean and variance in fp32 whatever the input's dtype.

    Args:
        hidden: (..., C).
        weight: (C,).
        bias: (C,).
        eps: added to the variance.

    Returns:
        (..., C), in the autocast's dtype if autocast is on, else in hidden's.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        return F.layer_norm(hidden.to(dtype), weight.shape, weight.to(dtype), bias.to(dtype), eps)
