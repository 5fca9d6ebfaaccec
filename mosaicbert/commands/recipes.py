"""Command `recipes`: list of the shipped recipes."""

import textwrap
from itertools import groupby

from mosaicbert.config.shipped import list_shipped_recipes

_WIDTH = 80
_NAME_WIDTH = 25


def describe_recipes() -> str:
    """Return the name and the summary of every shipped recipe, grouped by command, in at most 80 columns."""
    sections: list[str] = []
    for command, recipes in groupby(list_shipped_recipes(), key=lambda recipe: recipe.command):
        lines = [
            textwrap.fill(
                recipe.summary,
                _WIDTH,
                initial_indent=f"  {recipe.name:{_NAME_WIDTH}}",
                subsequent_indent=" " * (2 + _NAME_WIDTH),
                break_on_hyphens=False,
            )
            for recipe in recipes
        ]
        sections.append("\n".join([f"mosaicbert {command} RECIPE", *lines]))
    return "\n\n".join(sections)
