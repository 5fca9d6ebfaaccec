"""Training in tests: in this process, as the command `mosaicbert pretrain`, or on several ranks."""

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

_PEAK_FLOPS = 1e12  # peak of the device in FLOP/s, on which only the MFU depends

# Fields of metrics.jsonl that depend on time and machine. All others are equal bit for bit.
_MEASURED = {
    "cpu_seconds",
    "seconds",
    "wall_seconds",
    "data_wait_seconds",
    "memory_gib",
    "tokens_per_second",
    "mfu",
}


class StopAfter(StopRequest):
    """Stop request after a number of steps of this session."""

    def __init__(self, num_steps):
        self.num_steps_left = num_steps
        super().__init__()

    @property
    def signal(self):
        self.num_steps_left -= 1
        return "TEST" if self.num_steps_left <= 0 else None

    @signal.setter
    def signal(self, _):
        pass


def train_here(recipe, stop_after=None, log_lines=None, stop=None):
    """Train in this process without exports, and return the run folder.

    Args:
        recipe: Recipe of the run.
        stop_after: Number of steps of this session, or None to train to the end of the run.
        log_lines: List to which the log lines are appended, or None.
        stop: Stop request, or None.
    """
    console = Console(quiet=True)
    resolved = resolve_run(recipe, console)
    run = create_run_folder(recipe, resolved.store)
    stop = stop or (StopRequest() if stop_after is None else StopAfter(stop_after))
    compilation = choose_compilation(recipe.model, recipe.train, resolved.precision)
    log = (lambda _: None) if log_lines is None else log_lines.append
    try:
        train(Session(resolved, compilation, _PEAK_FLOPS, stop, None, console, log))
        assert stop_after is None
    except TrainingStopped:
        assert stop_after is not None
    return run


def pretrain_here(recipe, console):
    """Train in this process with exports in forked processes, and return the run folder."""
    resolved = resolve_run(recipe, console)
    with forking():
        pretrain(resolved, console)
    return resolved.folder


def start(recipe, *overrides, command=("-m", "mosaicbert", "pretrain"), forked=True, **environment):
    """Start the command `mosaicbert pretrain`, or another command whose argument is a recipe.

    Args:
        recipe: Recipe of the run.
        overrides: Further arguments.
        command: Arguments of the Python interpreter.
        forked: Whether the processes are forked, which saves the import of Composer, see tests/fork_server.py.
        environment: Environment variables.
    """
    path = Path(recipe.runs_folder) / "recipe.yaml"
    save_recipe(recipe, path)
    # Composer sets the variables of a launcher in a process that has trained.
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
    """Train with `train_here` on several ranks, which torchrun starts, and return the run folder."""
    run = create_run_folder(recipe, prepare(recipe))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks))
    steps = () if stop_after is None else (str(stop_after),)
    finish(start(recipe, *overrides, command=(*launcher, "-m", module, *steps), forked=forked))
    return run


def finish(process, code=0):
    """Wait for a process, check its exit code, and return its output."""
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
    return output


def wait_for(condition, process):
    """Wait until a condition is true, while a process runs."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def steps_of(run):
    """Return the lines of metrics.jsonl for steps."""
    return [line for line in read_metrics(run.metrics) if "loss" in line]


def losses_of(run):
    """Return the losses of all logged steps."""
    return [line["loss"] for line in steps_of(run)]


def evaluations_of(run):
    """Return the validation losses."""
    return [line["eval_loss"] for line in read_metrics(run.metrics) if "eval_loss" in line]


def last_checkpoint(run):
    """Read the newest checkpoint."""
    return read_checkpoint(list_checkpoints(run.checkpoints)[-1])


def assert_same_end(run, expected, ignored_fields=frozenset(), ignored_steps=frozenset()):
    """Check that weights, optimizer state and metrics of two finished runs are equal.

    Args:
        run: Run folder.
        expected: Run folder to compare with.
        ignored_fields: Fields of metrics.jsonl that are not compared.
        ignored_steps: Steps whose lines of metrics.jsonl are not compared.
    """
    actual_state, expected_state = last_checkpoint(run), last_checkpoint(expected)
    assert actual_state.model.keys() == expected_state.model.keys()
    for name, weight in expected_state.model.items():
        assert torch.equal(actual_state.model[name], weight), name
    assert actual_state.optimizer.keys() == expected_state.optimizer.keys()
    for name, tensors in expected_state.optimizer.items():
        assert actual_state.optimizer[name].keys() == tensors.keys()
        for key, value in tensors.items():
            assert torch.equal(actual_state.optimizer[name][key], value), (name, key)
    assert actual_state.state["spike_detector"] == expected_state.state["spike_detector"]
    metrics, expected_metrics = (
        _reproducible_metrics(folder, ignored_fields, ignored_steps) for folder in (run, expected)
    )
    assert metrics == expected_metrics


def _reproducible_metrics(run, ignored_fields, ignored_steps):
    ignored_fields = _MEASURED | ignored_fields
    return [
        {name: value for name, value in line.items() if name not in ignored_fields}
        for line in read_metrics(run.metrics)
        if line["step"] not in ignored_steps
    ]


def assert_weights_close(run, expected, tolerance):
    """Check that weights of two runs differ by at most `tolerance`, relative to the largest weight of each tensor."""
    actual_weights, expected_weights = last_checkpoint(run).model, last_checkpoint(expected).model
    for name, weight in expected_weights.items():
        difference = float((actual_weights[name] - weight).abs().max())
        assert difference <= tolerance * max(float(weight.abs().max()), 1e-3), (name, difference)
