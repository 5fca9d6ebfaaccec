from pathlib import Path

import pytest

from mosaicbert.config import ConfigError
from mosaicbert.config.shipped import find_recipe, list_shipped_recipes

_RECIPES = Path(__file__).parents[2] / "recipes"
_SHIPPED = list_shipped_recipes()


def test_every_recipe_of_the_repository_is_listed_once_and_its_name_is_unique():
    assert {recipe.path for recipe in _SHIPPED} == set(_RECIPES.rglob("*.yaml"))
    assert len({recipe.name for recipe in _SHIPPED}) == len(_SHIPPED)
    assert {recipe.command for recipe in _SHIPPED} == {"pretrain", "finetune", "glue", "pareto"}


@pytest.mark.parametrize("recipe", _SHIPPED, ids=lambda recipe: recipe.name)
def test_a_recipe_is_found_by_its_name_with_or_without_its_folder(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(recipe.name, recipe.command) == recipe.path
    in_folder = recipe.path.relative_to(_RECIPES).with_suffix("")
    assert find_recipe(str(in_folder), recipe.command) == recipe.path


@pytest.mark.parametrize("recipe", _SHIPPED, ids=lambda recipe: recipe.name)
def test_the_first_line_of_a_recipe_is_one_sentence(recipe):
    first = recipe.path.read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# {recipe.summary}"
    assert recipe.summary.endswith(".") and ". " not in recipe.summary
    assert recipe.summary[0].isupper()


def test_a_file_comes_before_a_shipped_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart").write_text("run_name: mine\n")
    assert find_recipe("quickstart", "pretrain") == Path("quickstart")


@pytest.mark.parametrize("given", ["quikstart", "recipes/quickstart.yml", "quickstart.yaml"])
def test_an_unknown_name_gets_the_nearest_name_of_the_command(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        find_recipe(given, "pretrain")
    assert str(error.value) == (
        f"RECIPE must be a YAML file or the name of a shipped recipe, got {given!r}. "
        "The nearest name is 'quickstart'; run `mosaicbert recipes` for all names."
    )


def test_a_recipe_of_another_command_is_rejected():
    with pytest.raises(ConfigError, match="must be a recipe of `mosaicbert pretrain`, got 'glue', a recipe of `mosaic"):
        find_recipe("glue", "pretrain")
