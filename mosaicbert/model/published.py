"""Mapping between the weight names of published MosaicBERT checkpoints and those of this package."""

import re
from collections.abc import Mapping

from torch import Tensor

# (published name, name in this package) without .weight and .bias; {} is the layer index. A published classifier is the
# second linear layer of a classification head of this package, whose first one is the pooler.
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
)
_POOLER_PAIRS = (("bert.pooler.dense", "model.pooler.dense"),)
_CLASSIFIER_POOLER = ("classifier.dense", "model.pooler.dense")  # of a classifier that is loaded as an encoder
_CLASSIFICATION_HEAD_PAIRS = (("bert.pooler.dense", "classifier.dense"), ("classifier", "classifier.out_proj"))
_UNCHANGED = ("classifier", "qa_outputs")  # of models without a classification head


def published_key_mapping(has_classification_head: bool) -> dict[str, str]:
    """Return the names of weights to replace on loading, in the format of `from_pretrained(key_mapping=...)`.

    These are the published names, and the pooler of a classifier if the model has no classification head.

    Args:
        has_classification_head: Whether `classifier` of the model is a ClassificationHead.

    Returns:
        Replacement by regular expression, for the names that differ.
    """
    head_pairs = _CLASSIFICATION_HEAD_PAIRS if has_classification_head else (*_POOLER_PAIRS, _CLASSIFIER_POOLER)
    # The last part of the name distinguishes a published classifier from the modules of a classification head.
    return {
        "^" + re.escape(published).replace(r"\{\}", r"(\d+)") + r"\.(?=weight$|bias$)": internal.replace("{}", r"\1")
        + "."
        for published, internal in _NAME_PAIRS + head_pairs
    }


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a model to the published layout.

    Args:
        state: state_dict of a MosaicBERT model with a head, tensors by name.

    Returns:
        The same tensors by published name, in the same order.

    Raises:
        KeyError: If a weight has no published name.
    """
    pairs = [*_NAME_PAIRS, *_POOLER_PAIRS, *_CLASSIFICATION_HEAD_PAIRS, *((name, name) for name in _UNCHANGED)]
    published_names = {internal: published for published, internal in pairs}
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        module_name, _, parameter_name = name.rpartition(".")
        layer_match = re.search(r"\.(\d+)\.", module_name)
        pattern = module_name if layer_match is None else module_name.replace(layer_match.group(0), ".{}.", 1)
        published = published_names[pattern]
        renamed[f"{published if layer_match is None else published.format(layer_match.group(1))}.{parameter_name}"] = (
            tensor
        )
    return renamed
