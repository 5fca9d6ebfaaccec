"""Training for tests: in this process without the export at the end, or as the command that users start."""

import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console

from mosaicbert.config.load import save_recipe
from mosaicbert.data.prepare.pipeline import prepare
from mosaicbert.report.metrics import read_metrics
from mosaicbert.train.checkpoint.export_worker import LAUNCHER_VARIABLES
from mosaicbert.train.checkpoint.format import list_checkpoints, read_checkpoint
from mosaicbert.train.compile import choose_compilation
from mosaicbert.train.pretrain import pretrain
from mosaicbert.train.resolve import resolve_run
from mosaicbert.train.run_folder import create_run_folder
from mosaicbert.train.session import Session, train
from mosaicbert.train.signals import StopRequest, TrainingStopped
from tests.fork_server import ForkingPopen, forking

_PEAK_FLOPS = 1e12  # of the device; only the MFU depends on it

# What depends on the clock and the machine; all else is the same bit for bit.
_MEASURED = {
    "seconds",
    "wall_seconds",
    "data_wait_seconds",
    "memory_gib",
    "tokens_per_second",
    "mfu",
}


class StopAfter(StopRequest):
    """Asks the run to stop after so many steps of this sitting."""

    def __init__(self, steps):
        self.steps = steps
        super().__init__()

    @property
    def signal(self):
        self.steps -= 1
        return "TEST" if self.steps <= 0 else None

    @signal.setter
    def signal(self, _):
        pass


def train_here(recipe, stop_after=None, said=None, stop=None):
    """Trains without the export, to the end or for so many steps; returns the run's folder."""
    quiet = Console(quiet=True)
    resolved = resolve_run(recipe, quiet)
    run = create_run_folder(recipe, resolved.store)
    stop = stop or (StopRequest() if stop_after is None else StopAfter(stop_after))
    compilation = choose_compilation(recipe.model, recipe.train, resolved.precision)
    log = (lambda _: None) if said is None else said.append
    try:
        train(Session(resolved, compilation, _PEAK_FLOPS, stop, None, quiet, log))
        assert stop_after is None
    except TrainingStopped:
        assert stop_after is not None
    return run


def pretrain_here(recipe, console):
    """Trains with the export, whose processes are forked, as the command does; returns the run's folder."""
    resolved = resolve_run(recipe, console)
    with forking():
        pretrain(resolved, console)
    return resolved.folder


def start(recipe, *overrides, command=("-m", "mosaicbert", "pretrain"), forked=True, **environment):
    """Starts the command `mosaicbert pretrain`, or another one that takes a recipe.

    Args:
        recipe: Recipe of the run.
        overrides: Further arguments.
        command: Arguments of Python.
        forked: Fork the processes, which saves them the import of Composer; see tests/fork_server.py.
        environment: Environment variables.
    """
    path = Path(recipe.runs_folder) / "recipe.yaml"
    save_recipe(recipe, path)
    # Composer leaves a launcher's variables behind in a process that has trained.
    inherited = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    popen = ForkingPopen if forked else subprocess.Popen
    return popen(
        [sys.executable, *command, str(path), *overrides],
        env=inherited | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def train_on_ranks(num_ranks, recipe, *overrides, stop_after=None, module="tests.train.session", forked=True):
    """`train_here` on several ranks, which torchrun starts."""
    run = create_run_folder(recipe, prepare(recipe))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks))
    steps = () if stop_after is None else (str(stop_after),)
    finish(start(recipe, *overrides, command=(*launcher, "-m", module, *steps), forked=forked))
    return run


def finish(process, code=0):
    """Waits for a command to end with a code; returns what it has printed."""
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == code, printed
    return printed


def wait_for(condition, process):
    """Waits until something holds, while a command runs."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def steps_of(run):
    """The lines of metrics.jsonl about steps."""
    return [line for line in read_metrics(run.metrics) if "loss" in line]


def losses_of(run):
    """Of every step."""
    return [line["loss"] for line in steps_of(run)]


def evaluations_of(run):
    """The held-out losses."""
    return [line["eval_loss"] for line in read_metrics(run.metrics) if "eval_loss" in line]


def last_checkpoint(run):
    """What the newest checkpoint holds."""
    return read_checkpoint(list_checkpoints(run.checkpoints)[-1])


def assert_same_end(ours, theirs, but_for=frozenset(), but_for_lines_of=frozenset()):
    """Weights, optimizer and metrics (but for some, and for lines of some steps) of two runs are the same."""
    mine, other = last_checkpoint(ours), last_checkpoint(theirs)
    assert mine.model.keys() == other.model.keys()
    for name, weight in other.model.items():
        assert torch.equal(mine.model[name], weight), name
    assert mine.optimizer.keys() == other.optimizer.keys()
    for name, kept in other.optimizer.items():
        assert mine.optimizer[name].keys() == kept.keys()
        for key, value in kept.items():
            assert torch.equal(mine.optimizer[name][key], value), (name, key)
    assert mine.state["spike_detector"] == other.state["spike_detector"]
    metrics, expected = (_reproducible_metrics(run, but_for, but_for_lines_of) for run in (ours, theirs))
    assert metrics == expected


def _reproducible_metrics(run, but_for, but_for_lines_of):
    left_out = _MEASURED | but_for
    return [
        {name: value for name, value in line.items() if name not in left_out}
        for line in read_metrics(run.metrics)
        if line["step"] not in but_for_lines_of
    ]


def assert_equal_but_for_summation(ours, theirs, tolerance):
    """Weights of two runs differ by no more than `tolerance`, relative to the largest of each."""
    mine, other = last_checkpoint(ours).model, last_checkpoint(theirs).model
    for name, weight in other.items():
        difference = float((mine[name] - weight).abs().max())
        assert difference <= tolerance * max(float(weight.abs().max()), 1e-3), (name, difference)
