from mosaicbert.commands.recipes import describe_recipes
from mosaicbert.config.shipped import list_shipped_recipes


def test_every_recipe_is_listed_with_its_summary_under_its_command():
    sections = {section.splitlines()[0]: " ".join(section.split()) for section in describe_recipes().split("\n\n")}
    assert list(sections) == [f"mosaicbert {name} RECIPE" for name in ("pretrain", "finetune", "glue", "pareto")]
    for recipe in list_shipped_recipes():
        assert f" {recipe.name} {recipe.summary}" in sections[f"mosaicbert {recipe.command} RECIPE"]


def test_the_list_has_at_most_80_columns():
    assert max(len(line) for line in describe_recipes().splitlines()) <= 80
