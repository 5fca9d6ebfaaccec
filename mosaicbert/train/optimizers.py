"""Optimizers: AdamW as in the paper, StableAdamW, and Muon. Weights and states are fp32.

Every parameter group has the field "peak_lr". The learning rate schedule sets group["lr"] to a fraction of it before a
step. Weight decay follows the schedule, as in Composer's DecoupledAdamW: p *= 1 - weight_decay * lr / peak_lr.
PyTorch's AdamW computes p *= 1 - weight_decay * lr, so the weight decay of the groups is weight_decay / peak_lr.
"""

# pyright: reportPrivateImportUsage=false
# The fast operations on lists of tensors are torch._foreach_*, which are not public.

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.adamw import adamw

from mosaicbert.config import OptimizerConfig

_LAYER_PATTERN = re.compile(r"(^|\.)layers?\.\d+\.")  # names of weights of MosaicBERT and of Hugging Face's BERT
_NUM_STACKED_MATRICES = {"qkv.weight": 3, "gate_up.weight": 2}

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5
_MIN_NORM = 1e-7
_ADAMW_RMS = 0.2  # typical root mean square of an AdamW update, to which Muon's update is scaled


def build_optimizer(model: nn.Module, config: OptimizerConfig, dtype: torch.dtype = torch.float32) -> Optimizer:
    """Build an optimizer of all parameters of a model.

    Muon updates the matrices of the encoder layers, and AdamW the embeddings, heads, norms and biases.

    Args:
        model: MosaicBERT or Hugging Face's BERT, with or without a head or a wrapper.
        config: Optimizer section of the recipe.
        dtype: dtype of the matrix products of Muon. Parameters and momentum are always in fp32.

    Raises:
        ValueError: If the optimizer is Muon and the model has no layers with matrices.
    """
    common: dict[str, Any] = {
        "lr": config.peak_lr,
        "betas": config.betas,
        "eps": config.eps,
        "weight_decay": config.weight_decay / config.peak_lr,
    }
    all_parameters = {"params": list(model.parameters()), "peak_lr": config.peak_lr}
    if config.name == "decoupled_adamw":
        return AdamW([all_parameters], fused=True, **common)
    if config.name == "stable_adamw":
        return StableAdamW([all_parameters], **common)
    parameters_by_count: defaultdict[int, list[Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        parameters_by_count[_count_matrices(name, parameter)].append(parameter)
    if parameters_by_count.keys() == {0}:
        raise ValueError(
            f"`model` must have layers with matrices for muon, got {type(model).__name__}. Use stable_adamw."
        )
    groups = [
        {"params": parameters, "num_matrices": count, "peak_lr": config.peak_lr}
        for count, parameters in parameters_by_count.items()
    ]
    return Muon(groups, momentum=config.momentum, dtype=dtype, **common)


def update_unless(skip: Tensor, optimizer: Optimizer) -> None:
    """Update the weights, or skip the step. A skipped step changes neither the weights nor the optimizer state.

    PyTorch's fused AdamW reads `skip` on the device. The other optimizers consist of many operations, each of which
    would need an additional read and write. For them the host waits for `skip`.

    Args:
        skip: () fp32 on the device of the parameters, 1 to skip the step, otherwise 0.
        optimizer: Optimizer built by `build_optimizer`.
    """
    if isinstance(optimizer, AdamW):
        cast(Any, optimizer).found_inf = skip  # the attribute that PyTorch's GradScaler sets
        optimizer.step()
    elif not skip:
        optimizer.step()


class StableAdamW(Optimizer):
    """AdamW that reduces the learning rate of a tensor whose gradient is large compared with its second moment.

    Source: algorithm 2 of Wortsman et al. 2023, arXiv:2304.13013, with t counted from 1:

        beta_t = beta * (1 - beta^(t-1)) / (1 - beta^t), for both betas
        exp_avg = lerp(exp_avg, grad, 1 - beta1_t)
        exp_avg_sq = lerp(exp_avg_sq, grad^2, 1 - beta2_t)
        rms = max(1, sqrt(mean(grad^2 / max(exp_avg_sq, eps^2)))), one number per tensor
        p -= lr / rms * (weight_decay * p + exp_avg / (sqrt(exp_avg_sq) + eps))

    Args:
        params: Groups of fp32 parameters.
        lr: Learning rate.
        betas: Decay rates of the first and second moment.
        eps: Constant added to the denominator.
        weight_decay: Weight decay as in PyTorch's AdamW, which multiplies it by the learning rate.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters that have a gradient. Return the result of `closure`, which is called first."""
        loss = None if closure is None else closure()
        with torch.no_grad():
            for group in self.param_groups:
                self._update_group(group)
        return loss

    def _update_group(self, group: dict[str, Any]) -> None:
        by_step: defaultdict[float, list[Tensor]] = defaultdict(list)
        for parameter in _with_gradient(group):
            state = self.state[parameter]
            if not state:
                state["step"] = torch.tensor(0.0)  # on the CPU, where reading it does not wait for the device
                state |= _moments(parameter)
            state["step"] += 1
            by_step[float(state["step"])].append(parameter)
        for step, parameters in by_step.items():
            self._update(parameters, step, group)

    def _update(self, parameters: list[Tensor], step: float, group: dict[str, Any]) -> None:
        grads = _gradients(parameters)
        exp_avgs = [self.state[parameter]["exp_avg"] for parameter in parameters]
        exp_avg_sqs = [self.state[parameter]["exp_avg_sq"] for parameter in parameters]
        beta1, beta2 = (beta * (1 - beta ** (step - 1)) / (1 - beta**step) for beta in group["betas"])
        torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
        torch._foreach_mul_(exp_avg_sqs, beta2)
        torch._foreach_addcmul_(exp_avg_sqs, grads, grads, value=1 - beta2)

        roots = torch._foreach_sqrt(exp_avg_sqs)
        rms = torch._foreach_norm(torch._foreach_div(grads, torch._foreach_clamp_min(roots, group["eps"])))
        torch._foreach_div_(rms, [math.sqrt(parameter.numel()) for parameter in parameters])
        torch._foreach_clamp_min_(rms, 1.0)

        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(exp_avgs, roots)
        torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        torch._foreach_addcdiv_(parameters, updates, rms, value=-group["lr"])


class Muon(Optimizer):
    """Orthogonalized momentum for matrices, AdamW for all other parameters.

        momentum_buffer = momentum * momentum_buffer + grad
        p -= lr * (weight_decay * p + 0.2 * sqrt(max(R, C)) * orthogonalize(grad + momentum * momentum_buffer))

    Source: Jordan 2024, https://kellerjordan.github.io/posts/muon. The factor 0.2 * sqrt(max(R, C)), which allows
    AdamW's learning rate and weight decay, is from Moonlight, arXiv:2502.16982, section 2.2.

    Args:
        params: Groups of fp32 parameters. The field "num_matrices" of a group is the number of matrices (R, C) that are
            concatenated in each of its parameters. 0 selects AdamW.
        lr: Learning rate.
        betas: Decay rates of AdamW's first and second moment.
        eps: Constant added to AdamW's denominator.
        weight_decay: Weight decay as in PyTorch's AdamW, which multiplies it by the learning rate.
        momentum: Decay rate of Muon's momentum.
        dtype: dtype of the matrix products.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        momentum: float,
        dtype: torch.dtype,
    ) -> None:
        defaults: dict[str, Any] = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "fused": True,  # so that load_state_dict moves "step" to the device of the parameter
        }
        super().__init__(params, defaults)
        self.dtype = dtype

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters that have a gradient. Return the result of `closure`, which is called first."""
        loss = None if closure is None else closure()
        with torch.no_grad():
            self._update()
        return loss

    def _update(self) -> None:
        batches: defaultdict[tuple[int, int, float], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for group in self.param_groups:
            parameters = _with_gradient(group)
            if not parameters:
                continue
            if not group["num_matrices"]:
                self._update_by_adamw(parameters, group)
                continue
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            momentum_updates = self._momentum_updates(parameters, group["momentum"])
            for parameter, update in zip(parameters, momentum_updates, strict=True):
                matrices = (tensor.chunk(group["num_matrices"]) for tensor in (parameter, update))
                for pair in zip(*matrices, strict=True):
                    rows, columns = pair[0].shape
                    batches[rows, columns, group["lr"]].append(pair)
        for (rows, columns, lr), pairs in batches.items():
            weights, updates = ([*tensors] for tensors in zip(*pairs, strict=True))
            directions = orthogonalize(torch.stack(updates).to(self.dtype)).to(weights[0].dtype)
            scale = _ADAMW_RMS * math.sqrt(max(rows, columns))
            torch._foreach_add_(weights, list(directions.unbind()), alpha=-lr * scale)

    def _momentum_updates(self, parameters: list[Tensor], momentum: float) -> tuple[Tensor, ...]:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        grads = _gradients(parameters)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, grads)
        return torch._foreach_add(grads, buffers, alpha=momentum)

    def _update_by_adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["step"] = torch.zeros((), device=parameter.device)
                self.state[parameter] |= _moments(parameter)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            _gradients(parameters),
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalize(matrices: Tensor) -> Tensor:
    """Orthogonalize matrices approximately: singular values become about 0.7 to 1.2, singular vectors do not change.

    Singular values below 1/500 of the Frobenius norm become smaller than that.

    Args:
        matrices: (N, R, C), matrices of any scale.

    Returns:
        (N, R, C), the orthogonalized matrices in the same dtype.

    Source: the Newton-Schulz iteration of Jordan 2024, https://kellerjordan.github.io/posts/muon.
    """
    linear, cubic, quintic = _NEWTON_SCHULZ
    is_tall = matrices.shape[1] > matrices.shape[2]
    wide = matrices.mT if is_tall else matrices  # so that the Gram matrix is small
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp_min(_MIN_NORM)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = wide @ wide.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
        wide = torch.baddbmm(wide, polynomial, wide, beta=linear)
    return wide.mT.contiguous() if is_tall else wide


def _count_matrices(name: str, parameter: Tensor) -> int:
    if parameter.ndim != 2 or not _LAYER_PATTERN.search(name):
        return 0
    return next((count for suffix, count in _NUM_STACKED_MATRICES.items() if name.endswith(suffix)), 1)


def _with_gradient(group: dict[str, Any]) -> list[Tensor]:
    return [parameter for parameter in group["params"] if parameter.grad is not None]


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _moments(parameter: Tensor) -> dict[str, Tensor]:
    return {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
