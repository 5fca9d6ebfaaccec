from pathlib import Path

import pytest

from mosaicbert.commands.show import show
from mosaicbert.config.load import load_recipe
from mosaicbert.estimate import ACCELERATORS, count_parameters, estimate

_RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
_PAPERS = _RECIPES[0].with_name("mosaicbert-base-c4.yaml")


def _shown(console, recipe, *overrides):
    """What is said of a recipe, by the name of the line; the table is under the empty name."""
    loaded = load_recipe(recipe, overrides)
    show(loaded, console)
    lines = console.export_text().splitlines()
    named = {name: text.strip() for name, found, text in (line.partition(":") for line in lines[:9]) if found}
    return loaded, named | {"": "\n".join(lines[9:])}


@pytest.mark.parametrize("path", _RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_shown_with_its_model_data_length_and_cost(path, console):
    recipe, said = _shown(console, path)
    names = ["run", "model", "data", "samples", "tokenizer", "training", "optimizer", "work", "memory", ""]
    assert list(said) == names
    assert str(recipe.run_folder) in said["run"]
    assert f"{recipe.model.architecture}, {count_parameters(recipe.model):,} parameters" in said["model"]
    assert all(source.path in said["data"] for source in recipe.data.sources.values())
    assert str(recipe.store_folder) in said["data"]
    assert f"up to {recipe.data.max_seq_len} tokens" in said["samples"]
    assert said["training"].startswith(recipe.train.duration)
    assert f"{recipe.train.global_batch_samples:,}" in said["training"]
    assert said["optimizer"].startswith(f"{recipe.optimizer.name}, learning rate up to {recipe.optimizer.peak_lr:g} ")
    assert f"micro-batches of {recipe.train.micro_batch_tokens:,} tokens" in said["memory"]
    assert all(device.name in said[""] for device in ACCELERATORS)


@pytest.mark.parametrize(
    "duration", ["70_000 steps", "286_720_000 samples", "36_700_160_000 tokens", "36.70016e9 tokens"]
)
def test_the_same_length_is_the_same_run_in_steps_samples_and_tokens(duration, console):
    _, said = _shown(console, _PAPERS, f"train.duration={duration}")
    assert said["training"] == (
        f"{duration}: 286,720,000 samples in 70,000 steps of 4,096; at most 36,700,160,000 tokens"
    )
    assert said["work"] == "737 MFLOP per token, 2.7e+19 FLOP in all"
    assert "device-hours" in said[""]


@pytest.mark.parametrize("duration, dollars", [("36s", "0.03"), ("30min", "1.25"), ("1.5h", "3.75")])
def test_a_time_is_shown_with_its_price_and_the_tokens_that_each_device_trains_in_it(duration, dollars, console):
    recipe, said = _shown(console, _PAPERS, f"train.duration={duration}")
    assert said["training"] == f"{duration}, in steps of 4,096 samples"
    assert said["work"] == "737 MFLOP per token"
    (a100,) = (line for line in said[""].splitlines() if "A100" in line)
    tokens = recipe.train.length.amount * 312e12 * 0.3 / estimate(recipe, None).flops_per_token
    assert a100.replace("│", " ").split() == ["A100", f"{tokens:,.2g}", f"{8 * tokens:,.2g}", "2.50", dollars]
    assert "device-hours" not in said[""]


def test_the_price_of_a_length_in_tokens_is_that_of_its_device_hours(console):
    recipe, said = _shown(console, _PAPERS)
    hours = estimate(recipe, 70_000 * 4096).flops / (312e12 * 0.3) / 3600
    (a100,) = (line for line in said[""].splitlines() if "A100" in line)
    wanted = ["A100", f"{hours:,.2f}", f"{hours / 8:,.2f}", "2.50", f"{2.5 * hours:,.2f}"]
    assert a100.replace("│", " ").split() == wanted


@pytest.mark.parametrize("duration", ["1000 steps", "30min"])
def test_a_growing_batch_is_shown_from_its_first_size_to_its_last(duration, console):
    growing = ["train.initial_batch_samples=256", "train.batch_warmup_tokens=1_000_000_000"]
    _, said = _shown(console, _PAPERS, f"train.duration={duration}", *growing)
    assert "steps of 256, growing to 4,096 over 1,000,000,000 tokens" in said["training"]


@pytest.mark.parametrize(
    "overrides, said_of_it",
    [
        ([], "decoupled_adamw, learning rate up to 0.0005 in 6% of the run, then linearly to 1e-05"),
        (
            ["optimizer.name=muon", "optimizer.schedule=warmup_stable_decay", "optimizer.decay_fraction=0.2"],
            "muon, learning rate up to 0.0005 in 6% of the run, down to 1e-05 in the last 20%",
        ),
    ],
    ids=["linear", "warmup-stable-decay"],
)
def test_the_course_of_the_learning_rate_is_told(overrides, said_of_it, console):
    assert _shown(console, _PAPERS, *overrides)[1]["optimizer"] == said_of_it


def test_a_mask_rate_that_falls_is_told(console):
    _, said = _shown(console, _PAPERS, "data.final_mask_rate=0.15")
    assert "30% changing to 15% of them masked" in said["samples"]
