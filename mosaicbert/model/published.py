"""The names that published MosaicBERT checkpoints give their weights, and ours: one table, read in both directions."""

import re
from collections.abc import Mapping

from torch import Tensor

# (published, ours), without .weight and .bias; {} stands for the layer's number.
_NAMES = (
    ("bert.embeddings.word_embeddings", "model.embeddings.word_embeddings"),
    ("bert.embeddings.token_type_embeddings", "model.embeddings.token_type_embeddings"),
    ("bert.embeddings.LayerNorm", "model.embeddings.norm"),
    ("bert.encoder.layer.{}.attention.self.Wqkv", "model.layers.{}.attention.qkv"),
    ("bert.encoder.layer.{}.attention.output.dense", "model.layers.{}.attention.out"),
    ("bert.encoder.layer.{}.attention.output.LayerNorm", "model.layers.{}.attention_norm"),
    ("bert.encoder.layer.{}.mlp.gated_layers", "model.layers.{}.mlp.gate_up"),
    ("bert.encoder.layer.{}.mlp.wo", "model.layers.{}.mlp.down"),
    ("bert.encoder.layer.{}.mlp.layernorm", "model.layers.{}.mlp_norm"),
    ("cls.predictions.transform.dense", "head.dense"),
    ("cls.predictions.transform.LayerNorm", "head.norm"),
    ("cls.predictions.decoder", "decoder"),
    ("bert.pooler.dense", "pooler.dense"),
    ("classifier", "classifier"),
)


def published_key_mapping() -> dict[str, str]:
    """The table as `from_pretrained(key_mapping=...)` takes it: regular expression -> replacement."""
    return {
        "^" + re.escape(published).replace(r"\{\}", r"(\d+)") + r"\.": ours.replace("{}", r"\1") + "."
        for published, ours in _NAMES
        if published != ours
    }


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames our weights to the published layout.

    Raises:
        KeyError: a weight has no published name.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        number = re.search(r"\.(\d+)\.", stem)
        pattern = stem if number is None else stem.replace(number.group(0), ".{}.", 1)
        published = {ours: theirs for theirs, ours in _NAMES}[pattern]
        renamed[f"{published if number is None else published.format(number.group(1))}.{kind}"] = tensor
    return renamed
