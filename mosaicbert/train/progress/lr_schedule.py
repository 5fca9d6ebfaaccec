"""Learning rate schedule."""

import math

from mosaicbert.config import OptimizerConfig


def learning_rate_fraction(optimizer: OptimizerConfig, fraction_done: float) -> float:
    """Return the learning rate of a step as a fraction of its peak.

    Linear warmup, then `linear`: linear decay to the end of the run; `warmup_stable_decay`: constant, then decay as one
    minus the square root of the fraction of the decay that is done (Haegele et al. 2024, arXiv:2405.18392; ModernBERT).
    Composer's own schedulers are one step late, and spend the first two steps at zero.

    Args:
        optimizer: Optimizer section of the recipe.
        fraction_done: Fraction of the run's duration that has passed after the step, in [0, 1].
    """
    warmup, final = optimizer.warmup_fraction, optimizer.final_lr_fraction
    if fraction_done < warmup:
        return fraction_done / warmup
    if optimizer.schedule == "linear":
        decayed = (fraction_done - warmup) / (1.0 - warmup) if warmup < 1.0 else 0.0
        return 1.0 - (1.0 - final) * decayed
    stable = 1.0 - optimizer.decay_fraction
    if fraction_done <= stable:
        return 1.0
    return 1.0 - (1.0 - final) * math.sqrt(min(1.0, (fraction_done - stable) / optimizer.decay_fraction))
