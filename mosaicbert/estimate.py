"""Parameters, FLOPs and memory of a model and of a run: arithmetic on recipes, without torch."""

from dataclasses import dataclass

from mosaicbert.config import DataConfig, ModelConfig, Recipe

BERT_MAX_POSITIONS = 512
_LOSS_CHUNK_BYTES = 256 * 2**20  # see ops.cross_entropy


@dataclass(frozen=True)
class Accelerator:
    """Dense bf16 peak of a device, from NVIDIA's data sheets, and an assumed price."""

    name: str
    peak_flops: float  # FLOP/s
    dollars_per_hour: float


# The A100's price is that of the paper's cost estimate; the others are round numbers for comparison.
ACCELERATORS = (
    Accelerator("A100", 312e12, 2.50),
    Accelerator("H100", 989e12, 3.00),
    Accelerator("H200", 989e12, 4.00),
)


def count_parameters(model: ModelConfig) -> int:
    """Return the exact number of parameters with the masked-language-modeling head, whose decoder is tied."""
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


def training_flops(model: ModelConfig, *, tokens: float, squared_lengths: float, masked: float) -> float:
    """Return the FLOPs of a forward and a backward pass: two per multiply-add, the backward costs twice the forward.

    The head counts at masked tokens only. The last layer's feed-forward counts in full, although training skips it at
    tokens that are not masked. MosaicBERT-Base at 128 tokens, 30% masked, takes 737 MFLOP per token.

    Args:
        model: Shape of the encoder.
        tokens: Number of real tokens, without padding.
        squared_lengths: Sum over documents of the squared length, to which the cost of attention is proportional.
        masked: Number of masked tokens.
    """
    width = model.hidden_size
    matrices_per_mlp = 3 if model.architecture == "mosaicbert" else 2
    per_layer = 4 * width * width + matrices_per_mlp * width * model.intermediate_size
    head = width * width + model.vocab_size * width
    multiply_adds = model.num_hidden_layers * (per_layer * tokens + 2 * width * squared_lengths) + head * masked
    return 6.0 * multiply_adds


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Cost of a run if every sample is full.

    Attributes:
        parameters: Number of parameters of the model.
        tokens: Number of tokens of the run; None for a run whose duration is a time.
        flops: FLOPs of the run; None for a run whose duration is a time.
        flops_per_token: FLOPs of a forward and a backward pass per token.
        memory_bytes: Memory per device in bytes.
    """

    parameters: int
    tokens: int | None
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
        recipe.model, tokens=1, squared_lengths=length, masked=_mean_mask_rate(recipe.data)
    )
    tokens = None if num_samples is None else num_samples * length
    return Estimate(
        parameters=count_parameters(recipe.model),
        tokens=tokens,
        flops=None if tokens is None else tokens * flops_per_token,
        flops_per_token=flops_per_token,
        memory_bytes=_memory(recipe),
    )


def _mean_mask_rate(data: DataConfig) -> float:
    return data.mask_rate if data.final_mask_rate is None else (data.mask_rate + data.final_mask_rate) / 2


def _memory(recipe: Recipe) -> float:
    model, tokens = recipe.model, recipe.train.micro_batch_tokens
    number_bytes = 4 if recipe.train.precision == "fp32" else 2
    optimizer = 16 * count_parameters(model)  # fp32: weights, gradients, two moments
    # What the backward pass needs of each layer: input, q, k, v, context, norms' inputs; gate, up, product, dropout.
    per_layer = 9 * model.hidden_size + 4 * model.intermediate_size
    activations = number_bytes * tokens * per_layer * model.num_hidden_layers
    # Logits of some tokens at a time, and the decoder's fp32 gradient before it joins the embeddings'.
    loss = _LOSS_CHUNK_BYTES + 4 * model.vocab_size * model.hidden_size
    if model.architecture == "bert":
        loss = (number_bytes + 8) * tokens * recipe.data.mask_rate * model.vocab_size  # and fp32 logits and gradient
    return optimizer + activations + loss
