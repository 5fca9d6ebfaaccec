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
    """Two weighted sources, the second of them small."""
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


def test_it_says_what_a_run_would_make_of_the_store(recipe, console):
    _, said = _check(recipe, console)
    assert "checksums, sizes and ids are correct" in said
    assert "steps:            40 for 640 samples; one epoch over all samples is " in said
    assert "source few:       41 documents; skipped: 1 duplicate (2.44%), 1 too short (2.44%)" in said
    assert "unigram entropy" in said


def test_a_source_that_is_passed_over_many_times_is_warned_of(recipe, console):
    _, said = _check(recipe, console)
    assert "warning: source few is repeated for" in said
    assert "warning: source many is repeated for" not in said


@pytest.mark.parametrize(
    "duration, said_of_steps", [("40 steps", "40 for 40 steps"), ("2min", "not known before the run, for 2min")]
)
def test_the_steps_are_said_of_a_length_in_any_unit(recipe, console, duration, said_of_steps):
    _, said = _check(replace(recipe, train=replace(recipe.train, duration=duration)), console)
    assert f"steps:            {said_of_steps}; one epoch" in said


def test_a_length_in_tokens_is_converted_by_the_tokens_of_this_store(recipe, console):
    recipe = replace(recipe, train=replace(recipe.train, duration="20_000 tokens"))
    plan = plan_of(recipe)
    _, said = _check(recipe, console)
    assert f"steps:            {plan.num_steps:,} for 20_000 tokens" in said
    assert plan.num_steps > 20_000 / 32 / 16, "the samples of this store are not full"


def test_the_picture_is_drawn_in_the_run_folder_and_not_empty(recipe, console):
    path, _ = _check(recipe, console)
    assert path == recipe.run_folder / "check.png"
    with Image.open(path) as image:
        assert len(set(image.convert("L").resize((100, 40)).getdata())) > 10


def test_a_flipped_byte_is_refused_with_the_name_of_its_shard(recipe, console):
    shard = next((recipe.store_folder / "validation").glob("data-*.arrow"))
    good = shard.read_bytes()
    content = bytearray(good)
    content[-100] ^= 4
    shard.write_bytes(content)
    try:
        with pytest.raises(ConfigError, match=rf"{shard.name}: its SHA-256 is not the recorded one") as caught:
            check(recipe, console)
    finally:
        shard.write_bytes(good)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_does_not_fit_the_text_is_warned_of(tmp_path, console):
    russian = [f"Это предложение номер {number} на другом языке, без смысла." for number in range(40)]
    english = tiny_recipe(tmp_path, write_jsonl(tmp_path / "en.jsonl", texts()))
    prepare(english)
    tokenizer = {"source": str(english.store_folder / "tokenizer.json")}
    recipe = tiny_recipe(tmp_path, write_jsonl(tmp_path / "ru.jsonl", russian), tokenizer=tokenizer, run_name="russian")
    prepare(recipe)
    assert "the tokenizer does not fit the text" in _check(recipe, console)[1]
