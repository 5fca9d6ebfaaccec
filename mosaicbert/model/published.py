"""Mapping between the weight names of published MosaicBERT checkpoints and those of this package."""

import re
from collections.abc import Mapping

from torch import Tensor

# (published name, name in this package) without .weight and .bias; {} is the layer index.
_NAME_PAIRS = (
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
    """Return the mapping from published names in the format of `from_pretrained(key_mapping=...)`.

    Returns:
        Replacement by regular expression, for the names that differ.
    """
    return {
        "^" + re.escape(published).replace(r"\{\}", r"(\d+)") + r"\.": internal.replace("{}", r"\1") + "."
        for published, internal in _NAME_PAIRS
        if published != internal
    }


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a model to the published layout.

    Args:
        state: state_dict of a MosaicBERT model, tensors by name.

    Returns:
        The same tensors by published name, in the same order.

    Raises:
        KeyError: If a weight has no published name.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        module_name, _, parameter_name = name.rpartition(".")
        layer_match = re.search(r"\.(\d+)\.", module_name)
        pattern = module_name if layer_match is None else module_name.replace(layer_match.group(0), ".{}.", 1)
        published = {internal: published_name for published_name, internal in _NAME_PAIRS}[pattern]
        renamed[f"{published if layer_match is None else published.format(layer_match.group(1))}.{parameter_name}"] = (
            tensor
        )
    return renamed
