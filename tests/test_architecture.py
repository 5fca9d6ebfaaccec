"""Tests of the package structure: import levels, library locations, unique names, and used recipe keys."""

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

# Import levels: a part of the package imports only from lower levels, which come first. docs/design.md explains them.
# The part of a module is the longest of these names that is a prefix of the module name.
_LEVELS = (
    ("config", "modes"),
    ("batch", "ops", "console", "filesystem", "processes"),
    ("environment", "estimate", "train_plan", "model"),
    ("data", "registration"),  # modules of data itself: the token store and the tokenizer
    ("data.prepare", "data.loading"),
    ("export", "report", "scores"),
    ("train",),
    ("scoring",),
    ("blimp", "finetune", "pareto"),
    ("bench",),
    ("commands",),
    ("cli",),
    ("__init__", "__main__"),
)
_LEVEL_OF = {part: level for level, parts in enumerate(_LEVELS) for part in parts}
# Parts or modules that may import each library.
_ALLOWED_IMPORTERS = {
    "composer": {"train.composer"},
    "omegaconf": {"config"},
    "datasets": {"data", "data.prepare"},
    "matplotlib": {"report", "pareto", "finetune.task.plots", "bench.plots"},
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
    imports = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            imports |= {
                f"{node.module}.{alias.name}" if node.module == "mosaicbert" else node.module for alias in node.names
            }
    return imports


_FILES = sorted(_PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", _FILES, ids=_module)
def test_a_module_imports_only_from_lower_levels(path):
    part = _part(_module(path))
    imported_parts = {
        _part(name.removeprefix("mosaicbert.")) for name in _imports(path) if name.startswith("mosaicbert.")
    }
    assert all(_LEVEL_OF[other] < _LEVEL_OF[part] for other in imported_parts - {part})


@pytest.mark.parametrize("library", _ALLOWED_IMPORTERS)
def test_a_library_is_imported_only_by_its_allowed_importers(library):
    importers = {_module(path) for path in _FILES if any(name.split(".")[0] == library for name in _imports(path))}
    allowed = _ALLOWED_IMPORTERS[library]
    assert {module for module in importers if not {module, _part(module)} & allowed} == set()


def test_the_show_command_does_not_import_torch():
    files = [path for path in _FILES if _part(_module(path)) in ("config", "estimate", "train_plan")]
    files.append(_PACKAGE / "commands" / "show.py")
    assert not [path for path in files for name in _imports(path) if name.split(".")[0] in ("torch", "transformers")]


def test_public_class_and_function_names_are_unique():
    definitions = defaultdict(set)
    for path in _FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                definitions[node.name].add(_module(path))
    # A kernel module uses the names of its operation: `ops.geglu.geglu` calls `ops.geglu_kernels.geglu`.
    definitions = {
        name: {module.removesuffix("_kernels") for module in modules} for name, modules in definitions.items()
    }
    assert {name: modules for name, modules in definitions.items() if len(modules) > 1} == {}


@pytest.mark.parametrize("folder", sorted({path.parent for path in _FILES}), ids=lambda path: path.name)
def test_a_folder_has_a_limited_number_of_modules(folder):
    max_modules = 15 if folder.name == "train" else 12
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= max_modules


def _fields(schema) -> set[str]:
    names = set()
    for field in dataclasses.fields(schema):
        sections = [kind for kind in (field.type, *get_args(field.type)) if dataclasses.is_dataclass(kind)]
        names |= _fields(sections[0]) if sections else {field.name}
    return names


def test_every_recipe_key_is_read_outside_the_config_package():
    attributes = {
        node.attr
        for path in _FILES
        if _part(_module(path)) != "config"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    read_by_properties = {"runs_folder"}
    read_by_vars = {"attention_probs_dropout_prob"}  # all fields are passed to Hugging Face's BertConfig
    keys = set[str]().union(*(_fields(schema) for schema in _SCHEMAS.values()))
    assert keys - attributes == read_by_properties | read_by_vars


def _keys(tree) -> set[str]:
    return set(tree).union(*(_keys(value) for value in tree.values() if isinstance(value, dict)))


@pytest.mark.parametrize("folder", _SCHEMAS)
def test_every_recipe_key_is_set_in_a_shipped_recipe(folder):
    from omegaconf import OmegaConf

    paths = list((_PACKAGE.parent / "recipes" / folder).glob("*.yaml"))
    used_keys = set[str]().union(*(_keys(OmegaConf.to_container(OmegaConf.load(path))) for path in paths))
    of_one_machine = {"partition"}
    # Constants of all BERT models, see ModelConfig.
    constants = {"type_vocab_size", "layer_norm_eps", "initializer_range", "pad_token_id"}
    assert _fields(_SCHEMAS[folder]) - used_keys == (constants | of_one_machine if not folder else set())


_OTHER_RECIPES = [
    (folder, path) for folder in _SCHEMAS if folder for path in sorted((_RECIPES / folder).glob("*.yaml"))
]


@pytest.mark.parametrize("folder, path", _OTHER_RECIPES, ids=lambda part: getattr(part, "stem", part))
def test_a_recipe_of_another_command_loads_and_is_named_after_its_file(folder, path):
    assert load_recipe(path, [], _SCHEMAS[folder]).run_name == path.stem
