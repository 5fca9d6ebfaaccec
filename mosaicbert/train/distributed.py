"""Several devices: a model that is copied to all of them, or shared out among them, and its state as one."""

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


def sharding_config(model: PreTrainedModel) -> dict[str, Any]:
    """What Composer's `parallelism_config` is, to share each layer's weights out among the ranks (FSDP2).

    Embeddings, head and decoder stay together, since two of them are one tensor. Weights and gradients travel in fp32,
    so that the numbers are those of `ddp`.

    Args:
        model: which is told what its layers are.
    """
    # Composer asks the module inside its own for this.
    setattr(model, "fsdp_wrap_fn", lambda module: isinstance(module, (Layer, BertLayer)))  # noqa: B010
    return {"fsdp": FSDP2Config(mixed_precision="FULL", state_dict_type="full")}


def prepare_sharded(model: nn.Module) -> None:
    """Makes the gradients of a model that Composer has shared out sums over the ranks, like those of `gradient_scale`.

    By default they are means; but gloo, asked for a mean or for a scaled sum, refuses or silently gives a plain sum.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            sharded: Any = module
            if hasattr(module, "set_force_sum_reduction_for_comms"):
                sharded.set_force_sum_reduction_for_comms(True)
                sharded.set_gradient_divide_factor(1.0)
            else:  # torch 2.7: NCCL scales by one, gloo does not scale
                sharded.set_reduce_scatter_divide_factor(1.0)
    for method in ("predict", "masked_lm_loss"):
        if isinstance(model, FSDPModule) and hasattr(model, method):
            register_fsdp_forward_method(model, method)


def gradient_scale(model: nn.Module) -> float:
    """What a rank's loss is multiplied by, so that the gradient is that of the sum over the ranks."""
    return 1.0 if _is_sharded(model) else float(dist.get_world_size())


def delay_exchange(model: nn.Module, *, is_last: bool) -> contextlib.AbstractContextManager[None]:
    """Within it, a backward pass exchanges gradients with the other ranks only if the micro-batch is a step's last."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(is_last, recurse=False)
    if isinstance(model, DistributedDataParallel) and not is_last:
        return model.no_sync()
    return contextlib.nullcontext()


def gradient_norm(model: nn.Module) -> Tensor:
    """The Euclidean norm of the whole gradient, () fp32, on every rank."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def gather_state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Weights, and what the optimizer keeps of each, whole and on the CPU. All ranks call it; rank 0 gets it.

    Returns:
        As in `mosaicbert.train.checkpoint.format.Checkpoint`; they may be views of what trains on.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: Any = get_model_state_dict(model, options=options)
    if not optimizer.state:  # asked for it, an optimizer that has done nothing would make a step of zeros
        return weights, {}
    kept: Any = get_optimizer_state_dict(model, optimizer, options=options).get("state", {})
    return weights, kept


def spread_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    weights: dict[str, Any],
    kept: dict[str, Any],
    *,
    has_updated: bool,
) -> None:
    """Gives all ranks the state that rank 0 has read; the other ranks' arguments are empty.

    Args:
        model: to fill.
        optimizer: to fill.
        weights: see `gather_state`.
        kept: see `gather_state`.
        has_updated: whether the optimizer had done anything; if not, `kept` is empty, or zeros and passed over.
    """
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=dist.get_world_size() > 1)
    set_model_state_dict(model, weights, options=options)
    if not has_updated:
        return
    groups = get_optimizer_state_dict(model, optimizer)["param_groups"]
    set_optimizer_state_dict(model, optimizer, {"state": kept, "param_groups": groups}, options=options)


def _is_sharded(model: nn.Module) -> bool:
    return any(isinstance(module, FSDPModule) for module in model.modules())
