"""Run whose rank 1 computes a NaN loss in its third step. torchrun runs it as tests.train.faults.poisoned."""

import os
import sys

from mosaicbert.train.callbacks.rng import StepSeeder
from mosaicbert.train.composer_model import MaskedLmComposerModel
from tests.train.session import main


def _patch_third_step():
    step = 0
    original_start, original_loss = StepSeeder.batch_start, MaskedLmComposerModel.loss

    def batch_start(self, state, logger):
        nonlocal step
        step = state.timestamp.batch.value + 1
        original_start(self, state, logger)

    def loss(self, outputs, batch, *others):
        value = original_loss(self, outputs, batch, *others)
        return value * float("nan") if step == 3 and os.environ["RANK"] == "1" else value

    StepSeeder.batch_start, MaskedLmComposerModel.loss = batch_start, loss


if __name__ == "__main__":
    _patch_third_step()
    main(sys.argv[1:])
