"""What a model and a run cost: parameters, FLOPs, memory, hours. Arithmetic on recipes; imports no torch."""

from dataclasses import dataclass

from mosaicbert.config import DataConfig, ModelConfig, Recipe
from mosaicbert.train_plan import TrainPlan

BERT_MAX_POSITIONS = 512
_LOSS_CHUNK_BYTES = 256 * 2**20  # see ops.cross_entropy


@dataclass(frozen=True)
class Accelerator:
    """A device's dense bf16 peak, from NVIDIA's data sheets, and what an hour of it is taken to cost."""

    name: str
    peak_flops: float  # FLOP/s
    dollars_per_hour: float


# The A100's price is the one behind the paper's cost estimate; the others are round numbers to compare with.
ACCELERATORS = (
    Accelerator("A100", 312e12, 2.50),
    Accelerator("H100", 989e12, 3.00),
    Accelerator("H200", 989e12, 4.00),
)


def count_parameters(model: ModelConfig) -> int:
    """Exact number of parameters with the masked-language-modelling head; the decoder shares the embeddings'."""
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
    """FLOPs of a forward and a backward pass: two per multiply-add, the backward costs twice the forward.

    The head counts at masked tokens only; the last layer's feed-forward counts in full, although training skips it at
    tokens that are not masked. For MosaicBERT-Base at 128 tokens, 30% masked, that gives 737 MFLOP per token.

    Args:
        model: the encoder's shape.
        tokens: real tokens, without padding.
        squared_lengths: sum over documents of the length squared: what attention costs.
        masked: tokens to predict.
    """
    width = model.hidden_size
    matrices_per_mlp = 3 if model.architecture == "mosaicbert" else 2
    per_layer = 4 * width * width + matrices_per_mlp * width * model.intermediate_size
    head = width * width + model.vocab_size * width
    multiply_adds = model.num_hidden_layers * (per_layer * tokens + 2 * width * squared_lengths) + head * masked
    return 6.0 * multiply_adds


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run would take. FLOPs and tokens assume that every sample is full.

    Attributes:
        parameters: of the model.
        steps: None if the run's duration is a time, as are samples, tokens and flops.
        samples: trained.
        tokens: trained.
        flops: of the whole run.
        flops_per_token: of a forward and a backward pass.
        memory_bytes: per device.
    """

    parameters: int
    steps: int | None
    samples: int | None
    tokens: int | None
    flops: float | None
    flops_per_token: float
    memory_bytes: float


def estimate(recipe: Recipe) -> Estimate:
    """Works out what `recipe` would take; starts nothing."""
    length = recipe.data.max_seq_len
    flops_per_token = training_flops(
        recipe.model, tokens=1, squared_lengths=length, masked=_mean_mask_rate(recipe.data)
    )
    plan = TrainPlan(recipe, tokens_per_sample=length)
    samples = None if plan.num_steps is None else plan.first_sample(plan.num_steps)
    tokens = None if samples is None else samples * length
    return Estimate(
        parameters=count_parameters(recipe.model),
        steps=plan.num_steps,
        samples=samples,
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
