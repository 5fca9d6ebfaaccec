"""Models from checkpoint weights, and export to the layout of published MosaicBERT checkpoints."""

import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mosaicbert.config import Recipe
from mosaicbert.model.configuration import PUBLISHED_KEY
from mosaicbert.model.factory import build_model
from mosaicbert.model.published import to_published


def load_model(recipe: Recipe, weights: dict[str, Tensor]) -> PreTrainedModel:
    """Build the model of a recipe and load the weights of a checkpoint.

    Args:
        recipe: Training recipe.
        weights: state_dict of the model, tensors by name.

    Returns:
        The model on the CPU, in evaluation mode.

    Raises:
        RuntimeError: If names or shapes of the weights do not match the model of the recipe.
    """
    model = build_model(recipe.model)
    model.load_state_dict(weights)
    return model.eval()


def save_published(model: PreTrainedModel, folder: Path) -> None:
    """Write pytorch_model.bin and config.json in the layout of published MosaicBERT checkpoints.

    Args:
        model: MosaicBERT model.
        folder: Folder to write, created if it does not exist.

    Raises:
        KeyError: If a weight has no published name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "" if hasattr(model, model.base_model_prefix) else f"{model.base_model_prefix}."  # of an encoder
    weights = {prefix + name: weight for name, weight in model.state_dict().items()}
    torch.save(to_published(weights), folder / "pytorch_model.bin")
    config = {name: value for name, value in model.config.to_dict().items() if name != "auto_map"} | {
        "model_type": "bert",
        "architectures": [type(model).__name__.replace("MosaicBert", "Bert")],
        PUBLISHED_KEY: 512,
        "attention_probs_dropout_prob": 0.0,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")
