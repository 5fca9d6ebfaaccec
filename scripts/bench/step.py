"""Training step of MosaicBERT on a micro-batch, for benchmarks of the whole step."""

from collections.abc import Callable

import torch

from mosaicbert.batch import MicroBatch
from mosaicbert.model.modeling import MosaicBertForMaskedLM


def training_step(
    model: MosaicBertForMaskedLM, batch: MicroBatch, dtype: torch.dtype, optimizer: torch.optim.Optimizer | None = None
) -> Callable[[], None]:
    """Return a function that runs a forward and backward pass, and a step of the optimizer if one is given.

    Args:
        model: Model in training mode.
        batch: Micro-batch on the device of the model.
        dtype: dtype of matrix products.
        optimizer: Optimizer of the model, or None.
    """
    device_type = batch.input_ids.device.type

    def step() -> None:
        with torch.autocast(device_type, dtype, enabled=dtype != torch.float32):
            loss = model.masked_lm_loss(batch)[0] / batch.num_masked
        loss.backward()
        if optimizer is not None:
            optimizer.step()
        model.zero_grad()

    return step
