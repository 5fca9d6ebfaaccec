"""Measurement of the number of processes with the shortest training step on this machine's CPUs."""

import json
import math
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as torch_dist
from torch.distributed import ProcessGroup
from torch.multiprocessing.spawn import spawn

from mosaicbert.batch import MicroBatch
from mosaicbert.config import Recipe
from mosaicbert.model.factory import build_model
from mosaicbert.processes import count_cpus, end_with_parent
from mosaicbert.train.device import PRECISIONS
from mosaicbert.train.measure.micro_batch import make_micro_batch, measured_loss
from mosaicbert.train.optimizers import build_optimizer

_MAX_PROCESSES = 8  # more would exchange gradients for longer than they compute, and each has a copy of the model
_MAX_MEASURED_TOKENS = 2048  # of a micro-batch
_NUM_ROUNDS = 3
_MAX_SECONDS = 20.0  # after which no further round begins


def measure_processes(recipe: Recipe) -> dict[int, float]:
    """Time the training step of a recipe with 1, 2, 4 and 8 processes, at most one per CPU, in turn.

    The processes divide the CPUs and the documents of a step. Each computes a micro-batch, then they add their
    gradients and update the weights. The time of a step follows from the number of its micro-batches.

    Args:
        recipe: Recipe of the run, with the precision "fp32" or "bf16".

    Returns:
        Seconds of a step by number of processes. Other programs may run, so the fastest of three counts.
    """
    limit = min(count_cpus(), recipe.train.min_batch_samples, _MAX_PROCESSES)
    counts = [2**exponent for exponent in range(limit.bit_length())]
    if len(counts) == 1:
        return {1: 0.0}
    with tempfile.TemporaryDirectory() as folder:
        spawn(_measure_rank, (recipe, counts, folder), nprocs=counts[-1], daemon=True)
        seconds = json.loads((Path(folder) / "seconds.json").read_text())
    return {int(count): value for count, value in seconds.items()}


def _measure_rank(rank: int, recipe: Recipe, counts: list[int], folder: str) -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch_dist.init_process_group("gloo", f"file://{folder}/ranks", rank=rank, world_size=counts[-1])
    groups: dict[int, Any] = {count: torch_dist.new_group(list(range(count))) for count in counts}
    step = _MeasuredStep(recipe)
    best = dict.fromkeys(counts, math.inf)
    end = time.perf_counter() + _MAX_SECONDS
    for _ in range(_NUM_ROUNDS):
        for count, group in groups.items():
            torch_dist.barrier()
            if rank < count:
                best[count] = min(best[count], step.seconds(count, group))
        is_late = torch.tensor(time.perf_counter() > end)
        torch_dist.broadcast(is_late, src=0)
        if is_late:
            break
    if rank == 0:
        (Path(folder) / "seconds.json").write_text(json.dumps(best))
    torch_dist.barrier()
    torch_dist.destroy_process_group()


class _MeasuredStep:
    """Training step of one of several processes.

    Args:
        recipe: Recipe of the run.
    """

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.dtype = PRECISIONS[recipe.train.precision]
        self.model = build_model(recipe.model).train()
        self.optimizer = build_optimizer(self.model, recipe.optimizer, self.dtype)

    def seconds(self, count: int, group: ProcessGroup) -> float:
        """Return the time of a step in seconds, without its loader.

        Args:
            count: Number of processes.
            group: Group of these processes.
        """
        torch.set_num_threads(max(1, count_cpus() // count))
        num_documents = math.ceil(self.recipe.train.min_batch_samples / count)
        num_tokens = num_documents * self.recipe.data.max_seq_len  # of a process
        batch = make_micro_batch(self.recipe, min(num_tokens, _MAX_MEASURED_TOKENS))
        start = time.perf_counter()
        self._compute(batch)
        torch_dist.barrier(group)
        computed = time.perf_counter()
        self._update(count, group)
        torch_dist.barrier(group)
        update_seconds = time.perf_counter() - computed
        return (computed - start) * num_tokens / batch.num_tokens + update_seconds

    def _compute(self, batch: MicroBatch) -> None:
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            loss = measured_loss(self.model, self.recipe.model, batch)
        loss.backward()

    def _update(self, count: int, group: ProcessGroup) -> None:
        if count > 1:
            weights = [weight for weight in self.model.parameters() if weight.grad is not None]
            gradients = torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None])
            torch_dist.all_reduce(gradients, group=group)
        self.optimizer.step()
        self.optimizer.zero_grad()
