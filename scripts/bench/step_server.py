"""Process that runs training steps on request, with the package of a commit. `compare.py` starts it.

It reads the index of a step from each line of the standard input, and answers with a line of JSON. It uses only
functions of the package that commits have in common.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch

import mosaicbert
from mosaicbert.batch import MicroBatch
from mosaicbert.config import ModelConfig, OptimizerConfig
from mosaicbert.model.factory import build_model
from mosaicbert.train.compile import compile_model
from mosaicbert.train.optimizers import build_optimizer

_LEARNING_RATE = 1e-5  # small, so that losses stay finite


def main() -> None:
    source, task_path = map(Path, sys.argv[1:])
    assert Path(mosaicbert.__file__).is_relative_to(source), f"{mosaicbert.__file__} is not in {source}"
    task = torch.load(task_path, weights_only=True)
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, task["dtype"])
    torch.manual_seed(task["seed"])
    model = build_model(ModelConfig(**task["model"])).to(device_type).train()
    if task["is_compiled"]:
        compile_model(model)
    optimizer = build_optimizer(model, OptimizerConfig(**task["optimizer"]), dtype)
    for group in optimizer.param_groups:
        group["lr"] = _LEARNING_RATE
    for line in sys.stdin:
        batches = [MicroBatch(**fields).to(device_type) for fields in task["steps"][int(line)]]
        synchronize()
        start = time.perf_counter()
        loss = run_step(model, optimizer, batches, dtype)
        synchronize()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "loss": float(loss), "peak_mib": peak}), flush=True)


def run_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, batches: list[MicroBatch], dtype: torch.dtype
) -> torch.Tensor:
    """Run a training step, and return its mean loss."""
    optimizer.zero_grad()
    num_masked = sum(batch.num_masked for batch in batches)
    loss_sum = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        with torch.autocast(batch.input_ids.device.type, dtype, enabled=dtype != torch.float32):
            loss = model.masked_lm_loss(batch)[0] / num_masked
        loss.backward()
        loss_sum += loss.detach().cpu()
    optimizer.step()
    return loss_sum


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
