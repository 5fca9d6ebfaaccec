"""Several devices: the state of a model that is copied to all of them, or shared out among them, as one."""

from typing import Any

import torch
from composer.utils import dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)


def gradient_norm(model: nn.Module) -> Tensor:
    """The Euclidean norm of the whole gradient, () fp32, on every rank."""
    return torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def gather_state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Weights, and what the optimizer keeps of each, whole and on the CPU. All ranks call it; rank 0 gets it.

    Returns:
        As in `mosaicbert.checkpoint.Checkpoint`.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: Any = get_model_state_dict(model, options=options)
    kept: Any = get_optimizer_state_dict(model, optimizer, options=options).get("state", {})
    return weights, kept


def spread_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    weights: dict[str, Any],
    kept: dict[str, Any],
) -> None:
    """Gives all ranks the state that rank 0 has read; the other ranks' arguments are empty."""
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=dist.get_world_size() > 1)
    set_model_state_dict(model, weights, options=options)
    groups = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))["param_groups"]
    set_optimizer_state_dict(model, optimizer, {"state": kept, "param_groups": groups}, options=options)
