"""Compare the training step of two commits on the same documents, in turn (A B A B ...), one process per commit.

Each commit is extracted into a temporary folder, whose package trains the model of the recipe. The loader is not
measured: both processes read the same micro-batches. The recipe must be valid for both commits.

Run: python scripts/bench/compare.py OLD NEW RECIPE [section.key=value ...] [--steps N]
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mosaicbert.bench.documents import read_steps
from mosaicbert.bench.records import median_and_iqr
from mosaicbert.bench.timing import NUM_WARMUP_ROUNDS
from mosaicbert.config import Recipe
from mosaicbert.config.load import load_recipe
from mosaicbert.config.shipped import find_recipe
from mosaicbert.data.prepare.pipeline import prepare
from mosaicbert.train.compile import choose_compilation
from mosaicbert.train.device import choose_precision

_ROOT = Path(__file__).parents[2]
_STEP_SERVER = Path(__file__).with_name("step_server.py")
_DESCRIPTION_LENGTH = 60  # characters of a commit's subject in the output


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", metavar="OLD", help="git commit, tag or branch: the baseline")
    parser.add_argument("new", metavar="NEW", help="git commit, tag or branch")
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file or name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="override of a recipe key")
    parser.add_argument("--steps", metavar="N", type=int, default=10, help="timed steps per commit, at least 2")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error(f"--steps must be at least 2, got {arguments.steps}")
    recipe = load_recipe(find_recipe(arguments.recipe, "pretrain"), arguments.overrides)
    if recipe.model.architecture != "mosaicbert":
        parser.error(f"model.architecture must be mosaicbert, got {recipe.model.architecture}")
    return compare(arguments.old, arguments.new, recipe, arguments.steps)


def compare(old: str, new: str, recipe: Recipe, num_steps: int) -> int:
    """Measure and print two commits. Return the exit code.

    Args:
        old: Commit of the baseline.
        new: Commit that is compared with it.
        recipe: Recipe of the model and the documents.
        num_steps: Number of timed steps of each commit.
    """
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        task = folder / "task.pt"
        num_tokens = write_task(recipe, NUM_WARMUP_ROUNDS + num_steps, task)
        servers: list[StepServer] = []
        for side, commit in (("old", old), ("new", new)):
            extract(commit, folder / side)
            servers.append(stack.enter_context(StepServer(folder / side, task)))
        results = [[server.run(index) for server in servers] for index in range(len(num_tokens))]
    for number, commit in enumerate((old, new)):
        print_commit(commit, [row[number] for row in results], [row[0] for row in results], num_tokens)
    return 0


def write_task(recipe: Recipe, num_steps: int, path: Path) -> list[int]:
    """Write the sizes of the model and the micro-batches of each step. Return the number of real tokens of each step.

    Args:
        recipe: Recipe of the model and the documents.
        num_steps: Number of steps.
        path: File to write, which `step_server.py` reads.
    """
    record = prepare(recipe, Console(stderr=True))
    steps = list(itertools.islice(read_steps(recipe, record), num_steps))
    dtype, _ = choose_precision(recipe.train.precision)
    task = {
        "seed": recipe.seed,
        "model": asdict(recipe.model),
        "optimizer": asdict(recipe.optimizer),
        "dtype": str(dtype).removeprefix("torch."),
        "is_compiled": choose_compilation(recipe.model, recipe.train, dtype).is_enabled,
        "steps": [[vars(micro_batch) for micro_batch in step.micro_batches] for step in steps],
    }
    torch.save(task, path)
    return [step.global_num_tokens for step in steps]


def extract(commit: str, folder: Path) -> None:
    """Extract the files of a commit into a folder."""
    archive = folder.with_suffix(".tar")
    subprocess.run(["git", "archive", f"--output={archive}", commit], cwd=_ROOT, check=True)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")


class StepServer:
    """Process that runs training steps of a commit on request.

    Args:
        source: Folder with the files of the commit.
        task: File written by `write_task`.
    """

    def __init__(self, source: Path, task: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(source), "OMP_WAIT_POLICY": "passive"}
        self._process = subprocess.Popen(
            [sys.executable, str(_STEP_SERVER), str(source), str(task)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "StepServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes the standard input, which ends the process

    def run(self, index: int) -> dict[str, Any]:
        """Run a step, and return its time in seconds, its loss and the peak memory of the process in MiB.

        Raises:
            RuntimeError: If the process has failed. Its error message is on stderr.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        print(index, file=self._process.stdin, flush=True)
        reply = self._process.stdout.readline()
        if not reply:
            raise RuntimeError(f"{' '.join(map(str, self._process.args[1:3]))} failed. See its error message above.")
        return json.loads(reply)


def print_commit(
    commit: str, results: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any]], num_tokens: Sequence[int]
) -> None:
    """Print the speed of a commit relative to the baseline, without the warmup steps."""
    command = ["git", "log", "-1", "--format=%h %s", commit]
    subject = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True).stdout.strip()
    timed = slice(NUM_WARMUP_ROUNDS, None)
    seconds = [result["seconds"] for result in results[timed]]
    rate, rate_iqr = median_and_iqr([tokens / time for tokens, time in zip(num_tokens[timed], seconds, strict=True)])
    ratio = statistics.median(time / other["seconds"] for time, other in zip(seconds, baseline[timed], strict=True))
    median, iqr = median_and_iqr([1e3 * time for time in seconds])
    print(f"{subject[:_DESCRIPTION_LENGTH]}")
    print(f"    step: {median:,.1f} ms, IQR {iqr:,.1f} ms; relative time {ratio:.3f}")
    print(
        f"    {rate:,.0f} tokens/s, IQR {rate_iqr:,.0f}; peak memory of the process {results[-1]['peak_mib']:,.0f} MiB"
    )
    print(f"    first step {results[0]['seconds']:.1f} s; loss of the last step {results[-1]['loss']:.6f}")


if __name__ == "__main__":
    sys.exit(main())
