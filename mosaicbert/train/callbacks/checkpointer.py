"""Writing of checkpoints: after each interval, at the end of the run, and on a stop request."""

from collections.abc import Callable

import torch
from torch import nn

from mosaicbert.config import CheckpointConfig
from mosaicbert.train.checkpoint.export_worker import ExportWorker
from mosaicbert.train.checkpoint.format import Checkpoint, CheckpointError, remove_old, write_checkpoint
from mosaicbert.train.composer import Callback, Logger, State, dist
from mosaicbert.train.distributed import gather_state
from mosaicbert.train.faults.log import Fault, FaultLog
from mosaicbert.train.faults.spike_detector import SpikeDetector
from mosaicbert.train.progress.run_progress import RunProgress
from mosaicbert.train.run_folder import RunFolder
from mosaicbert.train.signals import TrainingStopped
from mosaicbert.train_plan import has_passed


class Checkpointer(Callback):
    """Write a checkpoint after each interval, at the end of the run and on a stop request, and start its export.

    A checkpoint that cannot be written is reported and logged as a fault, and the run continues.

    Args:
        config: Checkpoint section of the recipe.
        run: Run folder.
        progress: Progress of the run.
        spike_detector: Spike detector, whose state is part of a checkpoint.
        model: Model that is trained.
        faults: Fault log of the run.
        export_worker: Exporter of checkpoints to Hugging Face folders, on rank 0 only.
        log: Function that prints a line.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        *,
        run: RunFolder,
        progress: RunProgress,
        spike_detector: SpikeDetector,
        model: nn.Module,
        faults: FaultLog,
        export_worker: ExportWorker | None,
        log: Callable[[str], None],
    ) -> None:
        self.config = config
        self.interval = config.interval_length
        self.run = run
        self.progress = progress
        self.spike_detector = spike_detector
        self.model = model
        self.faults = faults
        self.export_worker = export_worker
        self.log = log
        self._is_last_written = False

    def batch_checkpoint(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        """Write a checkpoint if one is due. Composer calls this method after every step.

        A checkpoint is due after the first step at or beyond each multiple of the interval, after the last step of the
        run, and after a stop request. `SyncPolicy` has the same interval, so that the results of such a step have been
        read (`is_finalized`). A step that requests a rollback raises before this method is called.
        """
        progress = self.progress
        is_interval = has_passed(self.interval, progress.last_sync_position, progress.position)
        if not progress.is_finalized or not (is_interval or progress.is_done or progress.stop_requested):
            return
        weights, optimizer_state = gather_state(self.model, state.optimizers[0])
        if dist.get_global_rank() == 0:
            content = progress.state_dict() | {
                "spike_detector": self.spike_detector.state_dict(),
                "rollbacks": len(self.faults.rollbacks()),
            }
            self._is_last_written = self._write(Checkpoint(weights, optimizer_state, content), is_interval)
        dist.barrier()  # a launcher may kill the other ranks as soon as one has exited
        if progress.stop_requested:
            raise TrainingStopped(self._is_last_written)

    def _write(self, checkpoint: Checkpoint, is_interval: bool) -> bool:
        position = self.progress.position
        keep_every = self.config.keep_every
        num_intervals = int(position.count(self.interval.unit) / self.interval.amount)
        try:
            _check_finite(checkpoint, position.steps)
            write_checkpoint(
                self.run.checkpoints,
                position.steps,
                checkpoint,
                keep=is_interval and keep_every is not None and num_intervals % keep_every == 0,
            )
            remove_old(self.run.checkpoints, self.config.keep_last)
        except (CheckpointError, OSError) as error:
            self.log(f"checkpoint not written: {error} The run continues.")
            self.faults.try_write(Fault(kind="checkpoint", step=position.steps, reason=str(error), batches=[]))
            return False
        self.spike_detector.clear_suspects()
        if self.export_worker is not None:
            self.export_worker.start()
        return True


def _check_finite(checkpoint: Checkpoint, step: int) -> None:
    for name, weight in checkpoint.model.items():
        if not bool(torch.isfinite(weight).all()):
            raise CheckpointError(f"Weights of step {step} must be finite, got NaN or infinity in {name}.")
