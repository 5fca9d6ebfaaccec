"""torch.compile of the layers: equal losses, and no recompilation after every shape has occurred."""

from functools import partialmethod

import pytest
import torch
from torch._dynamo.utils import counters

from mosaicbert.config import ConfigError, ModelConfig
from mosaicbert.model.factory import build_model
from mosaicbert.train.compile import choose_compilation, compile_model
from tests.data.corpus import write_jsonl
from tests.recipes import TINY_MODEL, tiny_recipe
from tests.train.running import StopRequest, losses_of, train_here

_STEPS = 12


class _GraphCounter(StopRequest):
    """Stop request that records at every step the number of compiled graphs."""

    def __init__(self):
        self.num_graphs = []
        super().__init__()

    @property
    def signal(self):
        self.num_graphs.append(counters["stats"]["unique_graphs"])

    @signal.setter
    def signal(self, _):
        pass


def _recipe(folder, source, **train):
    # Micro-batches of two sizes, since a step's 512 tokens do not divide by 400.
    return tiny_recipe(
        folder,
        source,
        data={"max_seq_len": 16},
        train={"duration": f"{_STEPS} steps", "micro_batch_tokens": 1024} | train,
        checkpoint={"interval": "1000 steps"},
        eval={"interval": "4 steps", "fill_mask": []},
    )


def _choose(recipe):
    return choose_compilation(recipe.model, recipe.train, torch.float32)


@pytest.fixture(scope="module")
def long_documents(tmp_path_factory):
    texts = [f"{number} words and more words than fit into sixteen tokens of any sample " * 2 for number in range(200)]
    return write_jsonl(tmp_path_factory.mktemp("long") / "docs.jsonl", texts)


@pytest.fixture(params=["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def backend(request, monkeypatch):
    """Compiler of the traced graphs. Without the C++ compiler, PyTorch computes them operation by operation."""
    compile_in_place = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(compile_in_place, backend=request.param))
    torch.compiler.reset()


@pytest.mark.usefixtures("backend")
def test_compiled_training_has_the_losses_of_eager_training_and_does_not_recompile(long_documents, tmp_path):
    eager_run = train_here(_recipe(tmp_path / "eager", long_documents, compile=False))
    recipe = _recipe(tmp_path / "compiled", long_documents, compile=True)
    counter = _GraphCounter()
    before = counters["stats"]["unique_graphs"]
    run = train_here(recipe, stop=counter)
    assert counter.num_graphs[0] > before
    # All shapes of training occur in the first steps, and those of evaluation in the first evaluation.
    assert set(counter.num_graphs[5:]) == {counter.num_graphs[-1]}
    assert losses_of(run) == pytest.approx(losses_of(eager_run), rel=1e-5)


def test_a_head_that_the_default_compiler_has_compiled_computes_the_same():
    torch.manual_seed(0)
    model = build_model(ModelConfig(**TINY_MODEL))
    hidden = torch.randn(24, TINY_MODEL["hidden_size"])
    with torch.no_grad():
        expected = model.head(hidden)
        compile_model(model)
        torch.testing.assert_close(model.head(hidden), expected)


def test_compilation_is_off_on_a_cpu_unless_enabled_in_the_recipe(tmp_path):
    recipe = tiny_recipe(tmp_path, tmp_path / "docs.jsonl")
    if not torch.cuda.is_available():
        assert not _choose(recipe).is_enabled
    choice = _choose(_recipe(tmp_path, tmp_path / "docs.jsonl", compile=True))
    assert str(choice) == "torch.compile: on (set in the recipe)"


def test_the_padded_baseline_is_not_compiled(tmp_path):
    def recipe(is_compiled):
        model = TINY_MODEL | {"architecture": "bert"}
        return tiny_recipe(tmp_path, tmp_path / "docs.jsonl", model=model, train={"compile": is_compiled})

    assert str(_choose(recipe(None))) == "torch.compile: off (padded shapes differ from step to step)"
    with pytest.raises(ConfigError, match=r"`train\.compile=true` is not supported with `model\.architecture=bert`"):
        _choose(recipe(True))


_UNSUPPORTED_GRAPHS = {
    "uncompiled": ({"compile": None}, "without `train.compile=true`"),
    "sharded": ({"compile": True, "sharding": "fsdp"}, "Set `train.sharding=ddp`"),
}


@pytest.mark.parametrize("train, message", _UNSUPPORTED_GRAPHS.values(), ids=_UNSUPPORTED_GRAPHS)
def test_the_error_for_unsupported_cuda_graphs_names_the_missing_setting(train, message, tmp_path):
    with pytest.raises(ConfigError, match=f"train.cuda_graphs.*{message}"):
        _choose(tiny_recipe(tmp_path, tmp_path / "docs.jsonl", train=train | {"cuda_graphs": True}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="requires a machine without a GPU")
def test_cuda_graphs_without_a_gpu_are_an_error(tmp_path):
    recipe = tiny_recipe(tmp_path, tmp_path / "docs.jsonl", train={"compile": True, "cuda_graphs": True})
    with pytest.raises(ConfigError, match="must be false without a GPU"):
        _choose(recipe)
