"""The shape of an encoder: every field and every default, once, for recipes and for Hugging Face configurations."""

from dataclasses import dataclass
from typing import Literal

from mosaicbert.config.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the encoder, in Hugging Face's words. The defaults are MosaicBERT-Base (arXiv:2312.17482).

    Raises:
        ConfigError: a size is not positive, heads do not divide the width, a dropout is no probability, or the padding
            token is none of the vocabulary.
    """

    architecture: Literal["mosaicbert", "bert"] = "mosaicbert"  # bert: Hugging Face's own, the baseline of the paper
    vocab_size: int = 30528  # 30,522 WordPiece entries, rounded up to a multiple of 64
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    type_vocab_size: int = 2
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.0  # only bert has any: the fast attention kernels have none
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        sizes = (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "type_vocab_size",
        )
        for name in sizes:
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}={getattr(self, name)} is not a size; give a whole number above zero.")
        if self.hidden_size % self.num_attention_heads:
            divisors = [heads for heads in range(1, self.hidden_size + 1) if self.hidden_size % heads == 0]
            nearest = min(divisors, key=lambda heads: abs(heads - self.num_attention_heads))
            raise ConfigError(
                f"model.hidden_size={self.hidden_size} is not a multiple of "
                f"model.num_attention_heads={self.num_attention_heads}; heads share the width equally, "
                f"e.g. model.num_attention_heads={nearest}."
            )
        for name in ("layer_norm_eps", "initializer_range"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"model.{name}={getattr(self, name)} is too small; give a number above zero.")
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ConfigError(
                f"model.pad_token_id={self.pad_token_id} is no token of model.vocab_size={self.vocab_size}; "
                "give an id below that size."
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"model.{name}={getattr(self, name)} is no probability; give a number in [0, 1).")
        if self.architecture == "mosaicbert" and self.attention_probs_dropout_prob:
            raise ConfigError(
                f"model.attention_probs_dropout_prob={self.attention_probs_dropout_prob} does nothing in a mosaicbert: "
                "its attention kernels have no dropout; set it to 0.0."
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads
