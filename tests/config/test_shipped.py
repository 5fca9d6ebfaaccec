from pathlib import Path

import pytest

from mosaicbert.config import ConfigError
from mosaicbert.config.shipped import find_recipe, list_shipped_recipes

_RECIPES = Path(__file__).parents[2] / "recipes"
_SHIPPED = list_shipped_recipes()


def test_every_recipe_of_the_repository_is_listed_once_with_a_unique_name():
    assert {recipe.path for recipe in _SHIPPED} == set(_RECIPES.rglob("*.yaml"))
    assert len({recipe.name for recipe in _SHIPPED}) == len(_SHIPPED)
    assert {recipe.command for recipe in _SHIPPED} == {"pretrain", "finetune", "glue", "pareto"}


@pytest.mark.parametrize("recipe", _SHIPPED, ids=lambda recipe: recipe.name)
def test_a_recipe_is_found_by_name_with_or_without_its_folder(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(recipe.name, recipe.command) == recipe.path
    name_with_folder = recipe.path.relative_to(_RECIPES).with_suffix("")
    assert find_recipe(str(name_with_folder), recipe.command) == recipe.path


@pytest.mark.parametrize("recipe", _SHIPPED, ids=lambda recipe: recipe.name)
def test_the_first_line_of_a_recipe_is_one_sentence(recipe):
    first = recipe.path.read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# {recipe.summary}"
    assert recipe.summary.endswith(".") and ". " not in recipe.summary
    assert recipe.summary[0].isupper()


def test_a_file_takes_precedence_over_a_shipped_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart").write_text("run_name: local\n")
    assert find_recipe("quickstart", "pretrain") == Path("quickstart")


@pytest.mark.parametrize("name", ["quikstart", "recipes/quickstart.yml", "quickstart.yaml"])
def test_an_unknown_name_is_an_error_with_the_nearest_name_of_the_command(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as raised:
        find_recipe(name, "pretrain")
    assert str(raised.value) == (
        f"RECIPE must be a YAML file or the name of a shipped recipe, got {name!r}. "
        "The nearest name is 'quickstart'; run `mosaicbert recipes` for all names."
    )


def test_a_recipe_of_a_different_command_is_rejected():
    with pytest.raises(ConfigError, match="must be a recipe of `mosaicbert pretrain`, got 'glue', a recipe of `mosaic"):
        find_recipe("glue", "pretrain")
