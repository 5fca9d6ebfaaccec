"""Kills a run at random moments, again and again, and shows that it ends as if nothing had happened.

    python scripts/soak.py                       # the quickstart, 20 kills, about twenty minutes on two cores
    python scripts/soak.py --kills 50 --seed 3 --recipe recipes/quickstart.yaml train.num_processes=2

One run goes through undisturbed. Another gets SIGKILL, each time after a random time that begins with its start: while
it imports, reads a checkpoint, trains, evaluates, writes a checkpoint, or exports; and each time it is continued by the
same command, with another number of loader processes. Weights, the optimizer's state and all metrics but the measured
times must be the same, bit for bit. One line is added to docs/results/soak.jsonl.
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
from mosaicbert.report.metrics import read_metrics
from mosaicbert.train.checkpoint.format import list_checkpoints, read_checkpoint, step_of
from mosaicbert.train.run_folder import RunFolder, describe_environment

_ROOT = Path(__file__).parents[1]
_MEASURED = {"seconds", "wall_seconds", "data_wait_seconds", "memory_gib", "tokens_per_second", "mfu"}
_WORKERS = (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="recipes/quickstart.yaml")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--longest", type=float, default=30.0, help="seconds that a sitting lasts at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=_ROOT / "docs" / "results" / "soak.jsonl")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        overrides = ["checkpoint.interval=10 steps", *asked.overrides]
        overrides += [f"runs_folder={scratch}", f"data.store={scratch}/store", "eval.fill_mask=[]"]
        whole = _finish(asked.recipe, [*overrides, "run_name=undisturbed"])
        dice = random.Random(asked.seed)
        killed_at, seconds = _kill_often(asked, [*overrides, "run_name=killed"], dice)
        parts = _finish(asked.recipe, [*overrides, "run_name=killed"])
        differences = _compare(whole, parts)
        line = {
            "what": f"{len(killed_at)} kills of {Path(asked.recipe).stem} at random moments",
            "overrides": asked.overrides,
            "seed": asked.seed,
            "seconds_before_kill": seconds,
            "step_at_kill": killed_at,
            "steps": step_of(list_checkpoints(parts.checkpoints)[-1]),
            "differences": differences,
            "environment": describe_environment(),
            "date": date.today().isoformat(),
        }
    with asked.output.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line, indent=1))
    sys.exit(1 if differences else 0)


def _command(recipe: str, overrides: list[str]) -> list[str]:
    return [sys.executable, "-m", "mosaicbert", "pretrain", recipe, *overrides]


def _finish(recipe: str, overrides: list[str]) -> RunFolder:
    subprocess.run(_command(recipe, overrides), check=True)
    return RunFolder(load_recipe(recipe, overrides).run_folder)


def _kill_often(asked: argparse.Namespace, overrides: list[str], dice: random.Random) -> tuple[list[int], list[float]]:
    """Returns the step that each kill came at, and how many seconds after the start."""
    run = RunFolder(load_recipe(asked.recipe, overrides).run_folder)
    steps: list[int] = []
    moments: list[float] = []
    while len(steps) < asked.kills:
        moment = dice.uniform(0.0, asked.longest)
        workers = f"data.num_workers={dice.choice(_WORKERS)}"
        process = subprocess.Popen(_command(asked.recipe, [*overrides, workers]), stdout=subprocess.DEVNULL)
        try:
            process.wait(moment)
            sys.exit(f"the run was over after {len(steps)} kills: give it a longer train.duration.")
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reached = [line["step"] for line in read_metrics(run.metrics)] if run.metrics.exists() else []
        steps.append(max(reached, default=0))
        moments.append(round(moment, 2))
        print(f"kill {len(steps)} after {moment:.1f} s, at step {steps[-1]}", flush=True)
    return steps, moments


def _compare(ours: RunFolder, theirs: RunFolder) -> list[str]:
    """What differs between the ends of two runs."""
    mine, other = (read_checkpoint(list_checkpoints(run.checkpoints)[-1]) for run in (ours, theirs))
    found = [name for name, weight in mine.model.items() if not torch.equal(weight, other.model[name])]
    found += [
        f"{key} of {name}"
        for name, kept in mine.optimizer.items()
        for key, value in kept.items()
        if not torch.equal(value, other.optimizer[name][key])
    ]
    lines, others = _lines(ours), _lines(theirs)
    if len(lines) != len(others):
        found.append(f"{len(lines)} and {len(others)} lines of metrics")
    return found + [f"metrics: {line} {other}" for line, other in zip(lines, others, strict=False) if line != other]


def _lines(run: RunFolder) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in _MEASURED} for line in read_metrics(run.metrics)]


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    main()
