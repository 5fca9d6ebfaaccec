"""Micro-batch of random tokens with the sizes of a recipe, and its loss."""

import torch
from torch import Tensor

from mosaicbert.batch import MicroBatch
from mosaicbert.config import ModelConfig, Recipe


def measured_loss(model: torch.nn.Module, config: ModelConfig, batch: MicroBatch) -> Tensor:
    """Compute the summed or mean loss of a micro-batch, ().

    Args:
        model: Model of the configuration, in training mode.
        config: Sizes and architecture of the model.
        batch: Micro-batch.
    """
    if config.architecture == "bert":
        return model(**batch.padded(pad_token_id=0)).loss
    return model.masked_lm_loss(batch)[0]  # pyright: ignore[reportCallIssue]


def make_micro_batch(recipe: Recipe, max_tokens: int) -> MicroBatch:
    """Make documents of random tokens, of the maximum length, with the mask rate of the recipe.

    Args:
        recipe: Recipe of the run.
        max_tokens: Maximum number of tokens, if it is less than `train.micro_batch_tokens`. Longer documents have this
            length.
    """
    length = min(recipe.data.max_seq_len, max_tokens)
    num_documents = max(1, min(recipe.train.micro_batch_tokens, max_tokens) // length)
    num_tokens = length * num_documents
    num_masked = max(1, round(recipe.data.mask_rate * num_tokens))
    generator = torch.Generator().manual_seed(recipe.seed)
    input_ids = torch.randint(recipe.model.vocab_size, (num_tokens,), generator=generator)
    masked_indices = torch.randperm(num_tokens, generator=generator)[:num_masked].sort().values
    return MicroBatch(
        input_ids=input_ids,
        cu_seqlens=torch.arange(0, num_tokens + 1, length, dtype=torch.int32),
        max_seqlen=length,
        masked_indices=masked_indices,
        labels=input_ids[masked_indices],
        num_tokens=num_tokens,
        num_sequences=num_documents,
        num_masked=num_masked,
    )
