"""torch.compile of the layers: the same numbers, and nothing is compiled again once every shape has been seen."""

import pytest
import torch
from torch._dynamo.utils import counters

from mosaicbert.config import ConfigError
from mosaicbert.train.compile import choose_compilation
from tests.data.corpus import write_jsonl
from tests.recipes import TINY_MODEL, tiny_recipe
from tests.train.running import StopRequest, losses_of, train_here

_STEPS = 12


class _CountGraphs(StopRequest):
    """Notes at every step how many graphs have been compiled."""

    def __init__(self):
        self.graphs = []
        super().__init__()

    @property
    def signal(self):
        self.graphs.append(counters["stats"]["unique_graphs"])

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


def test_compiled_training_follows_the_uncompiled_and_compiles_nothing_twice(long_documents, tmp_path):
    plain = train_here(_recipe(tmp_path / "plain", long_documents, compile=False))
    recipe = _recipe(tmp_path / "compiled", long_documents, compile=True)
    count = _CountGraphs()
    before = counters["stats"]["unique_graphs"]
    run = train_here(recipe, stop=count)
    assert count.graphs[0] > before
    # The first steps see the training's shapes, the first evaluation its own.
    assert set(count.graphs[5:]) == {count.graphs[-1]}
    assert losses_of(run) == pytest.approx(losses_of(plain), rel=1e-5)


def test_it_is_off_on_a_processor_unless_asked_for(tmp_path):
    recipe = tiny_recipe(tmp_path, tmp_path / "docs.jsonl")
    if not torch.cuda.is_available():
        assert not _choose(recipe).is_enabled
    asked = _choose(_recipe(tmp_path, tmp_path / "docs.jsonl", compile=True))
    assert str(asked) == "torch.compile: on (set in the recipe)"


def test_the_padded_baseline_is_not_compiled(tmp_path):
    def recipe(asked):
        model = TINY_MODEL | {"architecture": "bert"}
        return tiny_recipe(tmp_path, tmp_path / "docs.jsonl", model=model, train={"compile": asked})

    assert str(_choose(recipe(None))) == "torch.compile: off (padded shapes differ from step to step)"
    with pytest.raises(ConfigError, match=r"`train\.compile=true` is not supported with `model\.architecture=bert`"):
        _choose(recipe(True))


UNSUPPORTED_GRAPHS = {
    "uncompiled": ({"compile": None}, "without `train.compile=true`"),
    "sharded": ({"compile": True, "sharding": "fsdp"}, "Set `train.sharding=ddp`"),
}


@pytest.mark.parametrize("train, why", UNSUPPORTED_GRAPHS.values(), ids=UNSUPPORTED_GRAPHS)
def test_cuda_graphs_without_what_they_need_are_an_error_that_says_what(train, why, tmp_path):
    with pytest.raises(ConfigError, match=f"train.cuda_graphs.*{why}"):
        _choose(tiny_recipe(tmp_path, tmp_path / "docs.jsonl", train=train | {"cuda_graphs": True}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_cuda_graphs_without_a_gpu_are_an_error_that_says_so(tmp_path):
    recipe = tiny_recipe(tmp_path, tmp_path / "docs.jsonl", train={"compile": True, "cuda_graphs": True})
    with pytest.raises(ConfigError, match="must be false without a GPU"):
        _choose(recipe)
