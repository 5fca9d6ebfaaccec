"""torch.compile of the training step, for shapes that stand still."""

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mosaicbert.config import ConfigError, Recipe
from mosaicbert.model.factory import describe_attention
from mosaicbert.model.modeling import MosaicBertForMaskedLM
from mosaicbert.train.device import choose_precision

# A run has two to seven shapes, more while its batch grows; a layer has two graphs for each, since the last one keeps
# only some tokens. PyTorch's limit of 8 would leave later shapes uncompiled, without a word.
_MOST_GRAPHS = 128

GRAPHED_ATTENTION = "triton"  # the rung that a CUDA graph can hold: the others look at the documents' lengths


@dataclass(frozen=True)
class Compilation:
    """What of a training step is compiled, and why."""

    is_on: bool
    has_graphs: bool
    reason: str

    def __str__(self) -> str:
        return f"torch.compile: {'on' if self.is_on else 'off'}{', CUDA graphs' * self.has_graphs} ({self.reason})"


def choose_compilation(recipe: Recipe) -> Compilation:
    """Whether the step is compiled, and whether it is launched as CUDA graphs.

    Raises:
        ConfigError: it is asked for where shapes never stand still; CUDA graphs are asked for without what they need.
    """
    asked, has_graphs = recipe.train.compile, recipe.train.cuda_graphs
    if has_graphs:
        _require_graphs_possible(recipe)
    if recipe.model.architecture == "bert":
        if asked:
            raise ConfigError(
                "train.compile=true with model.architecture=bert: it pads every micro-batch to another length, "
                "and would be compiled for each; set train.compile=false."
            )
        return Compilation(False, False, "padded lengths never stand still")
    if asked is not None:
        return Compilation(asked, has_graphs, "as the recipe says")
    if not torch.cuda.is_available():
        return Compilation(False, False, "a processor gains nothing by it")
    if importlib.util.find_spec("triton") is None:
        return Compilation(False, False, "triton is not installed")
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return Compilation(False, False, "there is no C compiler, which triton needs")
    return Compilation(True, False, "the default on a GPU")


def _require_graphs_possible(recipe: Recipe) -> None:
    if not recipe.train.compile:
        raise ConfigError("train.cuda_graphs=true without train.compile=true: the compiler makes the graphs; set both.")
    if recipe.train.sharding != "ddp":
        raise ConfigError(
            f"train.cuda_graphs=true with train.sharding={recipe.train.sharding}: weights that come and go have no "
            "place that a graph could remember; set train.sharding=ddp."
        )
    if not torch.cuda.is_available():
        raise ConfigError("train.cuda_graphs=true, but there is no GPU here; set train.cuda_graphs=false.")
    try:
        describe_attention(recipe.model, "cuda", choose_precision(recipe.train.precision)[0], GRAPHED_ATTENTION)
    except RuntimeError as error:
        raise ConfigError(f"train.cuda_graphs=true: {error}; set train.cuda_graphs=false.") from error


def compile_model(model: PreTrainedModel, *, graphs: bool = False) -> None:
    """Compiles what a step of pretraining runs, in place; names of weights stay as they are.

    By itself each layer, so that one compilation serves all of them: a run has several shapes, and a whole encoder
    would be compiled for each. As CUDA graphs everything from the embeddings to the loss, so that a micro-batch is few
    launches: it pays where a model is so small that its kernels end before the next ones are launched.

    Embeddings stay as they are: the compiler adds up their gradients with atomics, in another order each time.

    Args:
        model: ours.
        graphs: launch as CUDA graphs. Gradients must then stay where they are: zero them, do not drop them.
    """
    assert isinstance(model, MosaicBertForMaskedLM)
    torch._dynamo.config.recompile_limit = _MOST_GRAPHS
    if graphs:
        model.set_attn_implementation(GRAPHED_ATTENTION)
        setattr(model, "embedded_loss", _graphed(model.embedded_loss))  # noqa: B010
        return
    for module in (*model.model.layers, model.head):
        module.compile(dynamic=False)


def _graphed(plain: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    compiled: Any = torch.compile(plain, dynamic=False, fullgraph=True, mode="reduce-overhead")
    is_warm = False

    def embedded_loss(embedded: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        nonlocal is_warm
        if not is_warm:
            # Kernels are compiled and tried out in their first call, which a graph that is being captured forbids.
            devices = [embedded.device] if embedded.is_cuda else []
            with torch.random.fork_rng(devices), torch.enable_grad():
                toy = embedded.detach().requires_grad_()
                torch.autograd.grad(plain(toy, *rest)[0], toy)
            is_warm = True
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(embedded, *rest)

    return embedded_loss
