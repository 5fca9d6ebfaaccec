"""The learning rate over a run, as a share of its peak, from the share of the run that is done."""

import math

from mosaicbert.config import OptimizerConfig


def learning_rate_share(optimizer: OptimizerConfig, done: float) -> float:
    """The share of the peak that the learning rate has in a step.

    Up linearly, then `linear`: down linearly to the end; `warmup_stable_decay`: level, and at the end down as one minus
    the square root of the share of the decay that is done (Haegele et al. 2024, arXiv:2405.18392; ModernBERT).
    Composer's own schedulers are one step late, and spend the first two steps at zero.

    Args:
        optimizer: the recipe's section.
        done: share of the run's duration that has passed when the step is over, in [0, 1].
    """
    warmup, final = optimizer.warmup_fraction, optimizer.final_lr_fraction
    if done < warmup:
        return done / warmup
    if optimizer.schedule == "linear":
        decayed = (done - warmup) / (1.0 - warmup) if warmup < 1.0 else 0.0
        return 1.0 - (1.0 - final) * decayed
    stable = 1.0 - optimizer.decay_fraction
    if done <= stable:
        return 1.0
    return 1.0 - (1.0 - final) * math.sqrt(min(1.0, (done - stable) / optimizer.decay_fraction))
