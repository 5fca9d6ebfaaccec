from dataclasses import replace

import pytest
from PIL import Image

from mosaicbert.commands.check import check
from mosaicbert.config import ConfigError, SourceConfig
from mosaicbert.data.prepare.pipeline import prepare
from tests.data.corpus import texts, write_jsonl
from tests.data.loaders import plan_of
from tests.recipes import tiny_recipe

pytestmark = pytest.mark.usefixtures("forked")  # reading a store starts workers


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Create a recipe with two weighted sources, the second of which is small."""
    folder = tmp_path_factory.mktemp("check")
    documents = texts()
    recipe = tiny_recipe(folder, write_jsonl(folder / "many.jsonl", documents[40:]), data={"min_characters": 30})
    few = write_jsonl(folder / "few.jsonl", [*documents[:40], "short"])
    sources = {
        "many": replace(recipe.data.sources["text"], weight=0.5),
        "few": SourceConfig(path=str(few), weight=0.5),
    }
    recipe = replace(
        recipe, data=replace(recipe.data, sources=sources), train=replace(recipe.train, duration="640 samples")
    )
    prepare(recipe)
    return recipe


def _check(recipe, console):
    path = check(recipe, console)
    return path, console.export_text()


def test_check_prints_the_statistics_of_the_store_and_the_run(recipe, console):
    _, output = _check(recipe, console)
    assert "checksums, sizes and ids are valid" in output
    assert "steps:            40 for 640 samples; one epoch of all samples has " in output
    assert "source few:       41 documents; skipped: 1 duplicate (2.44%), 1 too short (2.44%)" in output
    assert "unigram entropy" in output


def test_a_source_with_many_epochs_causes_a_warning(recipe, console):
    _, output = _check(recipe, console)
    assert "warning: source few is repeated for" in output
    assert "warning: source many is repeated for" not in output


@pytest.mark.parametrize(
    "duration, expected", [("40 steps", "40 for 40 steps"), ("2min", "unknown before the run, for 2min")]
)
def test_the_number_of_steps_is_printed_for_any_unit_of_duration(recipe, console, duration, expected):
    _, output = _check(replace(recipe, train=replace(recipe.train, duration=duration)), console)
    assert f"steps:            {expected}; one epoch" in output


def test_a_duration_in_tokens_is_converted_by_the_mean_sample_length_of_the_store(recipe, console):
    recipe = replace(recipe, train=replace(recipe.train, duration="20_000 tokens"))
    plan = plan_of(recipe)
    _, output = _check(recipe, console)
    assert f"steps:            {plan.num_steps:,} for 20_000 tokens" in output
    assert plan.num_steps > 20_000 / 32 / 16, "the samples of this store must be shorter than the maximum"


def test_the_plot_is_written_to_the_run_folder(recipe, console):
    path, _ = _check(recipe, console)
    assert path == recipe.run_folder / "check.png"
    with Image.open(path) as image:
        assert len(set(image.convert("L").resize((100, 40)).getdata())) > 10


def test_a_flipped_bit_is_an_error_that_names_the_shard(recipe, console):
    shard = next((recipe.store_folder / "validation").glob("data-*.arrow"))
    original = shard.read_bytes()
    content = bytearray(original)
    content[-100] ^= 4
    shard.write_bytes(content)
    try:
        with pytest.raises(ConfigError, match=rf"{shard.name} does not match its SHA-256") as raised:
            check(recipe, console)
    finally:
        shard.write_bytes(original)
    assert "\n" not in str(raised.value)


def test_a_tokenizer_that_does_not_fit_the_text_causes_a_warning(tmp_path, console):
    russian = [f"Это предложение номер {number} на другом языке, без смысла." for number in range(40)]
    english = tiny_recipe(tmp_path, write_jsonl(tmp_path / "en.jsonl", texts()))
    prepare(english)
    tokenizer = {"source": str(english.store_folder / "tokenizer.json")}
    recipe = tiny_recipe(tmp_path, write_jsonl(tmp_path / "ru.jsonl", russian), tokenizer=tokenizer, run_name="russian")
    prepare(recipe)
    assert "the tokenizer does not fit the text" in _check(recipe, console)[1]
