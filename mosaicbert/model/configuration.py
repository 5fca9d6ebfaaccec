"""Hugging Face configuration of the encoder."""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from mosaicbert.config.model import ModelConfig

PUBLISHED_KEY = "alibi_starting_size"  # of the configuration of a published MosaicBERT, whose model_type is `bert`


class MosaicBertConfig(PreTrainedConfig):
    """Hugging Face configuration of a MosaicBERT, with the fields and defaults of `mosaicbert.config.ModelConfig`.

    Args:
        **kwargs: Fields of ModelConfig other than `architecture` and `attention_probs_dropout_prob`;
            `classifier_dropout`, a probability, or None for hidden_dropout_prob; and the arguments of PreTrainedConfig.

    Raises:
        ConfigError: If the value of a field is invalid.
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

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save config.json and the code of the model, so that the folder loads with `trust_remote_code=True`.

        Hugging Face's saving of models calls it.

        Args:
            save_directory: Path of the folder.
            *args: Positional arguments of PreTrainedConfig.save_pretrained.
            **kwargs: Keyword arguments of PreTrainedConfig.save_pretrained.
        """
        # A configuration that was loaded with trust_remote_code is saved with its code by Hugging Face.
        if __name__.startswith("mosaicbert."):
            remote_code: Any = importlib.import_module("mosaicbert.model.remote_code")
            self.auto_map = dict(remote_code.AUTO_MAP)
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            remote_code.write_remote_code(Path(save_directory))
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a config.json, and convert that of a published MosaicBERT, whose model_type is `bert`.

        Args:
            *args: Positional arguments of PreTrainedConfig.get_config_dict, a path or a Hub name first.
            **kwargs: Keyword arguments of PreTrainedConfig.get_config_dict.

        Returns:
            The configuration with model_type `mosaicbert`, and the unused keyword arguments.
        """
        config_dict, unused_kwargs = super().get_config_dict(*args, **kwargs)
        if config_dict.get("model_type") == "bert" and PUBLISHED_KEY in config_dict:
            supported = {*_DEFAULTS, "classifier_dropout", "id2label", "label2id", "problem_type"}
            config_dict = {name: value for name, value in config_dict.items() if name in supported}
            config_dict["model_type"] = cls.model_type
        return config_dict, unused_kwargs

    @classmethod
    def is_published(cls, name: Any, **kwargs: Any) -> bool:
        """Return whether a folder or a model on the Hub is a published MosaicBERT.

        Args:
            name: Path or Hub name.
            **kwargs: Keyword arguments of PreTrainedConfig.get_config_dict.
        """
        config_dict, _ = super().get_config_dict(name, **kwargs)
        return PUBLISHED_KEY in config_dict


_DEFAULTS: dict[str, Any] = {
    field.name: field.default
    for field in dataclasses.fields(ModelConfig)
    if field.name not in ("architecture", "attention_probs_dropout_prob")
}
