"""YAML and `section.key=value` to a Recipe, and back. The only home of OmegaConf."""

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin, overload

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mosaicbert.config.errors import ConfigError
from mosaicbert.config.recipe import Recipe

_Schema = TypeVar("_Schema")


@overload
def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe: ...
@overload
def load_recipe(path: str | Path, overrides: Sequence[str], schema: type[_Schema]) -> _Schema: ...
def load_recipe(path: str | Path, overrides: Sequence[str] = (), schema: type[Any] = Recipe) -> Any:
    """Reads a recipe, applies `section.key=value` overrides and checks every key, type and value.

    Args:
        path: of the YAML file.
        overrides: in their order.
        schema: the kind of recipe: of a pretraining, of a fine-tuning, of a figure.

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
    recipe = OmegaConf.structured(schema)
    for origin, layer in ((str(path), written), ("override", asked)):
        for names, value in _known_entries(origin, _plain(layer), schema):
            nested = value
            for name in reversed(names):
                nested = {name: nested}
            try:
                recipe = OmegaConf.merge(recipe, nested)
            except OmegaConfBaseException as error:
                raise ConfigError(f"{origin}: {'.'.join(names)}={value!r}: {_one_line(error)}") from error
    try:
        return OmegaConf.to_object(recipe)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_explain(error)}") from error


def save_recipe(recipe: Any, path: Path) -> None:
    """Writes every key of `recipe`, defaults included, as YAML that `load_recipe` reads back to an equal recipe."""
    OmegaConf.save(OmegaConf.structured(recipe), path)


def recipe_differences(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """The keys in which two recipes of one kind differ, as `section.key` -> (old value, new value)."""
    before, after = _flatten(dataclasses.asdict(old)), _flatten(dataclasses.asdict(new))
    keys = [*before, *(key for key in after if key not in before)]  # a recipe may have sources that the other has not
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


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


def _known_entries(
    origin: str, tree: Mapping[Any, Any], schema: Any, above: tuple[str, ...] = (), root: Any = None
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields (names from the top down, value) of every entry, and refuses those that `schema` does not know."""
    root = schema if root is None else root
    types = {field.name: field.type for field in dataclasses.fields(schema)}
    for name, value in tree.items():
        names = (*above, str(name))
        if name not in types:
            raise ConfigError(f"{origin}: unknown key {'.'.join(names)!r}; did you mean {_nearest_key(names, root)!r}?")
        entry = _entry_type(types[name])
        if dataclasses.is_dataclass(types[name]):
            yield from _known_entries(origin, _section(origin, names, value, types[name]), types[name], names, root)
        elif entry is not None:
            for item, content in _section(origin, names, value, entry, item="NAME.").items():
                place = (*names, str(item))
                yield from _known_entries(origin, _section(origin, place, content, entry), entry, place, root)
        else:
            yield names, value


def _section(origin: str, names: tuple[str, ...], value: Any, schema: Any, item: str = "") -> Mapping[Any, Any]:
    if isinstance(value, dict):
        return cast(dict[Any, Any], value)
    place = ".".join(names)
    example = next(key for key in _known_keys(schema, names, f"{place}.{item}"))
    raise ConfigError(f"{origin}: {place}={value!r} is no section; give its keys, e.g. {example}, or leave it out.")


def _entry_type(kind: Any) -> Any:
    """The dataclass that a dict[str, dataclass] holds, or None for any other type."""
    arguments = get_args(kind)
    return arguments[1] if get_origin(kind) is dict and dataclasses.is_dataclass(arguments[1]) else None


def _nearest_key(names: tuple[str, ...], root: Any) -> str:
    known = list(_known_keys(root, names))
    return difflib.get_close_matches(".".join(names), known, n=1, cutoff=0.0)[0]


def _known_keys(schema: Any, names: tuple[str, ...], prefix: str = "") -> Iterator[str]:
    for field in dataclasses.fields(schema):
        key = f"{prefix}{field.name}"
        yield key
        if dataclasses.is_dataclass(field.type):
            yield from _known_keys(field.type, names, f"{key}.")
        elif (entry := _entry_type(field.type)) is not None:
            item = names[2] if len(names) > 2 else "NAME"
            yield from _known_keys(entry, names, f"{key}.{item}.")


def _explain(error: OmegaConfBaseException) -> str:
    key = error.full_key or error.key
    if "is missing" in str(error) or "mandatory" in str(error).lower() or "MISSING" in str(error):
        return f"key {key!r} is missing; a recipe must give it."
    return f"{key}: {_one_line(error)}" if key else _one_line(error)


def _one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error).split("full_key:")[0]).strip()
