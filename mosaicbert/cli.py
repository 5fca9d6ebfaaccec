"""Command-line interface. Each command loads its recipe and calls one function.

Commands import their implementations inside their functions, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mosaicbert

_OVERRIDES = "Overrides have the form section.key=value, e.g. train.precision=fp32. All recipe keys can be overridden."

# Keys of `export.onnx.TASKS`, whose module imports torch.
_ONNX_TASKS = ("feature-extraction", "fill-mask", "text-classification", "token-classification", "question-answering")

# Modules that are installed by mosaicbert[train] only.
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
    """Run one command and exit.

    Args:
        arguments: Command-line arguments; those of this process by default.

    Raises:
        SystemExit: Always. The code is 2, with one line on stderr, if the recipe, the data or a file is invalid, and
            1, with one line on stderr, if a run cannot continue.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parsed = _parse(arguments)
    # Library defaults, set before the import. Variables that the user has set take precedence.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # transformers logs every file that it opens
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # the profiler warns of each older tensor that is released
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning OpenMP threads are three times slower on busy cores
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
    unrecognized = [word for word in trailing if word.startswith("-") or "=" not in word]
    if unrecognized or (trailing and "overrides" not in parsed):
        parser.error(f"unrecognized arguments: {' '.join(unrecognized or trailing)}")
    if trailing:
        parsed.overrides += trailing
    return parsed


def load(parsed: argparse.Namespace) -> Any:
    """Load the recipe that the arguments name, a YAML file or a shipped recipe, with the schema of the command."""
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

    from mosaicbert.config.finetune import EMBEDDING_KINDS

    if recipe.data.kind in EMBEDDING_KINDS:
        from mosaicbert.finetune.embedding import finetune_embeddings

        finetune_embeddings(recipe, Console())
    else:
        from mosaicbert.finetune.task.command import finetune

        finetune(recipe, Console())
    return 0


def _glue(parsed: argparse.Namespace, _arguments: list[str]) -> int:
    recipe = load(parsed)
    from rich.console import Console

    from mosaicbert.finetune.glue.command import glue

    return glue(recipe, Console())


def _blimp(parsed: argparse.Namespace, _arguments: list[str]) -> int:
    from mosaicbert.config.blimp import BlimpConfig
    from mosaicbert.config.load import build_settings

    config = build_settings([f"model={parsed.model}", *parsed.overrides], BlimpConfig)
    from rich.console import Console

    from mosaicbert.blimp.command import blimp

    return blimp(config, Console())


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

    _disable_progress_bars()
    return launch(recipe, arguments, Console())


def _predict(parsed: argparse.Namespace, _arguments: list[str]) -> int:
    from rich.console import Console

    from mosaicbert.finetune.task.predict import predict_file

    columns = None if parsed.text_columns is None else parsed.text_columns.split(",")
    console = Console(stderr=True)  # stdout has the path of the result
    print(predict_file(parsed.model, parsed.file, console, output=parsed.output, text_columns=columns))
    return 0


def _export(parsed: argparse.Namespace, _arguments: list[str]) -> int:
    _disable_progress_bars()
    folder = Path(parsed.recipe)
    is_folder = (folder / "config.json").exists() or folder.suffix == ".pt"
    if is_folder and (parsed.overrides or (parsed.format, parsed.output, parsed.push) == (None, None, None)):
        from mosaicbert.config import ConfigError

        state = "overrides" if parsed.overrides else "none of them"
        raise ConfigError(
            f"`mosaicbert export FOLDER` must have --format, --output or --push and no overrides, got {state}. "
            "See `mosaicbert export --help`."
        )
    if not is_folder:
        recipe = load(parsed)
        from mosaicbert.train.results import export_latest

        folder = export_latest(recipe).hugging_face
        print(folder)
    if parsed.format is not None or parsed.output is not None:
        from mosaicbert.commands.export import export_files

        path = export_files(folder, file_format=parsed.format or "huggingface", task=parsed.task, output=parsed.output)
        print(path)
        folder = folder if path.is_file() else path
    if parsed.push is not None:
        from mosaicbert.export.hub import push

        print(push(folder, parsed.push))
    return 0


def _report(parsed: argparse.Namespace, _arguments: list[str]) -> int:
    from mosaicbert.report.command import report

    print(*report(parsed.runs, parsed.output or parsed.runs[0]), sep="\n")
    return 0


def _bench(parsed: argparse.Namespace, _arguments: list[str]) -> int:
    recipe = load(parsed)
    from rich.console import Console

    from mosaicbert.bench.command import bench

    bench(
        recipe,
        Console(),
        num_steps=parsed.steps,
        seconds=parsed.seconds,
        output=parsed.output,
        embedding_batch=parsed.embeddings,
    )
    return 0


def _disable_progress_bars() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()  # transformers shows one for every weight file


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _OVERRIDES
    recipe = "YAML file or name of a shipped recipe, e.g. quickstart (see `mosaicbert recipes`)"
    parser.add_argument("recipe", metavar="RECIPE", help=recipe)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="override of a recipe key")


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="folder of a fine-tuning run, Hugging Face folder, or Hub name")
    parser.add_argument("file", metavar="FILE", type=Path, help=".csv, .jsonl or .parquet file of texts")
    output = "file for the rows with their predictions, in one of these formats (default: FILE.predictions)"
    parser.add_argument("--output", metavar="FILE", type=Path, help=output)
    columns = "one text column, or two separated by a comma (default: those of the run, or text)"
    parser.add_argument("--text-columns", metavar="NAMES", help=columns)


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _OVERRIDES
    recipe = (
        "recipe of a run, whose newest checkpoint is exported, or Hugging Face folder, or published MosaicBERT, or "
        "Composer checkpoint (.pt) of one"
    )
    parser.add_argument("recipe", metavar="RECIPE|FOLDER", help=recipe)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="override of a recipe key")
    file_format = (
        "onnx: model.onnx beside the weights; huggingface: a folder of this package from a published MosaicBERT; "
        "published: the layout of published MosaicBERTs"
    )
    parser.add_argument("--format", choices=("onnx", "huggingface", "published"), help=file_format)
    task = "task of the ONNX file, e.g. feature-extraction (default: that of the folder)"
    parser.add_argument("--task", metavar="TASK", choices=_ONNX_TASKS, help=task)
    output = "new folder, for --format huggingface and published"
    parser.add_argument("--output", metavar="FOLDER", type=Path, help=output)
    push = "upload to the Hugging Face Hub, with a revision for each checkpoint of a run"
    parser.add_argument("--push", metavar="USER/NAME", help=push)


def _add_blimp(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Settings: checkpoints=all (also those written during the evaluation), data=FOLDER or Hub dataset, revision, "
        "pairs_per_paradigm, batch_tokens, num_processes, runs_folder. See docs/glue.md."
    )
    model = "run folder, Hugging Face folder, or name of a masked language model on the Hub"
    parser.add_argument("model", metavar="RUN", help=model)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="setting, e.g. checkpoints=all")


def _add_pareto(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    checkpoints = "compare the scores of A and B instead, by a paired test; each is a run folder or FOLDER@STEP"
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help=checkpoints)


def _add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run folder, e.g. runs/quickstart")
    output = "folder for report.png and report.html (default: folder of the first run)"
    parser.add_argument("--output", metavar="FOLDER", type=Path, help=output)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    parser.add_argument("--steps", metavar="N", type=int, default=10, help="timed steps per version (default: 10)")
    seconds = "approximate total time, compilation included; versions without time left are skipped (default: 1800)"
    parser.add_argument("--seconds", metavar="S", type=float, default=1800.0, help=seconds)
    output = "folder for the records and the chart (default: bench/ in the run folder)"
    parser.add_argument("--output", metavar="FOLDER", type=Path, help=output)
    embeddings = "compare embeddings of batches of N documents instead of training steps"
    parser.add_argument("--embeddings", metavar="N", type=int, help=embeddings)


def _add_no_arguments(_parser: argparse.ArgumentParser) -> None:
    pass


class _Command(NamedTuple):
    """Subcommand.

    Attributes:
        purpose: Description for `--help`, an imperative phrase.
        run: Function that runs the command and returns its exit code.
        add_arguments: Function that adds the command's arguments to a parser.
    """

    purpose: str
    run: Callable[[argparse.Namespace, list[str]], int]
    add_arguments: Callable[[argparse.ArgumentParser], None] = _add_recipe


_COMMANDS = {
    "recipes": _Command("List the shipped recipes", _recipes, _add_no_arguments),
    "show": _Command("Print parameters, tokens, FLOPs, memory, time and cost of a run without starting it", _show),
    "prepare": _Command("Tokenize the text sources of a recipe into a token store", _prepare),
    "check": _Command("Verify the token store of a recipe and print its statistics", _check),
    "pretrain": _Command("Pretrain a model, or resume its run, and export it", _pretrain),
    "finetune": _Command("Fine-tune a pretrained encoder on a task dataset", _finetune),
    "predict": _Command("Predict the labels of a file of texts with a fine-tuned model", _predict, _add_predict),
    "glue": _Command("Fine-tune and score a model or the checkpoints of a run on GLUE", _glue),
    "blimp": _Command("Score a model or the checkpoints of a run on BLiMP, without fine-tuning", _blimp, _add_blimp),
    "export": _Command("Export a run as a Hugging Face folder, or a folder to another format", _export, _add_export),
    "pareto": _Command("Plot scores against training time and cost, or compare two checkpoints", _pareto, _add_pareto),
    "bench": _Command(
        "Measure the training step of a recipe against Hugging Face's BERT and ModernBERT on the same documents",
        _bench,
        _add_bench,
    ),
    "report": _Command("Plot the training curves of runs as a PNG file and an HTML page", _report, _add_runs),
}


def _parser() -> argparse.ArgumentParser:
    description = "Pretrain a BERT encoder: from a YAML recipe to a Hugging Face folder and a GLUE score."
    parser = argparse.ArgumentParser(prog="mosaicbert", description=description)
    parser.add_argument("--version", action="version", version=f"mosaicbert {mosaicbert.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in _COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=command.purpose, description=f"{command.purpose}."))
    return parser
