"""The optimizers of a recipe: AdamW as the paper ran it, StableAdamW, and Muon. Weights and states are fp32.

Every param group carries "peak_lr"; whoever schedules sets group["lr"] to a share of it before a step. Weight decay
follows that schedule and not the peak, as in Composer's DecoupledAdamW: p *= 1 - weight_decay * lr / peak_lr. PyTorch's
AdamW does p *= 1 - weight_decay * lr, so the groups hold weight_decay / peak_lr.
"""

# pyright: reportPrivateImportUsage=false
# The fast way over many tensors is torch._foreach_*, which has no public name.

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

_IN_A_LAYER = re.compile(r"(^|\.)layers?\.\d+\.")  # ours, and Hugging Face's BERT
_STACKED = {"qkv.weight": 3, "gate_up.weight": 2}

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5
_SMALLEST_NORM = 1e-7
_ADAMW_RMS = 0.2  # the usual root mean square of AdamW's update, to which Muon's is scaled


def build_optimizer(model: nn.Module, config: OptimizerConfig, device_type: str) -> Optimizer:
    """The optimizer of `config` for all parameters of `model`, each of them once.

    Muon takes the matrices inside the encoder's layers; embeddings, heads, norms and biases are left to AdamW.

    Args:
        model: ours or Hugging Face's BERT, with or without a head or a wrapper around it.
        config: which optimizer, and its numbers.
        device_type: where it will train, "cuda" or "cpu"; the model may still be elsewhere.

    Raises:
        ValueError: Muon is asked for, and the model has no layers with matrices.
    """
    common: dict[str, Any] = {
        "lr": config.peak_lr,
        "betas": config.betas,
        "eps": config.eps,
        "weight_decay": config.weight_decay / config.peak_lr,
    }
    everything = {"params": list(model.parameters()), "peak_lr": config.peak_lr}
    if config.name == "decoupled_adamw":
        return AdamW([everything], fused=True, **common)
    if config.name == "stable_adamw":
        return StableAdamW([everything], **common)
    by_kind: defaultdict[int, list[Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        by_kind[_count_matrices(name, parameter)].append(parameter)
    if by_kind.keys() == {0}:
        raise ValueError(f"{type(model).__name__} has no matrices in layers for muon; take stable_adamw for it.")
    groups = [
        {"params": parameters, "num_matrices": count, "peak_lr": config.peak_lr}
        for count, parameters in by_kind.items()
    ]
    dtype = torch.bfloat16 if device_type == "cuda" else torch.float32
    return Muon(groups, momentum=config.momentum, dtype=dtype, **common)


def update_unless(withhold: Tensor, optimizer: Optimizer) -> None:
    """Makes a step of the optimizer, or none: weights and what it keeps of them then stay as they are.

    PyTorch's fused AdamW looks at `withhold` on the device. The others are made of many operations, each of which would
    have to read and write once more to be withheld; for them the host waits until it can look.

    Args:
        withhold: () fp32 on the parameters' device: 1 for no step, else 0.
        optimizer: of `build_optimizer`.
    """
    if isinstance(optimizer, AdamW):
        cast(Any, optimizer).found_inf = withhold  # where PyTorch's GradScaler puts it
        optimizer.step()
    elif not withhold:
        optimizer.step()


class StableAdamW(Optimizer):
    """AdamW that shortens a tensor's step where its gradient has outgrown the second moment.

    Source: algorithm 2 of Wortsman et al. 2023, arXiv:2304.13013, with t counted from 1:

        beta_t = beta * (1 - beta^(t-1)) / (1 - beta^t), for either beta
        exp_avg = lerp(exp_avg, grad, 1 - beta1_t)
        exp_avg_sq = lerp(exp_avg_sq, grad^2, 1 - beta2_t)
        rms = max(1, sqrt(mean(grad^2 / max(exp_avg_sq, eps^2)))), one number per tensor
        p -= lr / rms * (weight_decay * p + exp_avg / (sqrt(exp_avg_sq) + eps))

    Args:
        params: groups of fp32 parameters.
        weight_decay: PyTorch's, to be multiplied with the learning rate.
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
        """Updates the parameters that have a gradient; returns what `closure` returns, which is called first."""
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
                state["step"] = torch.tensor(0.0)  # on the host, where reading it waits for no device
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
    """Orthogonalised momentum for matrices, AdamW for everything else.

        momentum_buffer = momentum * momentum_buffer + grad
        p -= lr * (weight_decay * p + 0.2 * sqrt(max(R, C)) * orthogonalise(grad + momentum * momentum_buffer))

    Sources: Jordan 2024, https://kellerjordan.github.io/posts/muon; the factor, with which AdamW's learning rate and
    weight decay carry over, is Moonlight's, arXiv:2502.16982, section 2.2.

    Args:
        params: groups of fp32 parameters. "num_matrices" says how many matrices of one shape (R, C) each parameter of a
            group holds, one below the other; 0 leaves the group to AdamW.
        weight_decay: PyTorch's, to be multiplied with the learning rate.
        dtype: of the matrix products.
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
            "fused": True,  # load_state_dict then puts "step" on the parameter's device
        }
        super().__init__(params, defaults)
        self.dtype = dtype

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates the parameters that have a gradient; returns what `closure` returns, which is called first."""
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
            for parameter, update in zip(parameters, self._accelerate(parameters, group["momentum"]), strict=True):
                matrices = (tensor.chunk(group["num_matrices"]) for tensor in (parameter, update))
                for pair in zip(*matrices, strict=True):
                    rows, columns = pair[0].shape
                    batches[rows, columns, group["lr"]].append(pair)
        for (rows, columns, lr), pairs in batches.items():
            weights, updates = ([*tensors] for tensors in zip(*pairs, strict=True))
            directions = orthogonalise(torch.stack(updates).to(self.dtype)).to(weights[0].dtype)
            scale = _ADAMW_RMS * math.sqrt(max(rows, columns))
            torch._foreach_add_(weights, list(directions.unbind()), alpha=-lr * scale)

    def _accelerate(self, parameters: list[Tensor], momentum: float) -> tuple[Tensor, ...]:
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


def orthogonalise(matrices: Tensor) -> Tensor:
    """Brings the singular values of each matrix near 1, into about 0.7 to 1.2, and leaves its singular vectors.

    Those below 1/500 of the Frobenius norm end lower.

    Args:
        matrices: (N, R, C), of any scale.

    Returns:
        (N, R, C), of the same dtype.

    Source: the Newton-Schulz iteration of Jordan 2024, https://kellerjordan.github.io/posts/muon.
    """
    linear, cubic, quintic = _NEWTON_SCHULZ
    is_tall = matrices.shape[1] > matrices.shape[2]
    wide = matrices.mT if is_tall else matrices  # the smaller Gram matrix
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp_min(_SMALLEST_NORM)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = wide @ wide.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
        wide = torch.baddbmm(wide, polynomial, wide, beta=linear)
    return wide.mT.contiguous() if is_tall else wide


def _count_matrices(name: str, parameter: Tensor) -> int:
    if parameter.ndim != 2 or not _IN_A_LAYER.search(name):
        return 0
    return next((count for end, count in _STACKED.items() if name.endswith(end)), 1)


def _with_gradient(group: dict[str, Any]) -> list[Tensor]:
    return [parameter for parameter in group["params"] if parameter.grad is not None]


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _moments(parameter: Tensor) -> dict[str, Tensor]:
    return {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
