"""Estimates of parameters, FLOPs and memory of a run, computed from its recipe without torch."""

from dataclasses import dataclass

from mosaicbert.config import DataConfig, ModelConfig, Recipe

BERT_MAX_POSITIONS = 512
_LOSS_CHUNK_BYTES = 256 * 2**20  # chunk size of logits, see ops.cross_entropy


@dataclass(frozen=True)
class Accelerator:
    """Dense bf16 peak of a device according to NVIDIA's data sheet, and an assumed price."""

    name: str
    peak_flops: float  # FLOP/s
    dollars_per_hour: float


# The A100 price is that of the paper's cost estimate; the others are round numbers for comparison.
ACCELERATORS = (
    Accelerator("A100", 312e12, 2.50),
    Accelerator("H100", 989e12, 3.00),
    Accelerator("H200", 989e12, 4.00),
)


def count_parameters(model: ModelConfig) -> int:
    """Return the exact number of parameters, including the masked-language-modeling head with its tied decoder."""
    width, inner = model.hidden_size, model.intermediate_size
    norm = 2 * width
    attention = 4 * width * width + 4 * width
    if model.architecture == "mosaicbert":
        mlp = 3 * width * inner + width
        embeddings = (model.vocab_size + model.type_vocab_size) * width + norm
    else:
        mlp = 2 * width * inner + inner + width
        embeddings = (model.vocab_size + model.type_vocab_size + BERT_MAX_POSITIONS) * width + norm
    head = width * width + width + norm + model.vocab_size
    return model.num_hidden_layers * (attention + mlp + 2 * norm) + embeddings + head


def training_flops(model: ModelConfig, *, num_tokens: float, squared_lengths: float, num_masked: float) -> float:
    """Return the FLOPs of one forward and backward pass.

    A multiply-add counts as two FLOPs, and the backward pass as twice the forward pass. The head is counted for masked
    tokens only. The last feed-forward layer is counted for all tokens, although training computes it for masked tokens
    only. MosaicBERT-Base needs 737 MFLOPs per token at 128 tokens with 30% masked.

    Args:
        model: Shape of the encoder.
        num_tokens: Number of real tokens, without padding.
        squared_lengths: Sum over documents of the squared length in tokens, for the cost of attention.
        num_masked: Number of masked tokens.
    """
    width = model.hidden_size
    matrices_per_mlp = 3 if model.architecture == "mosaicbert" else 2
    per_layer = 4 * width * width + matrices_per_mlp * width * model.intermediate_size
    head = width * width + model.vocab_size * width
    multiply_adds = model.num_hidden_layers * (per_layer * num_tokens + 2 * width * squared_lengths) + head * num_masked
    return 6.0 * multiply_adds


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Cost of a run whose samples all have the maximum length.

    Attributes:
        num_parameters: Number of parameters of the model.
        num_tokens: Number of tokens of the run; None for a run whose duration is a time.
        flops: FLOPs of the run; None for a run whose duration is a time.
        flops_per_token: FLOPs of a forward and a backward pass per token.
        memory_bytes: Memory per device in bytes.
    """

    num_parameters: int
    num_tokens: int | None
    flops: float | None
    flops_per_token: float
    memory_bytes: float


def estimate(recipe: Recipe, num_samples: int | None) -> Estimate:
    """Estimate the cost of a run.

    Args:
        recipe: Recipe of the run.
        num_samples: Number of samples of the run; None for a run whose duration is a time.
    """
    length = recipe.data.max_seq_len
    flops_per_token = training_flops(
        recipe.model, num_tokens=1, squared_lengths=length, num_masked=_mean_mask_rate(recipe.data)
    )
    num_tokens = None if num_samples is None else num_samples * length
    return Estimate(
        num_parameters=count_parameters(recipe.model),
        num_tokens=num_tokens,
        flops=None if num_tokens is None else num_tokens * flops_per_token,
        flops_per_token=flops_per_token,
        memory_bytes=_memory_bytes(recipe),
    )


def _mean_mask_rate(data: DataConfig) -> float:
    return data.mask_rate if data.final_mask_rate is None else (data.mask_rate + data.final_mask_rate) / 2


def _memory_bytes(recipe: Recipe) -> float:
    model, num_tokens = recipe.model, recipe.train.micro_batch_tokens
    value_bytes = 4 if recipe.train.precision == "fp32" else 2
    optimizer = 16 * count_parameters(model)  # bytes of weights, gradients and two moments in fp32
    # Activations saved per layer: input, q, k, v, context and norm inputs; gate, up, their product and dropout.
    per_layer = 9 * model.hidden_size + 4 * model.intermediate_size
    activations = value_bytes * num_tokens * per_layer * model.num_hidden_layers
    # Logits of one chunk of tokens, and the fp32 gradient of the decoder before it is added to that of the embeddings.
    loss = _LOSS_CHUNK_BYTES + 4 * model.vocab_size * model.hidden_size
    if model.architecture == "bert":
        # Includes fp32 logits and their gradient.
        loss = (value_bytes + 8) * num_tokens * recipe.data.mask_rate * model.vocab_size
    return optimizer + activations + loss
