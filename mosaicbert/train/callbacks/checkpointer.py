"""When a run's state is written, and how it is taken up again."""

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mosaicbert.config import CheckpointConfig, ConfigError, parse_duration
from mosaicbert.train.checkpoint.export_worker import Exporter
from mosaicbert.train.checkpoint.format import (
    Checkpoint,
    CheckpointError,
    list_checkpoints,
    read_checkpoint,
    read_state,
    remove_checkpoint,
    remove_old,
    step_of,
    write_checkpoint,
)
from mosaicbert.train.composer import Callback, Logger, State, Timestamp, dist
from mosaicbert.train.distributed import gather_state, spread_state
from mosaicbert.train.faults.log import Fault, FaultLog, SamplesOf, list_samples
from mosaicbert.train.faults.spike_detector import RollBack
from mosaicbert.train.progress import Course
from mosaicbert.train.run_folder import RunFolder
from mosaicbert.train.signals import Stopped
from mosaicbert.train.trainer import StepTrainer
from mosaicbert.train_plan import has_passed

_MARGIN_BYTES = 2**28  # beside the checkpoints: metrics, pictures, caches


class Checkpointer(Callback):
    """Writes a checkpoint at intervals, at the run's end and when it is asked to stop; and has each exported.

    A checkpoint that cannot be written is said and noted, and the run goes on.

    Args:
        config: the recipe's section.
        run: its folder.
        course: of the run.
        model: that is trained.
        faults: of the run.
        exporter: of checkpoints to Hugging Face folders; only rank 0 has one.
        say: prints a line; only rank 0's is seen.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        run: RunFolder,
        course: Course,
        model: nn.Module,
        faults: FaultLog,
        exporter: Exporter | None,
        say: Callable[[str], None],
    ) -> None:
        self.config = config
        self.interval = parse_duration("checkpoint.interval", config.interval)
        self.run = run
        self.course = course
        self.model = model
        self.faults = faults
        self.exporter = exporter
        self.say = say
        self._is_written = False

    def batch_checkpoint(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        is_due = has_passed(self.interval, self.course.before, self.course.position)
        if not self.course.is_settled or not (is_due or self.course.is_done or self.course.stop):
            return
        weights, kept = gather_state(self.model, state.optimizers[0])
        if dist.get_global_rank() == 0:
            content = self.course.state_dict() | {"rollbacks": len(self.faults.rollbacks())}
            self._is_written = self._write(Checkpoint(weights, kept, content), is_due)
        dist.barrier()  # a launcher may end the others as soon as one has ended
        if self.course.stop:
            raise Stopped(self._is_written)

    def _write(self, checkpoint: Checkpoint, is_due: bool) -> bool:
        position = self.course.position
        every = self.config.keep_every
        number = int(position.count(self.interval.unit) / self.interval.amount)
        try:
            _require_finite(checkpoint, position.steps)
            write_checkpoint(
                self.run.checkpoints,
                position.steps,
                checkpoint,
                keep=is_due and every is not None and number % every == 0,
            )
            remove_old(self.run.checkpoints, self.config.keep_last)
        except (CheckpointError, OSError) as error:
            self.say(f"no checkpoint: {error} The run goes on.")
            self.faults.note(Fault(kind="checkpoint", step=position.steps, reason=str(error), batches=[]))
            return False
        self.course.guard.clear_suspects()
        if self.exporter is not None:
            self.exporter.follow()
        return True


def _require_finite(checkpoint: Checkpoint, step: int) -> None:
    bad = next((name for name, weight in checkpoint.model.items() if not bool(torch.isfinite(weight).all())), None)
    if bad is not None:
        raise CheckpointError(f"step {step}: {bad} is not finite.")


def require_room(run: RunFolder, num_parameters: int, keep_last: int) -> None:
    """Refuses to begin where not even the checkpoints that are always kept would fit.

    Raises:
        ConfigError: the disk has too little room.
    """
    # Weights and two moments, in fp32; one more checkpoint than is kept, while it is written; and an export of each.
    wanted = (keep_last + 1) * (12 + 4) * num_parameters + _MARGIN_BYTES
    used = 0
    for folder, _, names in os.walk(run.path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # the last sitting's export may be at work
                used += os.lstat(os.path.join(folder, name)).st_size
    free = shutil.disk_usage(run.path).free
    if free + used < wanted:
        raise ConfigError(
            f"{run.path}: its disk has {free / 2**30:.1f} GiB free, and {keep_last + 1} checkpoints with their exports "
            f"take {wanted / 2**30:.1f}; make room, choose another runs_folder, or lower checkpoint.keep_last."
        )


@dataclass(frozen=True)
class Restart:
    """Where a sitting begins.

    Attributes:
        path: of the checkpoint; None is the beginning of the run.
        state: of the checkpoint, see `Course`; empty at the beginning.
        skipped: numbers of the batches that are left out.
    """

    path: Path | None
    state: dict[str, Any]
    skipped: frozenset[int]

    @property
    def step(self) -> int:
        """How many steps are done."""
        return 0 if self.path is None else step_of(self.path)


def find_restart(
    run: RunFolder, faults: FaultLog, exporter: Exporter | None, say: Callable[[str], None]
) -> tuple[Restart, Checkpoint | None]:
    """The newest checkpoint that is whole, and what the run has learnt to leave out. All ranks call it.

    What a rollback has undone is removed, and the exports of steps that will be trained again.

    Returns:
        The restart, the same on every rank; and on rank 0 the checkpoint's content.
    """
    found: list[Any] = [None]
    checkpoint: Checkpoint | None = None
    if dist.get_global_rank() == 0:
        _remove_undone(run.checkpoints, faults)
        path, checkpoint = _read_newest(run.checkpoints, faults, say)
        if exporter is not None:
            exporter.forget_after(0 if path is None else step_of(path))
        state = {} if checkpoint is None else checkpoint.state
        found = [Restart(path, state, frozenset(faults.skipped_batches()))]
    dist.broadcast_object_list(found)
    return found[0], checkpoint


def restore(trainer: StepTrainer, restart: Restart, checkpoint: Checkpoint | None) -> None:
    """Takes the run up at `restart`: weights, optimizer, position, and what the guard remembers. All ranks call it."""
    if restart.path is None:
        return
    course = trainer.course
    course.load_state_dict(restart.state)
    position = course.position
    trainer.state.timestamp = Timestamp(batch=position.steps, sample=position.samples, token=position.tokens)
    weights, kept = ({}, {}) if checkpoint is None else (checkpoint.model, checkpoint.optimizer)
    has_updated = position.steps > course.guard.num_skipped
    spread_state(trainer.trainee.model, trainer.state.optimizers[0], weights, kept, has_updated=has_updated)


def _read_newest(
    folder: Path, faults: FaultLog, say: Callable[[str], None]
) -> tuple[Path, Checkpoint] | tuple[None, None]:
    for path in reversed(list_checkpoints(folder)):
        try:
            return path, read_checkpoint(path)
        except CheckpointError as error:
            say(f"passing over a checkpoint: {error}")
            faults.note(Fault(kind="checkpoint", step=step_of(path), reason=str(error), batches=[]))
    return None, None


def roll_back(run: RunFolder, faults: FaultLog, cause: RollBack, window_steps: int, samples_of: SamplesOf) -> Fault:
    """Notes the batches to leave out, and the checkpoint to go back to; `find_restart` does the rest.

    That is the newest one from before these batches; and an older one for each time that the run has gone back from
    about here before.

    Returns:
        What was noted.
    """
    before = [fault for fault in faults.rollbacks() if abs(fault.step - cause.step) <= window_steps]
    first = cause.step - (cause.batches[-1] - cause.batches[0])
    paths = [path for path in list_checkpoints(run.checkpoints) if step_of(path) < first]
    chosen = paths[max(0, len(paths) - 1 - len(before))] if paths else None
    fault = Fault(
        kind="rollback",
        step=cause.step,
        reason=cause.reason,
        batches=cause.batches,
        resumed_step=0 if chosen is None else step_of(chosen),
        samples=list_samples(samples_of, cause.batches),
    )
    faults.write(fault)
    return fault


def _remove_undone(folder: Path, faults: FaultLog) -> None:
    """Removes checkpoints that later rollbacks went back behind, newest first: a crash on the way changes nothing."""
    rollbacks = faults.rollbacks()
    for path in reversed(list_checkpoints(folder)):
        try:
            later = rollbacks[read_state(path)["rollbacks"] :]
        except CheckpointError:
            continue  # it will be passed over
        if any((fault.resumed_step or 0) < step_of(path) for fault in later):
            remove_checkpoint(path)
