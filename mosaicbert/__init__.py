"""Pretraining of BERT encoders: from a YAML recipe to a Hugging Face folder and a GLUE score.

Importing this package registers its model classes with Hugging Face's Auto classes. torch and transformers are imported
on the first use of a model class.
"""

from typing import TYPE_CHECKING, Any

from mosaicbert.registration import import_models, register_auto_classes

if TYPE_CHECKING:
    from mosaicbert.model.configuration import MosaicBertConfig
    from mosaicbert.model.modeling import (
        MosaicBertForMaskedLM,
        MosaicBertForMultipleChoice,
        MosaicBertForQuestionAnswering,
        MosaicBertForSequenceClassification,
        MosaicBertForTokenClassification,
        MosaicBertModel,
    )

__version__ = "0.1.0"
__all__ = [
    "MosaicBertConfig",
    "MosaicBertForMaskedLM",
    "MosaicBertForMultipleChoice",
    "MosaicBertForQuestionAnswering",
    "MosaicBertForSequenceClassification",
    "MosaicBertForTokenClassification",
    "MosaicBertModel",
]

register_auto_classes()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mosaicbert' has no attribute {name!r}")
    return getattr(import_models(), name)
