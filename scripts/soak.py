"""Kill a run repeatedly at random times, and compare its end with that of an uninterrupted run.

    python scripts/soak.py                       # quickstart, 20 kills, about twenty minutes on two cores
    python scripts/soak.py --kills 50 --seed 3 --recipe recipes/quickstart.yaml train.num_processes=2

One run is not interrupted. The other receives SIGKILL a random time after each start: during imports, training,
evaluation, an export, or while it reads or writes a checkpoint. The same command then resumes it with another number of
loader processes. Weights, optimizer state and all metrics except measured times must be equal bit for bit. One line is
appended to docs/results/soak.jsonl.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import torch

from mosaicbert.config.load import load_recipe
from mosaicbert.environment import describe_environment
from mosaicbert.report.metrics import read_metrics
from mosaicbert.train.checkpoint.format import list_checkpoints, read_checkpoint, step_of
from mosaicbert.train.run_folder import RunFolder

_ROOT = Path(__file__).parents[1]
_MEASURED = {"seconds", "wall_seconds", "data_wait_seconds", "memory_gib", "tokens_per_second", "mfu"}
_NUM_WORKERS = (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="recipes/quickstart.yaml")
    parser.add_argument("--kills", type=int, default=20, help="number of kills")
    parser.add_argument("--max-seconds", type=float, default=30.0, help="maximum duration of a session")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=_ROOT / "docs" / "results" / "soak.jsonl")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        overrides = ["checkpoint.interval=10 steps", *arguments.overrides]
        overrides += [f"runs_folder={scratch}", f"data.store={scratch}/store", "eval.fill_mask=[]"]
        uninterrupted = _finish(arguments.recipe, [*overrides, "run_name=uninterrupted"])
        steps, seconds = _kill_repeatedly(arguments, [*overrides, "run_name=killed"], random.Random(arguments.seed))
        killed = _finish(arguments.recipe, [*overrides, "run_name=killed"])
        differences = _compare(killed, uninterrupted)
        line = {
            "what": f"{len(steps)} kills of {Path(arguments.recipe).stem} at random times",
            "overrides": arguments.overrides,
            "seed": arguments.seed,
            "seconds_before_kill": seconds,
            "step_at_kill": steps,
            "steps": step_of(list_checkpoints(killed.checkpoints)[-1]),
            "differences": differences,
            "environment": describe_environment(),
            "date": date.today().isoformat(),
        }
    with arguments.output.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line, indent=1))
    sys.exit(1 if differences else 0)


def _command(recipe: str, overrides: list[str]) -> list[str]:
    return [sys.executable, "-m", "mosaicbert", "pretrain", recipe, *overrides]


def _finish(recipe: str, overrides: list[str]) -> RunFolder:
    subprocess.run(_command(recipe, overrides), check=True)
    return RunFolder(load_recipe(recipe, overrides).run_folder)


def _kill_repeatedly(
    arguments: argparse.Namespace, overrides: list[str], rng: random.Random
) -> tuple[list[int], list[float]]:
    """Return the step of each kill, and its time after the start of the process in seconds."""
    run = RunFolder(load_recipe(arguments.recipe, overrides).run_folder)
    steps: list[int] = []
    times: list[float] = []
    while len(steps) < arguments.kills:
        seconds = rng.uniform(0.0, arguments.max_seconds)
        workers = f"data.num_workers={rng.choice(_NUM_WORKERS)}"
        process = subprocess.Popen(_command(arguments.recipe, [*overrides, workers]), stdout=subprocess.DEVNULL)
        try:
            process.wait(seconds)
            sys.exit(f"`train.duration` must be longer: the run ended after {len(steps)} kills.")
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        logged_steps = [line["step"] for line in read_metrics(run.metrics)] if run.metrics.exists() else []
        steps.append(max(logged_steps, default=0))
        times.append(round(seconds, 2))
        print(f"kill {len(steps)} after {seconds:.1f} s, at step {steps[-1]}", flush=True)
    return steps, times


def _compare(run: RunFolder, expected: RunFolder) -> list[str]:
    """Return the differences between the last checkpoints and the metrics of two runs."""
    actual_state, expected_state = (
        read_checkpoint(list_checkpoints(folder.checkpoints)[-1]) for folder in (run, expected)
    )
    differences = [
        name for name, weight in actual_state.model.items() if not torch.equal(weight, expected_state.model[name])
    ]
    differences += [
        f"{key} of {name}"
        for name, tensors in actual_state.optimizer.items()
        for key, value in tensors.items()
        if not torch.equal(value, expected_state.optimizer[name][key])
    ]
    lines, expected_lines = _metrics(run), _metrics(expected)
    if len(lines) != len(expected_lines):
        differences.append(f"{len(lines)} and {len(expected_lines)} lines of metrics")
    pairs = zip(lines, expected_lines, strict=False)
    return differences + [f"metrics: {line} {expected_line}" for line, expected_line in pairs if line != expected_line]


def _metrics(run: RunFolder) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in _MEASURED} for line in read_metrics(run.metrics)]


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    main()
