from pathlib import Path

import pytest

from mosaicbert.commands.show import show
from mosaicbert.config.load import load_recipe
from mosaicbert.estimate import ACCELERATORS, count_parameters, estimate

_RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
_PAPER_RECIPE = _RECIPES[0].with_name("mosaicbert-base-c4.yaml")


def _show(console, recipe, *overrides):
    """Return the recipe and its printed lines by name; the table has the empty name."""
    loaded = load_recipe(recipe, overrides)
    show(loaded, console)
    output = console.export_text().splitlines()
    values = {name: text.strip() for name, colon, text in (line.partition(":") for line in output[:9]) if colon}
    return loaded, values | {"": "\n".join(output[9:])}


@pytest.mark.parametrize("path", _RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_shown_with_its_model_data_duration_and_cost(path, console):
    recipe, lines = _show(console, path)
    names = ["run", "model", "data", "samples", "tokenizer", "training", "optimizer", "compute", "memory", ""]
    assert list(lines) == names
    assert str(recipe.run_folder) in lines["run"]
    assert f"{recipe.model.architecture}, {count_parameters(recipe.model):,} parameters" in lines["model"]
    assert all(source.path in lines["data"] for source in recipe.data.sources.values())
    assert str(recipe.store_folder) in lines["data"]
    assert f"up to {recipe.data.max_seq_len} tokens" in lines["samples"]
    assert lines["training"].startswith(recipe.train.duration)
    assert f"{recipe.train.global_batch_samples:,}" in lines["training"]
    assert lines["optimizer"].startswith(f"{recipe.optimizer.name}, warmup to {recipe.optimizer.peak_lr:g} ")
    assert f"micro-batches of {recipe.train.micro_batch_tokens:,} tokens" in lines["memory"]
    assert all(device.name in lines[""] for device in ACCELERATORS)


@pytest.mark.parametrize(
    "duration", ["70_000 steps", "286_720_000 samples", "36_700_160_000 tokens", "36.70016e9 tokens"]
)
def test_equal_durations_in_steps_samples_and_tokens_are_the_same_run(duration, console):
    _, lines = _show(console, _PAPER_RECIPE, f"train.duration={duration}")
    assert lines["training"] == (
        f"{duration}: 286,720,000 samples in 70,000 steps of 4,096; at most 36,700,160,000 tokens"
    )
    assert lines["compute"] == "737 MFLOPs per token, 2.7e+19 FLOPs in total"
    assert "device-hours" in lines[""]


@pytest.mark.parametrize("duration, dollars", [("36s", "0.03"), ("30min", "1.25"), ("1.5h", "3.75")])
def test_a_duration_in_time_is_shown_with_cost_and_tokens_per_device(duration, dollars, console):
    recipe, lines = _show(console, _PAPER_RECIPE, f"train.duration={duration}")
    assert lines["training"] == f"{duration}, in steps of 4,096 samples"
    assert lines["compute"] == "737 MFLOPs per token"
    (a100,) = (line for line in lines[""].splitlines() if "A100" in line)
    tokens = recipe.train.length.amount * 312e12 * 0.3 / estimate(recipe, None).flops_per_token
    assert a100.replace("│", " ").split() == ["A100", f"{tokens:,.2g}", f"{8 * tokens:,.2g}", "2.50", dollars]
    assert "device-hours" not in lines[""]


def test_the_cost_of_a_duration_in_tokens_is_that_of_its_device_hours(console):
    recipe, lines = _show(console, _PAPER_RECIPE)
    hours = estimate(recipe, 70_000 * 4096).flops / (312e12 * 0.3) / 3600
    (a100,) = (line for line in lines[""].splitlines() if "A100" in line)
    expected = ["A100", f"{hours:,.2f}", f"{hours / 8:,.2f}", "2.50", f"{2.5 * hours:,.2f}"]
    assert a100.replace("│", " ").split() == expected


@pytest.mark.parametrize("duration", ["1000 steps", "30min"])
def test_a_growing_batch_is_shown_with_its_first_and_last_size(duration, console):
    growing = ["train.initial_batch_samples=256", "train.batch_warmup_tokens=1_000_000_000"]
    _, lines = _show(console, _PAPER_RECIPE, f"train.duration={duration}", *growing)
    assert "steps of 256, growing to 4,096 over 1,000,000,000 tokens" in lines["training"]


@pytest.mark.parametrize(
    "overrides, expected",
    [
        ([], "decoupled_adamw, warmup to 0.0005 in 6% of the run, then linear decay to 1e-05"),
        (
            ["optimizer.name=muon", "optimizer.schedule=warmup_stable_decay", "optimizer.decay_fraction=0.2"],
            "muon, warmup to 0.0005 in 6% of the run, then constant, decay to 1e-05 in the last 20%",
        ),
    ],
    ids=["linear", "warmup-stable-decay"],
)
def test_the_learning_rate_schedule_is_shown(overrides, expected, console):
    assert _show(console, _PAPER_RECIPE, *overrides)[1]["optimizer"] == expected


def test_a_changing_mask_rate_is_shown(console):
    _, lines = _show(console, _PAPER_RECIPE, "data.final_mask_rate=0.15")
    assert "30% changing to 15% of them masked" in lines["samples"]
