"""Encoder shape, shared by recipes and Hugging Face configurations."""

from dataclasses import dataclass
from typing import Annotated, Literal

from mosaicbert.config.validators import POSITIVE, at_least, must_be, not_supported, validate, within


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Encoder shape, with the field names of Hugging Face. The defaults are MosaicBERT-Base (arXiv:2312.17482).

    Raises:
        ConfigError: If a value is invalid, or hidden_size is not a multiple of num_attention_heads.
    """

    architecture: Literal["mosaicbert", "bert"] = "mosaicbert"  # bert: Hugging Face's BERT, the baseline of the paper
    vocab_size: Annotated[int, at_least(1)] = 30528  # 30,522 WordPiece entries, rounded up to a multiple of 64
    hidden_size: Annotated[int, at_least(1)] = 768
    num_hidden_layers: Annotated[int, at_least(1)] = 12
    num_attention_heads: Annotated[int, at_least(1)] = 12
    intermediate_size: Annotated[int, at_least(1)] = 3072
    type_vocab_size: Annotated[int, at_least(1)] = 2
    hidden_dropout_prob: Annotated[float, within("[0, 1)")] = 0.1
    # bert only; the attention kernels of MosaicBERT have no dropout
    attention_probs_dropout_prob: Annotated[float, within("[0, 1)")] = 0.0
    layer_norm_eps: Annotated[float, POSITIVE] = 1e-12
    initializer_range: Annotated[float, POSITIVE] = 0.02
    pad_token_id: Annotated[int, at_least(0)] = 0

    def __post_init__(self) -> None:
        validate(self, "model")
        if self.hidden_size % self.num_attention_heads:
            divisors = [heads for heads in range(1, self.hidden_size + 1) if self.hidden_size % heads == 0]
            nearest = min(divisors, key=lambda heads: abs(heads - self.num_attention_heads))
            rule = f"a multiple of `model.num_attention_heads={self.num_attention_heads}`"
            raise must_be("model.hidden_size", rule, self.hidden_size, f"Set e.g. model.num_attention_heads={nearest}.")
        if self.pad_token_id >= self.vocab_size:
            raise must_be("model.pad_token_id", f"less than `model.vocab_size={self.vocab_size}`", self.pad_token_id)
        if self.architecture == "mosaicbert" and self.attention_probs_dropout_prob:
            raise not_supported(
                f"model.attention_probs_dropout_prob={self.attention_probs_dropout_prob}",
                "model.architecture=mosaicbert",
                "Set it to 0.0: the attention kernels do not support dropout.",
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads
