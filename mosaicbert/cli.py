"""The commands. Each parses, calls one function, prints. Work is imported inside, so that --help is instant."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

_EPILOG = "Overrides are written section.key=value, e.g. train.precision=fp32; every key of a recipe can be given."


# What the base installation, which only loads and runs models, leaves out.
_TRAINERS_MODULES = frozenset(
    {"composer", "datasets", "matplotlib", "omegaconf", "pyarrow", "rich", "scipy", "sklearn", "xxhash", "yaml"}
)


def main(arguments: list[str] | None = None) -> None:
    """Runs one command. Exits with 2 and one line if the user's recipe, data or files cannot work."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parsed = _parse(arguments)
    # Defaults for the libraries below, before they are imported; whoever wants others sets the variables.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else every file that is opened is reported
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # a busy core makes threads that spin three times as slow
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
        if error.name not in _TRAINERS_MODULES:
            raise
        print(
            f"mosaicbert {parsed.command}: {error.name} is not installed; pip install 'mosaicbert[train]'.",
            file=sys.stderr,
        )
        sys.exit(2)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = _parser()
    parsed, behind = parser.parse_known_args(arguments)
    # argparse takes positional arguments in one piece only; overrides may stand behind an option as well.
    strangers = [word for word in behind if word.startswith("-") or "=" not in word]
    if strangers or (behind and "overrides" not in parsed):
        parser.error(f"unrecognized arguments: {' '.join(strangers or behind)}")
    if behind:
        parsed.overrides += behind
    return parsed


def load(parsed: argparse.Namespace) -> Any:
    """The recipe that a command was given, of the kind that it takes."""
    from mosaicbert.config import Recipe
    from mosaicbert.config.finetune import FinetuneRecipe
    from mosaicbert.config.glue import GlueRecipe
    from mosaicbert.config.load import load_recipe
    from mosaicbert.config.pareto import ParetoRecipe

    kinds: dict[str, type[Any]] = {"finetune": FinetuneRecipe, "glue": GlueRecipe, "pareto": ParetoRecipe}
    return load_recipe(parsed.recipe, parsed.overrides, kinds.get(parsed.command, Recipe))


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

    from mosaicbert.pareto.command import compare, pareto

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


class _Command(NamedTuple):
    """What a command is for, what does it, and whether it takes a recipe or the folders of runs."""

    purpose: str
    run: Callable[[argparse.Namespace, list[str]], int]
    takes_recipe: bool = True


_COMMANDS = {
    "show": _Command("say what a recipe would do: parameters, tokens, FLOPs, memory, time and cost", _show),
    "prepare": _Command("turn the recipe's text into its token store", _prepare),
    "check": _Command("read the whole token store and say whether it is fit for the recipe's run", _check),
    "pretrain": _Command("train the recipe to its end, or continue where it was cut off, and export it", _pretrain),
    "finetune": _Command("fine-tune a pretrained encoder on your own labelled texts", _finetune),
    "glue": _Command("fine-tune a model or a run's checkpoints on the tasks of GLUE, and score them", _glue),
    "export": _Command("write the Hugging Face folder of the recipe's newest checkpoint", _export),
    "pareto": _Command("set scores against the time and the money that they took, or compare two checkpoints", _pareto),
    "report": _Command("draw the curves of runs, finished or not, into a PNG and an HTML page", _report, False),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mosaicbert", description="Pretrain a BERT: from a YAML recipe to a Hugging Face folder."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (purpose, _, takes_recipe) in _COMMANDS.items():
        epilog = _EPILOG if takes_recipe else None
        command = commands.add_parser(name, help=purpose, description=purpose, epilog=epilog)
        if takes_recipe:
            command.add_argument("recipe", metavar="RECIPE", help="a YAML file, e.g. recipes/quickstart.yaml")
            overrides = "replaces a value of the recipe"
            command.add_argument("overrides", nargs="*", metavar="section.key=value", help=overrides)
            if name == "pareto":
                versus = "say whether A is better than B instead: folders with scores, or FOLDER@STEP"
                command.add_argument("--compare", nargs=2, metavar=("A", "B"), help=versus)
        else:
            command.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a folder, e.g. runs/quickstart")
            output = "folder for report.png and report.html; the first run's if not given"
            command.add_argument("--output", metavar="FOLDER", type=Path, help=output)
    return parser
