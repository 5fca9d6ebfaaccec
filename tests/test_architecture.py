"""Holds the house's rules: who imports whom, where each library lives, and that every knob is read."""

import ast
import dataclasses
from pathlib import Path
from typing import get_args

import pytest

from mosaicbert.config import Recipe
from mosaicbert.config.finetune import FinetuneRecipe
from mosaicbert.config.glue import GlueRecipe
from mosaicbert.config.load import load_recipe
from mosaicbert.config.pareto import ParetoRecipe

_PACKAGE = Path(__file__).parents[1] / "mosaicbert"
_RECIPES = _PACKAGE.parent / "recipes"
_SCHEMAS = {"": Recipe, "finetune": FinetuneRecipe, "glue": GlueRecipe, "pareto": ParetoRecipe}  # by folder of recipes

# docs/design.md has the same table, with the reasons.
_MAY_IMPORT = {
    "config": set(),
    "batch": set(),
    "lock": {"config"},
    "checkpoint": set(),
    "report": {"config"},
    "ops": set(),
    "accounting": {"config"},
    "data": {"config", "batch", "lock"},
    "model": {"config", "batch", "ops"},
    "export": {"config", "accounting", "model"},
    "train": {"config", "accounting", "batch", "lock", "checkpoint", "report", "data", "model", "export"},
    "scores": {"config"},
    "finetune": {
        "config",
        "accounting",
        "lock",
        "checkpoint",
        "report",
        "scores",
        "data",
        "model",
        "export",
        "train",
    },
    "pareto": {"config", "report", "scores"},
    "show": {"config", "accounting"},
    "check": {"config", "data"},
    "registration": {"model"},
    "cli": {"config", "show", "check", "data", "train", "finetune", "pareto", "report"},
    "__init__": {"registration", "model"},
    "__main__": {"cli"},
}
_HOMES = {
    "composer": {"train", "finetune"},
    "omegaconf": {"config"},
    "datasets": {"data", "finetune"},
    "matplotlib": {"report", "check", "pareto", "finetune"},
    "scipy": {"scores", "finetune"},
    "sklearn": {"finetune"},
    "flash_attn": {"ops"},
    "triton": {"ops"},
}


def _part(path: Path) -> str:
    return path.relative_to(_PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {
                f"{node.module}.{alias.name}" if node.module == "mosaicbert" else node.module for alias in node.names
            }
    return found


_FILES = sorted(_PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", _FILES, ids=lambda path: str(path.relative_to(_PACKAGE)))
def test_imports_go_one_way(path):
    ours = {name.split(".")[1] for name in _imports(path) if name.startswith("mosaicbert.")}
    assert ours - {_part(path)} <= _MAY_IMPORT[_part(path)]


@pytest.mark.parametrize("library", _HOMES)
def test_a_library_is_imported_only_at_home(library):
    users = {_part(path) for path in _FILES if any(name.split(".")[0] == library for name in _imports(path))}
    assert users <= _HOMES[library]


def test_configuration_imports_no_torch():
    files = [path for path in _FILES if _part(path) in ("config", "accounting", "show")]
    assert not [path for path in files for name in _imports(path) if name.split(".")[0] in ("torch", "transformers")]


def _fields(schema) -> set[str]:
    found = set()
    for field in dataclasses.fields(schema):
        inner = [kind for kind in (field.type, *get_args(field.type)) if dataclasses.is_dataclass(kind)]
        found |= _fields(inner[0]) if inner else {field.name}
    return found


def test_every_key_of_a_recipe_is_read_outside_the_configuration():
    read = {
        node.attr
        for path in _FILES
        if _part(path) != "config"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    by_properties = {"runs_folder"}
    with_all_others = {"attention_probs_dropout_prob"}  # the fields go to Hugging Face's BertConfig as they are
    every = set[str]().union(*(_fields(schema) for schema in _SCHEMAS.values()))
    assert every - read == by_properties | with_all_others


def _keys(tree) -> set[str]:
    return set(tree).union(*(_keys(value) for value in tree.values() if isinstance(value, dict)))


@pytest.mark.parametrize("folder", _SCHEMAS)
def test_every_key_of_a_recipe_is_used_by_a_recipe(folder):
    from omegaconf import OmegaConf

    paths = list((_PACKAGE.parent / "recipes" / folder).glob("*.yaml"))
    written = set[str]().union(*(_keys(OmegaConf.to_container(OmegaConf.load(path))) for path in paths))
    of_one_machine = {"slice"}
    # The shape that every BERT shares, see ModelConfig.
    constants = {"type_vocab_size", "layer_norm_eps", "initializer_range", "pad_token_id"}
    assert _fields(_SCHEMAS[folder]) - written == (constants | of_one_machine if not folder else set())


_ELSEWHERE = [(folder, path) for folder in _SCHEMAS if folder for path in sorted((_RECIPES / folder).glob("*.yaml"))]


@pytest.mark.parametrize("folder, path", _ELSEWHERE, ids=lambda part: getattr(part, "stem", part))
def test_recipes_of_other_commands_load_and_are_named_after_their_files(folder, path):
    assert load_recipe(path, [], _SCHEMAS[folder]).run_name == path.stem
