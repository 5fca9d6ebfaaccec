"""A run's checkpoint to a Hugging Face folder, and a model to the layout of the published checkpoints."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from mosaicbert.config import Recipe
from mosaicbert.model.build import build_model
from mosaicbert.model.published import to_published

_PREFIX = "model."  # what Composer's state puts before the names of our weights


def load_checkpoint(recipe: Recipe, checkpoint: Path) -> tuple[PreTrainedModel, int]:
    """The model of a Composer checkpoint, on the CPU, in evaluation mode; and the step it was written at.

    Raises:
        RuntimeError: the checkpoint's weights are not those of the recipe's model.
    """
    # The file holds Composer's state with its own classes; it was written by this machine's user.
    content: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=False)
    weights = {name.removeprefix(_PREFIX): tensor for name, tensor in content["state"]["model"].items()}
    model = build_model(recipe.model)
    model.load_state_dict(weights)
    return model.eval(), content["state"]["timestamp"]["Timestamp"]["batch"]


def save_published(model: PreTrainedModel, folder: Path) -> None:
    """Writes pytorch_model.bin and config.json in the layout of the published MosaicBERT checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(to_published(model.state_dict()), folder / "pytorch_model.bin")
    config = {name: value for name, value in model.config.to_dict().items() if name != "auto_map"} | {
        "model_type": "bert",
        "architectures": [type(model).__name__.replace("MosaicBert", "Bert")],
        "alibi_starting_size": 512,
        "attention_probs_dropout_prob": 0.0,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")
