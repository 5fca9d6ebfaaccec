"""torch.compile of the encoder's layers, for shapes that stand still."""

import importlib.util
import shutil

import torch
from transformers import PreTrainedModel

from mosaicbert.config import ConfigError, Recipe
from mosaicbert.model.modeling import MosaicBertForMaskedLM

# A run has two to seven shapes, more while its batch grows; a layer has two graphs for each, since the last one keeps
# only some tokens. PyTorch's limit of 8 would leave later shapes uncompiled, without a word.
_MOST_GRAPHS = 128


def choose_compilation(recipe: Recipe) -> tuple[bool, str]:
    """Whether the layers are compiled, and why.

    Raises:
        ConfigError: it is asked for where shapes never stand still.
    """
    asked = recipe.train.compile
    if recipe.model.architecture == "bert":
        if asked:
            raise ConfigError(
                "train.compile=true with model.architecture=bert: it pads every micro-batch to another length, "
                "and would be compiled for each; set train.compile=false."
            )
        return False, "padded lengths never stand still"
    if asked is not None:
        return asked, "as the recipe says"
    if not torch.cuda.is_available():
        return False, "a processor gains nothing by it"
    if importlib.util.find_spec("triton") is None:
        return False, "triton is not installed"
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return False, "there is no C compiler, which triton needs"
    return True, "the default on a GPU"


def compile_layers(model: PreTrainedModel) -> None:
    """Compiles each layer around its attention, which stays as it is; names of weights stay as they are, too."""
    assert isinstance(model, MosaicBertForMaskedLM)
    torch._dynamo.config.recompile_limit = _MOST_GRAPHS
    for layer in model.model.layers:
        layer.compile(dynamic=False)
