"""Score record with all fields."""

from mosaicbert.scores.records import Pretraining, Score

COST = Pretraining(
    steps=3, tokens=4_000, seconds=1.5, wall_seconds=2.0, flops=1e12, device="Example CPU", num_devices=1
)


def make_score(seed=19, **changes) -> Score:
    """Create a score of MRPC with changed fields."""
    fields = {
        "model": "m",
        "step": 3,
        "task": "mrpc",
        "seed": seed,
        "metrics": {"accuracy": 0.5, "f1": 0.7},
        "protocol": "abc",
        "settings": {"shuffle": True},
        "initialized_from": "mnli",
        "is_partial": False,
        "seconds": 1.0,
        "pretraining": COST,
        "environment": {"commit": None},
        "finished": "2026-01-01T00:00:00+00:00",
    }
    return Score(**(fields | changes))
