"""MosaicBertConfig: the Hugging Face configuration of an encoder."""

import dataclasses
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from mosaicbert.config.model import ModelConfig


class MosaicBertConfig(PreTrainedConfig):
    """Shape of a MosaicBERT. Its fields and their defaults are those of `mosaicbert.config.ModelConfig`.

    Args:
        **kwargs: fields of ModelConfig (all but `architecture` and `attention_probs_dropout_prob`),
            `classifier_dropout` (None: hidden_dropout_prob), and what every Hugging Face configuration takes.

    Raises:
        ConfigError: a field's value is impossible.
    """

    model_type = "mosaicbert"

    def __init__(self, **kwargs: Any) -> None:
        fields = {name: kwargs.pop(name, default) for name, default in _DEFAULTS.items()}
        ModelConfig(**fields)
        for name, value in fields.items():
            setattr(self, name, value)
        self.classifier_dropout: float | None = kwargs.pop("classifier_dropout", None)
        kwargs.setdefault("tie_word_embeddings", True)
        super().__init__(**kwargs)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads a config.json, and that of a published MosaicBERT as well, which calls itself a `bert`."""
        config_dict, unused_kwargs = super().get_config_dict(*args, **kwargs)
        if config_dict.get("model_type") == "bert" and "alibi_starting_size" in config_dict:
            supported = {*_DEFAULTS, "classifier_dropout", "id2label", "label2id", "problem_type"}
            config_dict = {name: value for name, value in config_dict.items() if name in supported}
            config_dict["model_type"] = cls.model_type
        return config_dict, unused_kwargs


_DEFAULTS: dict[str, Any] = {
    field.name: field.default
    for field in dataclasses.fields(ModelConfig)
    if field.name not in ("architecture", "attention_probs_dropout_prob")
}
