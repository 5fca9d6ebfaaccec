"""Benchmark of one step of each optimizer on the CPU, for the quickstart model and Base.

Run: python scripts/bench/optimizers.py
"""

from pathlib import Path

import torch
from harness import record

from mosaicbert.config import OptimizerConfig
from mosaicbert.config.load import load_recipe
from mosaicbert.model.factory import build_model
from mosaicbert.train.optimizers import build_optimizer

_RECIPES = Path(__file__).parents[2] / "recipes"
_OPTIMIZER_NAMES = ("decoupled_adamw", "stable_adamw", "muon")


def main() -> None:
    for name in ("quickstart", "mosaicbert-base-c4"):
        model = build_model(load_recipe(_RECIPES / f"{name}.yaml").model)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) * 1e-3
        optimizers = {
            optimizer_name: build_optimizer(model, OptimizerConfig(name=optimizer_name, peak_lr=1e-6))  # pyright: ignore
            for optimizer_name in _OPTIMIZER_NAMES
        }
        steps = {optimizer_name: optimizer.step for optimizer_name, optimizer in optimizers.items()}
        shape = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
        record("optimizers", f"a step, {name}", steps, shape=shape, dtype=torch.float32, seconds=20.0)


if __name__ == "__main__":
    main()
