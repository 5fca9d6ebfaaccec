"""A training step on the CPU: MosaicBERT against Hugging Face's BERT of the same width and depth, per real token.

Both predict the same masked tokens of the same documents. Hugging Face's BERT gets them padded to the longest of the
batch, as its users pad; ours unpadded. Run: python scripts/bench/training_step.py
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from attention import web_like_seqlens
from harness import record
from torch import Tensor

from mosaicbert.batch import Batch
from mosaicbert.config import ModelConfig
from mosaicbert.model.build import build_model

VOCAB_SIZE, MASK_RATE = 8192, 0.15
SIZES = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
NUM_FULL_DOCUMENTS = 32


def main() -> None:
    models = {
        "Hugging Face's BERT, padded": build_model(shape("bert", intermediate_size=1024)),
        "MosaicBERT": build_model(shape("mosaicbert", intermediate_size=1024)),
    }
    batches = {
        "full documents of 128": random_batch([128] * NUM_FULL_DOCUMENTS),
        "web-like documents up to 512": random_batch(web_like_seqlens()),
    }
    for dtype in (torch.bfloat16, torch.float32):
        for what, batch in batches.items():
            versions = {by: training_step(model.train(), batch, dtype) for by, model in models.items()}
            shape_of_batch = {"tokens": batch.num_tokens, "documents": batch.num_sequences, "longest": batch.max_seqlen}
            record("training_step", what, versions, shape=shape_of_batch, dtype=dtype, seconds=20.0)


def shape(architecture: str, intermediate_size: int) -> ModelConfig:
    return ModelConfig(
        architecture=architecture,  # pyright: ignore[reportArgumentType]
        vocab_size=VOCAB_SIZE,
        intermediate_size=intermediate_size,
        hidden_dropout_prob=0.0,
        **SIZES,
    )


def training_step(model: torch.nn.Module, batch: Batch, dtype: torch.dtype) -> Callable[[], object]:
    """Forward and backward pass; the optimizer's step is the same for both but for the size."""
    padded = batch.padded(pad_token_id=0)

    def loss() -> Tensor:
        if model.config.model_type == "bert":
            return model(**padded).loss
        return F.cross_entropy(model.predict(batch).float(), batch.labels)

    def step() -> None:
        model.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            value = loss()
        value.backward()

    return step


def random_batch(seqlens: list[int]) -> Batch:
    seqlens = sorted(seqlens, reverse=True)  # as the loader deals them out
    draw = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, VOCAB_SIZE, (sum(seqlens),), generator=draw)
    masked = (torch.rand(sum(seqlens), generator=draw) < MASK_RATE).nonzero(as_tuple=True)[0]
    cu_seqlens = torch.tensor([0, *seqlens]).cumsum(0).int()
    return Batch(
        input_ids=input_ids,
        cu_seqlens=cu_seqlens,
        max_seqlen=max(seqlens),
        masked_indices=masked,
        labels=input_ids[masked],
        num_tokens=len(input_ids),
        num_sequences=len(seqlens),
        num_masked=len(masked),
    )


if __name__ == "__main__":
    main()
