"""Measurement of the faster precision."""

import time
from dataclasses import replace

import torch

from mosaicbert.config import Recipe
from mosaicbert.model.factory import build_model
from mosaicbert.train.device import PRECISIONS
from mosaicbert.train.measure.micro_batch import make_micro_batch, measured_loss

_MAX_MEASURED_LAYERS = 2
_MAX_MEASURED_TOKENS = 512
_NUM_ROUNDS = 4
_CLEAR_RATIO = 2.0  # no further round is needed; the first one also selects kernels and allocates memory


def measure_precisions(recipe: Recipe) -> dict[str, float]:
    """Time training steps on the CPU in both precisions, in turn.

    The measured model has the widths and the vocabulary of the recipe, but few layers and tokens, since their number
    changes the time of a step more than the ratio of two of them.

    Args:
        recipe: Recipe of the run.

    Returns:
        Seconds of the fastest step by precision, "fp32" and "bf16". Other processes may run, so the fastest counts.
    """
    model_config = replace(recipe.model, num_hidden_layers=min(recipe.model.num_hidden_layers, _MAX_MEASURED_LAYERS))
    batch = make_micro_batch(recipe, _MAX_MEASURED_TOKENS)
    best = dict.fromkeys(PRECISIONS, float("inf"))
    with torch.random.fork_rng(devices=[]):
        model = build_model(model_config).train()
        for _ in range(_NUM_ROUNDS):
            for precision, dtype in PRECISIONS.items():
                start = time.perf_counter()
                with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                    loss = measured_loss(model, model_config, batch)
                loss.backward()
                model.zero_grad()
                best[precision] = min(best[precision], time.perf_counter() - start)
            if max(best.values()) > _CLEAR_RATIO * min(best.values()):
                break
    return best
