"""Holds the house's rules: who imports whom, where each library lives, and that every knob is read."""

import ast
import dataclasses
from collections import defaultdict
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

# Parts of the package, from left to right: a part imports only parts of levels to its left. docs/design.md shows the
# same levels, with the reasons. A part is the longest of these names that a module's path starts with.
_LEVELS = (
    ("config",),
    ("batch", "ops", "console", "filesystem", "processes"),
    ("environment", "estimate", "train_plan", "model"),
    ("data", "registration"),  # data itself: the token store and the tokenizer
    ("data.prepare", "data.loading"),
    ("export", "report", "scores"),
    ("train",),
    ("finetune", "pareto"),
    ("commands",),
    ("cli",),
    ("__init__", "__main__"),
)
_LEVEL_OF = {part: level for level, parts in enumerate(_LEVELS) for part in parts}
# Where each library may be imported: parts, or single modules.
_HOMES = {
    "composer": {"train.composer"},
    "omegaconf": {"config"},
    "datasets": {"data", "data.prepare"},
    "matplotlib": {"report", "pareto", "finetune.task.plots"},
    "scipy": {"scores", "finetune"},
    "sklearn": {"finetune"},
    "flash_attn": {"ops"},
    "triton": {"ops"},
}


def _module(path: Path) -> str:
    return ".".join(path.relative_to(_PACKAGE).with_suffix("").parts)


def _part(module: str) -> str:
    names = module.split(".")
    return next(part for end in range(len(names), 0, -1) if (part := ".".join(names[:end])) in _LEVEL_OF)


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


@pytest.mark.parametrize("path", _FILES, ids=_module)
def test_imports_go_one_way(path):
    part = _part(_module(path))
    ours = {_part(name.removeprefix("mosaicbert.")) for name in _imports(path) if name.startswith("mosaicbert.")}
    assert all(_LEVEL_OF[other] < _LEVEL_OF[part] for other in ours - {part})


@pytest.mark.parametrize("library", _HOMES)
def test_a_library_is_imported_only_at_home(library):
    users = {_module(path) for path in _FILES if any(name.split(".")[0] == library for name in _imports(path))}
    assert {user for user in users if not {user, _part(user)} & _HOMES[library]} == set()


def test_what_show_needs_imports_no_torch():
    files = [path for path in _FILES if _part(_module(path)) in ("config", "estimate", "train_plan")]
    files.append(_PACKAGE / "commands" / "show.py")
    assert not [path for path in files for name in _imports(path) if name.split(".")[0] in ("torch", "transformers")]


def test_no_class_or_function_name_occurs_twice():
    homes = defaultdict(set)
    for path in _FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                homes[node.name].add(_module(path))
    # A kernel file has the names of the operation that it computes: `ops.geglu.geglu` calls `ops.geglu_kernels.geglu`.
    homes = {name: {module.removesuffix("_kernels") for module in modules} for name, modules in homes.items()}
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}


@pytest.mark.parametrize("folder", sorted({path.parent for path in _FILES}), ids=lambda path: path.name)
def test_a_folder_holds_about_ten_files(folder):
    limit = 15 if folder.name == "train" else 12
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= limit


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
        if _part(_module(path)) != "config"
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
    of_one_machine = {"partition"}
    # The shape that every BERT shares, see ModelConfig.
    constants = {"type_vocab_size", "layer_norm_eps", "initializer_range", "pad_token_id"}
    assert _fields(_SCHEMAS[folder]) - written == (constants | of_one_machine if not folder else set())


_ELSEWHERE = [(folder, path) for folder in _SCHEMAS if folder for path in sorted((_RECIPES / folder).glob("*.yaml"))]


@pytest.mark.parametrize("folder, path", _ELSEWHERE, ids=lambda part: getattr(part, "stem", part))
def test_recipes_of_other_commands_load_and_are_named_after_their_files(folder, path):
    assert load_recipe(path, [], _SCHEMAS[folder]).run_name == path.stem
