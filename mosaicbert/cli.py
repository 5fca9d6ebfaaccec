"""The commands. Each parses, calls one function, prints. Work is imported inside, so that --help is instant."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mosaicbert.config import Recipe

_EPILOG = "Overrides are written section.key=value, e.g. train.precision=fp32; every key of a recipe can be given."


# What the base installation, which only loads and runs models, leaves out.
_TRAINERS_MODULES = frozenset({"composer", "datasets", "matplotlib", "omegaconf", "pyarrow", "rich", "xxhash", "yaml"})


def main(arguments: list[str] | None = None) -> None:
    """Runs one command. Exits with 2 and one line if the user's recipe, data or files cannot work."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parsed = _parser().parse_args(arguments)
    # Defaults for the libraries below, before they are imported; whoever wants others sets the variables.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else every file that is opened is reported
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # a busy core makes threads that spin three times as slow
    from mosaicbert.config import ConfigError

    try:
        from mosaicbert.config.load import load_recipe

        recipe = load_recipe(parsed.recipe, parsed.overrides)
        sys.exit(_COMMANDS[parsed.command][1](recipe, arguments))
    except ConfigError as error:
        print(f"mosaicbert {parsed.command}: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if error.name not in _TRAINERS_MODULES:
            raise
        print(
            f"mosaicbert {parsed.command}: {error.name} is not installed; pip install 'mosaicbert[train]'.",
            file=sys.stderr,
        )
        sys.exit(2)


def _show(recipe: Recipe, _arguments: list[str]) -> int:
    from rich.console import Console

    from mosaicbert.show import show

    show(recipe, Console())
    return 0


def _prepare(recipe: Recipe, _arguments: list[str]) -> int:
    from rich.console import Console

    from mosaicbert.data.prepare import prepare_and_report

    prepare_and_report(recipe, Console())
    return 0


def _check(recipe: Recipe, _arguments: list[str]) -> int:
    from rich.console import Console

    from mosaicbert.check import check

    check(recipe, Console())
    return 0


def _pretrain(recipe: Recipe, arguments: list[str]) -> int:
    from rich.console import Console

    from mosaicbert.train.launch import launch

    _hide_file_progress()
    return launch(recipe, arguments, Console())


def _export(recipe: Recipe, _arguments: list[str]) -> int:
    from mosaicbert.train.result import export_latest

    _hide_file_progress()
    print(export_latest(recipe).hugging_face)
    return 0


def _hide_file_progress() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()  # transformers shows one for every file that it reads or writes


_COMMANDS: dict[str, tuple[str, Callable[[Recipe, list[str]], int]]] = {
    "show": ("say what a recipe would do: parameters, tokens, FLOPs, memory, time and cost", _show),
    "prepare": ("turn the recipe's text into its token store", _prepare),
    "check": ("read the whole token store and say whether it is fit for the recipe's run", _check),
    "pretrain": ("train the recipe to its end, or continue where it was cut off, and export it", _pretrain),
    "export": ("write the Hugging Face folder of the recipe's newest checkpoint", _export),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mosaicbert", description="Pretrain a BERT: from a YAML recipe to a Hugging Face folder."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (purpose, _) in _COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=purpose, epilog=_EPILOG)
        command.add_argument("recipe", metavar="RECIPE", help="a YAML file, e.g. recipes/quickstart.yaml")
        command.add_argument("overrides", nargs="*", metavar="section.key=value", help="replaces a value of the recipe")
    return parser
