"""Run folder: changes of the recipe and of the token store between sessions."""

import shutil
from dataclasses import replace

import pytest

from mosaicbert.config import ConfigError
from mosaicbert.data.prepare.pipeline import prepare
from mosaicbert.train.run_folder import create_run_folder
from tests.data.corpus import texts, write_jsonl
from tests.recipes import tiny_recipe
from tests.train.running import pretrain_here


def test_the_error_for_a_folder_of_a_different_recipe_names_the_keys_that_differ(finished, console):
    recipe, run, _ = finished
    before = run.metrics.read_bytes()
    changed = replace(recipe, seed=18, model=replace(recipe.model, num_hidden_layers=3))
    with pytest.raises(
        ConfigError, match=r"`seed` \(recorded: 17, now: 18\), `model\.num_hidden_layers` \(recorded: 2, now: 3\)"
    ):
        pretrain_here(changed, console)
    assert run.metrics.read_bytes() == before


def test_a_run_cannot_be_resumed_with_a_token_store_of_different_text(source, tmp_path, console):
    recipe = tiny_recipe(tmp_path, source, data={"store": str(tmp_path / "store")})
    create_run_folder(recipe, prepare(recipe))
    shutil.rmtree(tmp_path / "store")
    other_source = write_jsonl(tmp_path / "other.jsonl", texts()[:100])
    prepare(replace(recipe, data=replace(recipe.data, sources=tiny_recipe(tmp_path, other_source).data.sources)))
    record = tmp_path / "store" / "store.json"  # edited so that the store seems to be of the same file
    record.write_text(record.read_text().replace(str(other_source), recipe.data.sources["text"].path))
    with pytest.raises(ConfigError, match=r"must be the token store that .* began with"):
        pretrain_here(recipe, console)


def test_the_token_store_may_be_moved_between_sessions(finished, console, tmp_path):
    recipe, _, _ = finished
    shutil.copytree(recipe.store_folder, tmp_path / "moved")
    pretrain_here(replace(recipe, data=replace(recipe.data, store=str(tmp_path / "moved"))), console)
    assert "this run is finished" in console.export_text()


def test_keys_that_do_not_change_the_results_may_change_between_sessions(finished, console):
    recipe, _, _ = finished
    train = replace(recipe.train, micro_batch_tokens=64)
    pretrain_here(replace(recipe, data=replace(recipe.data, num_workers=1), train=train), console)
    assert "this run is finished" in console.export_text()
