"""Seeding of the random number generators before each step."""

import torch

from mosaicbert.train.composer import Callback, Logger, State, dist


class StepSeeder(Callback):
    """Seed PyTorch's generators from (seed, step, rank), so that a resumed run draws the same dropout masks."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def batch_start(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        torch.manual_seed(hash((self.seed, state.timestamp.batch.value, dist.get_global_rank())) % 2**63)
