"""Conversion of Composer checkpoints of the original MosaicBERT code to the folder of a published MosaicBERT."""

import datetime
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.torch_version import TorchVersion

from mosaicbert.config import ConfigError
from mosaicbert.model.configuration import PUBLISHED_KEY

_PREFIX = "model."  # of the weights within Composer's HuggingFaceModel
# Types of the random states, times and versions in a checkpoint, which torch.load refuses without this list. A file
# that needs other types is refused, so that reading a checkpoint never runs code of the file.
_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]  # pyright: ignore[reportIndexIssue]
_TYPES: list[Any] = [
    *(datetime.timedelta, TorchVersion, np.ndarray, np.dtype, np.dtypes.UInt32DType),
    *((_RECONSTRUCT, f"numpy.{module}.multiarray._reconstruct") for module in ("core", "_core")),
]
# Class by a part of the names of its weights. The configuration of a checkpoint may lack it.
_ARCHITECTURES = {"cls.predictions.": "BertForMaskedLM", "classifier.": "BertForSequenceClassification"}


def convert_composer_checkpoint(checkpoint: Path, folder: Path) -> None:
    """Write weights, configuration and tokenizer of a Composer checkpoint as the folder of a published MosaicBERT.

    Args:
        checkpoint: File written by Composer's Trainer for a MosaicBERT of the original code, e.g. ep0-ba70000-rank0.pt.
        folder: Existing folder for pytorch_model.bin, config.json and, if the checkpoint has them, tokenizer files.

    Raises:
        ConfigError: If the file is not such a checkpoint.
    """
    try:
        with torch.serialization.safe_globals(_TYPES):
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state"]
        weights = {name.removeprefix(_PREFIX): tensor for name, tensor in state["model"].items()}
        saved = state["integrations"]["huggingface"]
        config = dict(saved["model"]["config"]["content"])
        tokenizer_files = dict(saved.get("tokenizer") or {})
    except (KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
        raise ConfigError(
            f"{checkpoint} must be a Composer checkpoint of a Hugging Face model, got {type(error).__name__} while "
            "reading it. Use the file that Composer's Trainer saved."
        ) from error
    if PUBLISHED_KEY not in config:
        raise ConfigError(
            f"{checkpoint} must be a checkpoint of a MosaicBERT, got one whose configuration has no `{PUBLISHED_KEY}`. "
            "Load checkpoints of other models with Composer."
        )
    names = (name for part, name in _ARCHITECTURES.items() if any(key.startswith(part) for key in weights))
    config["architectures"] = [next(names, "BertModel")]
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name, file in tokenizer_files.items():
        content, extension = file["content"], file["file_extension"]
        path = folder / (name if name.endswith(extension) else name + extension)  # older names have no extension
        if extension == ".json":
            path.write_text(json.dumps(content, indent=2) + "\n")
        elif extension == ".txt":
            path.write_text("\n".join(content) + "\n")
