"""YAML and `section.key=value` to a Recipe, and back. The only home of OmegaConf."""

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mosaicbert.config.errors import ConfigError
from mosaicbert.config.recipe import Recipe


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe, applies `section.key=value` overrides and checks every key, type and value.

    Raises:
        ConfigError: the file is missing or no YAML mapping, a key is unknown or missing, or a value is refused.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such recipe; give the path of a YAML file, e.g. recipes/quickstart.yaml.")
    try:
        written = OmegaConf.load(path)
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: not YAML: {_one_line(error)}") from error
    if not isinstance(written, DictConfig):
        raise ConfigError(f"{path}: holds {type(written).__name__}; a recipe is a mapping of sections.")
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"{override!r} is no override; write section.key=value.")
    try:
        asked = OmegaConf.from_dotlist(list(overrides))
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"overrides {list(overrides)}: {_one_line(error)}") from error
    recipe = OmegaConf.structured(Recipe)
    for origin, layer in ((str(path), written), ("override", asked)):
        for key, value in _known_entries(origin, _plain(layer)):
            section, _, name = key.rpartition(".")
            try:
                recipe = OmegaConf.merge(recipe, {section: {name: value}} if section else {name: value})
            except OmegaConfBaseException as error:
                raise ConfigError(f"{origin}: {key}={value!r}: {_one_line(error)}") from error
    try:
        return cast(Recipe, OmegaConf.to_object(recipe))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_explain(error)}") from error


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Writes every key of `recipe`, defaults included, as YAML that `load_recipe` reads back to an equal recipe."""
    OmegaConf.save(OmegaConf.structured(recipe), path)


def recipe_differences(old: Recipe, new: Recipe) -> dict[str, tuple[Any, Any]]:
    """The keys in which two recipes differ, as `section.key` -> (old value, new value)."""
    before, after = _flatten(dataclasses.asdict(old)), _flatten(dataclasses.asdict(new))
    return {key: (before[key], after[key]) for key in before if before[key] != after[key]}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(cast(dict[str, Any], value), f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _plain(layer: Any) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(layer, resolve=False))


def _known_entries(origin: str, tree: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    known = list(_known_keys(Recipe))
    sections = {key.split(".")[0] for key in known if "." in key}
    for top, value in tree.items():
        if top not in sections:
            entries: dict[str, Any] = {str(top): value}
        elif isinstance(value, dict):
            entries = {f"{top}.{name}": entry for name, entry in cast(dict[str, Any], value).items()}
        else:
            first = next(key for key in known if key.startswith(f"{top}."))
            raise ConfigError(f"{origin}: {top}={value!r} is no section; give its keys, e.g. {first}, or leave it out.")
        for key, entry in entries.items():
            if key not in known:
                nearest = difflib.get_close_matches(key, [*known, *sorted(sections)], n=1, cutoff=0.0)[0]
                raise ConfigError(f"{origin}: unknown key {key!r}; did you mean {nearest!r}?")
            yield key, entry


def _known_keys(schema: Any, prefix: str = "") -> Iterator[str]:
    for entry in dataclasses.fields(schema):
        if dataclasses.is_dataclass(entry.type):
            yield from _known_keys(entry.type, f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}"


def _explain(error: OmegaConfBaseException) -> str:
    key = error.full_key or error.key
    if "is missing" in str(error) or "mandatory" in str(error).lower() or "MISSING" in str(error):
        return f"key {key!r} is missing; a recipe must give it."
    return f"{key}: {_one_line(error)}" if key else _one_line(error)


def _one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error).split("full_key:")[0]).strip()
