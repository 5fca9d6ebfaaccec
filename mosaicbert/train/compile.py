"""torch.compile and CUDA graphs of the training step."""

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mosaicbert.config import ConfigError, ModelConfig, TrainConfig
from mosaicbert.model.factory import describe_attention
from mosaicbert.model.modeling import MosaicBertForMaskedLM

# A run has two to seven shapes, more while its batch grows. A layer has two graphs for each, since the last layer keeps
# only some tokens. PyTorch's limit of 8 would silently leave later shapes uncompiled.
_MAX_NUM_GRAPHS = 128

CUDA_GRAPH_ATTENTION = "triton"  # other attention backends read the lengths on the host


@dataclass(frozen=True)
class CompileChoice:
    """Parts of a training step that are compiled.

    Attributes:
        is_enabled: Whether torch.compile is used.
        uses_cuda_graphs: Whether the step is launched as CUDA graphs.
        reason: Reason in words.
    """

    is_enabled: bool
    uses_cuda_graphs: bool
    reason: str

    def __str__(self) -> str:
        state = f"{'on' if self.is_enabled else 'off'}{', CUDA graphs' * self.uses_cuda_graphs}"
        return f"torch.compile: {state} ({self.reason})"

    @property
    def attention_backend(self) -> str:
        """Return the attention backend that the choice requires, or "auto"."""
        return CUDA_GRAPH_ATTENTION if self.uses_cuda_graphs else "auto"


def choose_compilation(model: ModelConfig, train: TrainConfig, precision: torch.dtype) -> CompileChoice:
    """Choose whether the step is compiled, and whether it is launched as CUDA graphs.

    Args:
        model: Model section of the recipe.
        train: Train section of the recipe.
        precision: dtype of matrix products.

    Raises:
        ConfigError: If the recipe enables compilation for padded batches, or CUDA graphs without what they require.
    """
    if train.cuda_graphs:
        _check_cuda_graphs(model, train, precision)
    if model.architecture == "bert":
        if train.compile:
            raise ConfigError(
                "`train.compile=true` is not supported with `model.architecture=bert`, whose padded micro-batches all "
                "have different shapes. Set `train.compile=false`."
            )
        return CompileChoice(False, False, "padded shapes differ from step to step")
    if train.compile is not None:
        return CompileChoice(train.compile, train.cuda_graphs, "set in the recipe")
    if not torch.cuda.is_available():
        return CompileChoice(False, False, "not faster on a CPU")
    if importlib.util.find_spec("triton") is None:
        return CompileChoice(False, False, "triton is not installed")
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return CompileChoice(False, False, "triton requires a C compiler, and none is installed")
    return CompileChoice(True, False, "default on a GPU")


def _check_cuda_graphs(model: ModelConfig, train: TrainConfig, precision: torch.dtype) -> None:
    if not train.compile:
        raise ConfigError(
            "`train.cuda_graphs=true` is not supported without `train.compile=true`. Set `train.compile=true`, "
            "since the compiler creates the graphs."
        )
    if train.sharding != "ddp":
        raise ConfigError(
            f"`train.cuda_graphs=true` is not supported with `train.sharding={train.sharding}`, which moves weights in "
            "memory. Set `train.sharding=ddp`."
        )
    if not torch.cuda.is_available():
        raise ConfigError("`train.cuda_graphs` must be false without a GPU, got true. Set `train.cuda_graphs=false`.")
    try:
        describe_attention(model, "cuda", precision, CUDA_GRAPH_ATTENTION)
    except RuntimeError as error:
        raise ConfigError(
            f"`train.cuda_graphs` must be false if the attention backend {CUDA_GRAPH_ATTENTION!r} does not work, got "
            f"true ({str(error).rstrip('.')}). Set `train.cuda_graphs=false`."
        ) from error


def compile_model(model: PreTrainedModel, *, cuda_graphs: bool = False) -> None:
    """Compile the modules of a pretraining step, in place. Names of weights do not change.

    Each layer is compiled separately, so that one compilation serves all of them: a run has several shapes, and a whole
    encoder would be compiled for each. With CUDA graphs everything from the embeddings to the loss is one graph, so
    that a micro-batch needs few launches. This is faster for models whose kernels finish before the next is launched.

    Embeddings are not compiled: the compiler accumulates their gradients with atomics, in a different order each time.

    Args:
        model: MosaicBERT for masked language modeling.
        cuda_graphs: Whether to launch as CUDA graphs. Gradients must then be zeroed in place, to keep their memory.
    """
    assert isinstance(model, MosaicBertForMaskedLM)
    torch._dynamo.config.recompile_limit = _MAX_NUM_GRAPHS
    if cuda_graphs:
        model.set_attn_implementation(CUDA_GRAPH_ATTENTION)
        setattr(model, "embedded_loss", _with_cuda_graphs(model.embedded_loss))  # noqa: B010
        return
    for module in (*model.model.layers, model.head):
        module.compile(dynamic=False)


def _with_cuda_graphs(eager: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    compiled: Any = torch.compile(eager, dynamic=False, fullgraph=True, mode="reduce-overhead")
    is_warm = False

    def embedded_loss(embedded: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        nonlocal is_warm
        if not is_warm:
            # The first call of a kernel compiles and autotunes it, which is not possible while a graph is captured.
            devices = [embedded.device] if embedded.is_cuda else []
            with torch.random.fork_rng(devices), torch.enable_grad():
                probe_input = embedded.detach().requires_grad_()
                torch.autograd.grad(eager(probe_input, *rest)[0], probe_input)
            is_warm = True
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(embedded, *rest)

    return embedded_loss
