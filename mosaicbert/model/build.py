"""ModelConfig to a model with a masked-language-modelling head."""

from dataclasses import asdict
from typing import Any

from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from mosaicbert.config import ModelConfig
from mosaicbert.model.configuration import MosaicBertConfig
from mosaicbert.model.modeling import MosaicBertForMaskedLM


def build_model(model: ModelConfig) -> PreTrainedModel:
    """A freshly initialised MosaicBERT, or Hugging Face's BERT of the same shape."""
    fields: dict[str, Any] = asdict(model)
    if fields.pop("architecture") == "bert":
        return BertForMaskedLM(BertConfig(**fields))
    del fields["attention_probs_dropout_prob"]
    return MosaicBertForMaskedLM(MosaicBertConfig(**fields))
