"""Listing and lookup of the recipes shipped with the package."""

import difflib
from pathlib import Path
from typing import NamedTuple

from mosaicbert.config.errors import ConfigError


class ShippedRecipe(NamedTuple):
    """Recipe shipped with the package.

    Attributes:
        name: Unique name on the command line, the stem of the file name.
        path: Path of the YAML file.
        command: Command that runs the recipe.
        summary: First line of the file without the comment sign.
    """

    name: str
    path: Path
    command: str
    summary: str


def list_shipped_recipes() -> list[ShippedRecipe]:
    """List the shipped recipes by command and name, those of `pretrain` first."""
    folder = _recipe_folder()
    recipes: list[ShippedRecipe] = []
    for path in sorted(folder.rglob("*.yaml"), key=lambda path: (path.parent != folder, path.parent, path.stem)):
        command = "pretrain" if path.parent == folder else path.parent.name
        with path.open(encoding="utf-8") as lines:
            summary = next(lines).lstrip("#").strip()
        recipes.append(ShippedRecipe(path.stem, path, command, summary))
    return recipes


def find_recipe(recipe: str | Path, command: str) -> Path:
    """Find the YAML file of a recipe named on the command line.

    Args:
        recipe: Path of a YAML file, or name of a shipped recipe with or without its folder ("glue", "glue/glue").
        command: Command that runs the recipe: "pretrain", "finetune", "glue" or "pareto".

    Raises:
        ConfigError: If neither a file nor a recipe has this name, or if the recipe belongs to a different command.
    """
    path = Path(recipe)
    if path.is_file():
        return path
    shipped = list_shipped_recipes()
    for candidate in shipped:
        if str(recipe) not in (candidate.name, f"{candidate.path.parent.name}/{candidate.name}"):
            continue
        if candidate.command != command:
            raise ConfigError(
                f"RECIPE must be a recipe of `mosaicbert {command}`, got {candidate.name!r}, "
                f"a recipe of `mosaicbert {candidate.command}`. Run `mosaicbert recipes` for the list."
            )
        return candidate.path
    names = [candidate.name for candidate in shipped if candidate.command == command]
    nearest = difflib.get_close_matches(path.stem, names, n=1, cutoff=0.0)[0]
    raise ConfigError(
        f"RECIPE must be a YAML file or the name of a shipped recipe, got {str(recipe)!r}. "
        f"The nearest name is {nearest!r}; run `mosaicbert recipes` for all names."
    )


def _recipe_folder() -> Path:
    installed = Path(__file__).parents[1] / "recipes"
    if installed.is_dir():
        return installed
    return Path(__file__).resolve().parents[2] / "recipes"  # source tree or editable installation
