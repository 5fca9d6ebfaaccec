"""The learning rate over a run."""


def linear_schedule(step: int, *, total_steps: int, warmup_steps: int, final_fraction: float) -> float:
    """The share of the peak that the learning rate has in a step: up linearly, then down linearly.

    Composer's own scheduler is one step late and spends the first two steps at zero.

    Args:
        step: 0 for the first.
        total_steps: of the run; the last of them has final_fraction.
        warmup_steps: the last of them has the peak.
        final_fraction: of the peak.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    decayed = (step + 1 - warmup_steps) / (total_steps - warmup_steps)
    return 1.0 - (1.0 - final_fraction) * min(1.0, decayed)
