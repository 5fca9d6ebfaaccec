"""Reader of run folders for reports, also of unfinished runs."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mosaicbert.config import ConfigError, Recipe
from mosaicbert.config.load import load_recipe
from mosaicbert.report.metrics import read_metrics


@dataclass(frozen=True, kw_only=True)
class Run:
    """Contents of a run folder.

    Attributes:
        label: Name of the run, or its folder if several runs of the report have the same name.
        recipe: Recipe of the run.
        training: Training lines of metrics.jsonl with increasing steps, without lines superseded after a rollback.
        evaluations: Evaluation lines of metrics.jsonl with increasing steps, without superseded lines.
        faults: Lines of faults.jsonl.
        environment: Contents of environment.json; empty if the file is missing.
        unigram_entropy: Unigram entropy of the validation split in nats per token; None if neither result.json nor
            store.json contains it.
        is_finished: True if result.json exists.
    """

    label: str
    recipe: Recipe
    training: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    faults: list[dict[str, Any]]
    environment: dict[str, Any]
    unigram_entropy: float | None
    is_finished: bool


def describe_cpu(environment: dict[str, Any]) -> str:
    """Return the CPU name and the number of used cores from the contents of environment.json."""
    num_cores: int = environment["num_cores"]
    return f"{environment['cpu']}, {num_cores} core{'' if num_cores == 1 else 's'}"


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders in the given order, without duplicates.

    Raises:
        ConfigError: If a folder is not a run folder, has no training metrics or contains an invalid file.
    """
    if not folders:
        raise ConfigError("At least one run folder must be given, got none. Name one, e.g. runs/quickstart.")
    distinct: dict[Path, Path] = {}
    for folder in folders:
        distinct.setdefault(folder.resolve(), folder)
    recipes = [_read_recipe(folder) for folder in distinct.values()]
    names = Counter(recipe.run_name for recipe in recipes)
    return [
        _read_run(folder, recipe, recipe.run_name if names[recipe.run_name] == 1 else str(folder))
        for folder, recipe in zip(distinct.values(), recipes, strict=True)
    ]


def _read_recipe(folder: Path) -> Recipe:
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise ConfigError(
            f"{folder} must be a run folder of `mosaicbert pretrain`, got no recipe.yaml in it. Name a run folder, "
            "e.g. runs/quickstart."
        )
    return load_recipe(path)


def _read_run(folder: Path, recipe: Recipe, label: str) -> Run:
    lines = _read_lines(folder / "metrics.jsonl")
    training = _drop_superseded([line for line in lines if "loss" in line])
    if not training:
        raise ConfigError(
            f"{folder / 'metrics.jsonl'} must have a training line, got none. Wait for the first step of the run."
        )
    result = _read_object(folder / "result.json")
    entropy = (_read_object(folder / "store.json") | result).get("unigram_entropy")
    return Run(
        label=label,
        recipe=recipe,
        training=training,
        evaluations=_drop_superseded([line for line in lines if "eval_loss" in line]),
        faults=_read_lines(folder / "faults.jsonl"),
        environment=_read_object(folder / "environment.json"),
        unigram_entropy=float(entropy) if isinstance(entropy, (int, float)) else None,
        is_finished=bool(result),
    )


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        lines = read_metrics(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not valid JSON Lines ({error}). Fix or delete the line.") from error
    for number, line in enumerate(lines, 1):
        if not isinstance(cast(Any, line), dict) or not isinstance(line.get("step"), int):
            raise ConfigError(
                f"{path}, line {number}, must be an object with `step`, got {line!r}. Fix or delete the line."
            )
    return lines


def _read_object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not valid JSON ({error}). Delete it; the report does not require it.") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} must be a JSON object, got {type(content).__name__}. Delete it; the report does not require it."
        )
    return cast(dict[str, Any], content)


def _drop_superseded(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    current: list[dict[str, Any]] = []
    for line in reversed(lines):
        if not current or line["step"] < current[-1]["step"]:
            current.append(line)
    return current[::-1]
