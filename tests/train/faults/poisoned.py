"""A run whose rank 1 computes NaN in its third step; for torchrun."""

import os
import sys

from mosaicbert.train.callbacks.rng import StepSeeder
from mosaicbert.train.composer_model import MaskedLmComposerModel
from tests.train.session import main


def _poison_third_step():
    step = [0]
    honest_start, honest_loss = StepSeeder.batch_start, MaskedLmComposerModel.loss

    def batch_start(self, state, logger):
        step[0] = state.timestamp.batch.value + 1
        honest_start(self, state, logger)

    def loss(self, outputs, batch, *others):
        value = honest_loss(self, outputs, batch, *others)
        return value * float("nan") if step[0] == 3 and os.environ["RANK"] == "1" else value

    StepSeeder.batch_start, MaskedLmComposerModel.loss = batch_start, loss


if __name__ == "__main__":
    _poison_third_step()
    main(sys.argv[1:])
