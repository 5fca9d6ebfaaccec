"""Data parallelism: replicated (DDP) and sharded (FSDP2) models, and their full state."""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel
from transformers.models.bert.modeling_bert import BertLayer

from mosaicbert.model.layers import Layer
from mosaicbert.train.composer import FSDP2Config, dist


def fsdp_config(model: PreTrainedModel) -> dict[str, Any]:
    """Return Composer's `parallelism_config` that shards each layer over the ranks (FSDP2).

    Embeddings, head and decoder form one unit, since two of them share a tensor. Weights and gradients are communicated
    in fp32, so that the results are those of `ddp`.

    Args:
        model: Model to shard. An attribute that Composer reads is set on it.
    """
    setattr(model, "fsdp_wrap_fn", lambda module: isinstance(module, (Layer, BertLayer)))  # noqa: B010
    return {"fsdp": FSDP2Config(mixed_precision="FULL", state_dict_type="full")}


def configure_sharded(model: nn.Module) -> None:
    """Configure a model that Composer has sharded to sum gradients over the ranks, as `gradient_scale` assumes.

    By default they are means, for which gloo raises an error or silently computes a plain sum.

    Args:
        model: Model inside of the Composer model wrapper.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            sharded: Any = module
            if hasattr(module, "set_force_sum_reduction_for_comms"):
                sharded.set_force_sum_reduction_for_comms(True)
                sharded.set_gradient_divide_factor(1.0)
            else:  # torch 2.7: NCCL scales by this factor of one, gloo does not scale
                sharded.set_reduce_scatter_divide_factor(1.0)
    for method in ("predict", "masked_lm_loss"):
        if isinstance(model, FSDPModule) and hasattr(model, method):
            register_fsdp_forward_method(model, method)


def gradient_scale(model: nn.Module) -> float:
    """Return the factor of the loss on each rank that makes the reduced gradient that of the summed loss."""
    return 1.0 if _is_sharded(model) else float(dist.get_world_size())


def defer_all_reduce(model: nn.Module, *, is_last: bool) -> contextlib.AbstractContextManager[None]:
    """Defer the reduction of gradients over the ranks to the last micro-batch of a step, in a `with` block.

    Args:
        model: Model that is trained.
        is_last: Whether the micro-batch is the last of its step.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(is_last, recurse=False)
    if isinstance(model, DistributedDataParallel) and not is_last:
        return model.no_sync()
    return contextlib.nullcontext()


def gradient_norm(model: nn.Module) -> Tensor:
    """Compute the Euclidean norm of the whole gradient, () fp32, on every rank."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def gather_state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Gather the full weights and optimizer state on the CPU of rank 0. All ranks call it.

    Args:
        model: Model that is trained.
        optimizer: Its optimizer.

    Returns:
        Weights and optimizer state, as in `Checkpoint`. They may be views of tensors that training changes.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: Any = get_model_state_dict(model, options=options)
    if not optimizer.state:  # PyTorch would apply a step of zeros to read its state
        return weights, {}
    optimizer_state: Any = get_optimizer_state_dict(model, optimizer, options=options).get("state", {})
    return weights, optimizer_state


def broadcast_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    weights: dict[str, Any],
    optimizer_state: dict[str, Any],
    *,
    has_updated: bool,
) -> None:
    """Load the state that is given on rank 0 into the model and the optimizer of every rank.

    The state arguments of the other ranks are empty.

    Args:
        model: Model to load into.
        optimizer: Optimizer to load into.
        weights: Weights, see `gather_state`.
        optimizer_state: Optimizer state, see `gather_state`.
        has_updated: Whether the optimizer had applied a step. If not, its state is empty or zeros, and is ignored.
    """
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=dist.get_world_size() > 1)
    set_model_state_dict(model, weights, options=options)
    if not has_updated:
        return
    groups = get_optimizer_state_dict(model, optimizer)["param_groups"]
    set_optimizer_state_dict(model, optimizer, {"state": optimizer_state, "param_groups": groups}, options=options)


def _is_sharded(model: nn.Module) -> bool:
    return any(isinstance(module, FSDPModule) for module in model.modules())
