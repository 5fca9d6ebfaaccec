"""Reading run folders: what a report needs of each, also while the run goes on."""

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
    """A run folder's contents.

    Attributes:
        label: the run's name, or its folder if another run of the report has the same name.
        recipe: of the run.
        training: the training lines of metrics.jsonl, steps increasing: what a rollback took back is left out.
        evaluations: the evaluation lines, likewise.
        faults: the lines of faults.jsonl, all of them.
        environment: the contents of environment.json; empty if the folder has none.
        unigram_entropy: of the held-out text, nats per token; None if neither result.json nor store.json is there.
        finished: there is a result.json.
    """

    label: str
    recipe: Recipe
    training: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    faults: list[dict[str, Any]]
    environment: dict[str, Any]
    unigram_entropy: float | None
    finished: bool


def describe_cpu(environment: dict[str, Any]) -> str:
    """Describe the CPU of an environment.json and the number of its cores that the run used."""
    num_cores: int = environment["num_cores"]
    return f"{environment['cpu']}, {num_cores} core{'' if num_cores == 1 else 's'}"


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Reads run folders, each once, in the order given.

    Raises:
        ConfigError: a folder is no run's, has no training line yet, or holds a damaged file.
    """
    if not folders:
        raise ConfigError("no run folder is given; name one or more, e.g. runs/quickstart.")
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
            f"{folder}: no run folder, it holds no recipe.yaml; give one that `mosaicbert pretrain` made, "
            "e.g. runs/quickstart."
        )
    return load_recipe(path)


def _read_run(folder: Path, recipe: Recipe, label: str) -> Run:
    lines = _read_lines(folder / "metrics.jsonl")
    training = _without_superseded([line for line in lines if "loss" in line])
    if not training:
        raise ConfigError(f"{folder / 'metrics.jsonl'}: no training line yet; wait for the run's first step.")
    result = _read_object(folder / "result.json")
    entropy = (_read_object(folder / "store.json") | result).get("unigram_entropy")
    return Run(
        label=label,
        recipe=recipe,
        training=training,
        evaluations=_without_superseded([line for line in lines if "eval_loss" in line]),
        faults=_read_lines(folder / "faults.jsonl"),
        environment=_read_object(folder / "environment.json"),
        unigram_entropy=float(entropy) if isinstance(entropy, (int, float)) else None,
        finished=bool(result),
    )


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        lines = read_metrics(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: damaged ({error}); repair the line or take it out.") from error
    for number, line in enumerate(lines, 1):
        if not isinstance(cast(Any, line), dict) or not isinstance(line.get("step"), int):
            raise ConfigError(f"{path}: line {number} has no step; every line is an object with one: take it out.")
    return lines


def _read_object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: damaged ({error}); take it away, the report does without it.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds no JSON object; take it away, the report does without it.")
    return cast(dict[str, Any], content)


def _without_superseded(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    for line in reversed(lines):
        if not kept or line["step"] < kept[-1]["step"]:
            kept.append(line)
    return kept[::-1]
