"""Command line: each command parses its arguments, calls one function and prints the result.

Commands import their work inside their functions, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mosaicbert

_OVERRIDES = "Overrides are written section.key=value, e.g. train.precision=fp32. Every key of a recipe can be given."

# Modules of mosaicbert[train] that the base installation does not have.
_TRAIN_EXTRA_MODULES = frozenset(
    {
        "composer",
        "datasets",
        "matplotlib",
        "omegaconf",
        "pyarrow",
        "rich",
        "scipy",
        "sklearn",
        "torchmetrics",
        "xxhash",
        "yaml",
        "zstandard",
    }
)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code.

    Args:
        arguments: Arguments of the command line. The default is those of this process.

    Raises:
        SystemExit: Always, with code 2 and one line on stderr if a recipe, data or files of the user are invalid, and
            with code 1 and one line if a run cannot continue.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parsed = _parse(arguments)
    # Defaults of libraries, set before their import. Variables that the user has set are kept.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # transformers reports every file that it opens
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads are three times slower on busy cores
    from mosaicbert.config import ConfigError, TrainingFault

    try:
        sys.exit(_COMMANDS[parsed.command].run(parsed, arguments))
    except ConfigError as error:
        print(f"mosaicbert {parsed.command}: {error}", file=sys.stderr)
        sys.exit(2)
    except TrainingFault as fault:
        print(f"mosaicbert {parsed.command}: {fault}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if error.name not in _TRAIN_EXTRA_MODULES:
            raise
        print(
            f"mosaicbert {parsed.command}: {error.name} is not installed. Run `pip install 'mosaicbert[train]'`.",
            file=sys.stderr,
        )
        sys.exit(2)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = _parser()
    parsed, trailing = parser.parse_known_args(arguments)
    # argparse requires positional arguments to be contiguous; overrides may also follow an option.
    unknown = [word for word in trailing if word.startswith("-") or "=" not in word]
    if unknown or (trailing and "overrides" not in parsed):
        parser.error(f"unrecognized arguments: {' '.join(unknown or trailing)}")
    if trailing:
        parsed.overrides += trailing
    return parsed


def load(parsed: argparse.Namespace) -> Any:
    """Load the recipe of a command, a file or a shipped recipe, with the schema of the command."""
    from mosaicbert.config import Recipe
    from mosaicbert.config.finetune import FinetuneRecipe
    from mosaicbert.config.glue import GlueRecipe
    from mosaicbert.config.load import load_recipe
    from mosaicbert.config.pareto import ParetoRecipe
    from mosaicbert.config.shipped import find_recipe

    schemas: dict[str, type[Any]] = {"finetune": FinetuneRecipe, "glue": GlueRecipe, "pareto": ParetoRecipe}
    path = find_recipe(parsed.recipe, parsed.command if parsed.command in schemas else "pretrain")
    return load_recipe(path, parsed.overrides, schemas.get(parsed.command, Recipe))


def _recipes(_parsed: argparse.Namespace, _arguments: list[str]) -> int:
    from mosaicbert.commands.recipes import describe_recipes

    print(describe_recipes())
    return 0


def _finetune(parsed: argparse.Namespace, _arguments: list[str]) -> int:
    recipe = load(parsed)
    from rich.console import Console

    from mosaicbert.finetune.task.command import finetune

    finetune(recipe, Console())
    return 0


def _glue(parsed: argparse.Namespace, _arguments: list[str]) -> int:
    recipe = load(parsed)
    from rich.console import Console

    from mosaicbert.finetune.glue.command import glue

    return glue(recipe, Console())


def _show(parsed: argparse.Namespace, _arguments: list[str]) -> int:
    from rich.console import Console

    from mosaicbert.commands.show import show

    show(load(parsed), Console())
    return 0


def _pareto(parsed: argparse.Namespace, _arguments: list[str]) -> int:
    recipe = load(parsed)
    from rich.console import Console

    from mosaicbert.pareto.command import pareto
    from mosaicbert.pareto.compare import compare

    if parsed.compare:
        first, second = parsed.compare
        compare(recipe, first, second, Console())
    else:
        pareto(recipe, Console())
    return 0


def _prepare(parsed: argparse.Namespace, _arguments: list[str]) -> int:
    from rich.console import Console

    from mosaicbert.data.prepare.pipeline import prepare_and_report

    prepare_and_report(load(parsed), Console())
    return 0


def _check(parsed: argparse.Namespace, _arguments: list[str]) -> int:
    from rich.console import Console

    from mosaicbert.commands.check import check

    check(load(parsed), Console())
    return 0


def _pretrain(parsed: argparse.Namespace, arguments: list[str]) -> int:
    recipe = load(parsed)
    from rich.console import Console

    from mosaicbert.train.launch import launch

    _hide_file_progress()
    return launch(recipe, arguments, Console())


def _export(parsed: argparse.Namespace, _arguments: list[str]) -> int:
    recipe = load(parsed)
    from mosaicbert.train.results import export_latest

    _hide_file_progress()
    print(export_latest(recipe).hugging_face)
    return 0


def _report(parsed: argparse.Namespace, _arguments: list[str]) -> int:
    from mosaicbert.report.command import report

    print(*report(parsed.runs, parsed.output or parsed.runs[0]), sep="\n")
    return 0


def _hide_file_progress() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()  # transformers shows one for every file that it reads or writes


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _OVERRIDES
    recipe = "YAML file, or name of a shipped recipe, e.g. quickstart (see `mosaicbert recipes`)"
    parser.add_argument("recipe", metavar="RECIPE", help=recipe)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="override of a value of the recipe")


def _add_pareto(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    compared = "test whether the scores of A are better than those of B instead; each is a run folder or FOLDER@STEP"
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help=compared)


def _add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run folder, e.g. runs/quickstart")
    output = "folder of report.png and report.html (default: folder of the first run)"
    parser.add_argument("--output", metavar="FOLDER", type=Path, help=output)


def _add_nothing(_parser: argparse.ArgumentParser) -> None:
    pass


class _Command(NamedTuple):
    """Command of the command line.

    Attributes:
        purpose: Imperative phrase for `--help`.
        run: Function that runs the command and returns the exit code.
        add_arguments: Function that adds the arguments to the command's parser.
    """

    purpose: str
    run: Callable[[argparse.Namespace, list[str]], int]
    add_arguments: Callable[[argparse.ArgumentParser], None] = _add_recipe


_COMMANDS = {
    "recipes": _Command("List the shipped recipes", _recipes, _add_nothing),
    "show": _Command("Print parameters, tokens, FLOPs, memory, time and cost of a recipe; start nothing", _show),
    "prepare": _Command("Tokenize the text of a recipe into its token store", _prepare),
    "check": _Command("Read the whole token store and check that it fits the recipe", _check),
    "pretrain": _Command("Train a recipe to its end, or resume it, and export the model", _pretrain),
    "finetune": _Command("Fine-tune a pretrained encoder on your own labeled texts", _finetune),
    "glue": _Command("Fine-tune a model or the checkpoints of a run on GLUE, and score them", _glue),
    "export": _Command("Write the newest checkpoint of a recipe as a Hugging Face folder", _export),
    "pareto": _Command("Plot scores against training time and cost, or compare two checkpoints", _pareto, _add_pareto),
    "report": _Command("Plot the curves of runs, finished or not, as a PNG and an HTML page", _report, _add_runs),
}


def _parser() -> argparse.ArgumentParser:
    description = "Pretrain a BERT: from a YAML recipe to a Hugging Face folder."
    parser = argparse.ArgumentParser(prog="mosaicbert", description=description)
    parser.add_argument("--version", action="version", version=f"mosaicbert {mosaicbert.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in _COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=command.purpose, description=f"{command.purpose}."))
    return parser
