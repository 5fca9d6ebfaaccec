"""Training step, in Composer's training loop."""

import math
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
from torch import Tensor

from mosaicbert.batch import MicroBatch, StepBatch
from mosaicbert.config import OptimizerConfig
from mosaicbert.train.composer import Event, Time, TimeUnit, Trainer, TrainerMode, dist, get_precision_context
from mosaicbert.train.composer_model import MaskedLmComposerModel
from mosaicbert.train.distributed import defer_all_reduce, gradient_norm, gradient_scale
from mosaicbert.train.faults.log import SkippedStepLog
from mosaicbert.train.faults.spike_detector import SpikeDetector
from mosaicbert.train.optimizers import update_unless
from mosaicbert.train.progress.clock import TrainingClock
from mosaicbert.train.progress.lr_schedule import learning_rate_fraction
from mosaicbert.train.progress.run_progress import RunProgress, StepReport
from mosaicbert.train.signals import StopRequest


class StepTrainer(Trainer):
    """Composer's Trainer with a training step that normalizes the loss over the global batch.

    Three methods of Composer 0.32's loop are replaced. They communicate counts that every rank already has
    (`StepBatch.global_num_masked` and others), wait for the device each time, and copy every micro-batch. Here a step
    communicates once, and the optimizer skips an update that is not finite. The host reads the results of a step
    after it has enqueued the next one, or at once on a synchronization step (`SyncPolicy`).

    Args:
        progress: Progress of the run, which each step advances.
        clock: Training clock of this process.
        stop: Stop request of this process.
        composer_model: Model to train.
        optimizer_config: Optimizer section of the recipe, for the learning rate schedule.
        spike_detector: Spike detector, which checks the loss and the gradient norm of each step.
        skipped_steps: Log of the steps that do not change the weights.
        keep_gradients: Whether gradients keep their memory from step to step, which CUDA graphs require.
        arguments: Arguments of Composer's Trainer.
    """

    def __init__(
        self,
        *,
        progress: RunProgress,
        clock: TrainingClock,
        stop: StopRequest,
        composer_model: MaskedLmComposerModel,
        optimizer_config: OptimizerConfig,
        spike_detector: SpikeDetector,
        skipped_steps: SkippedStepLog,
        keep_gradients: bool,
        **arguments: Any,
    ) -> None:
        self.progress = progress
        self.clock = clock
        self.stop = stop
        self.composer_model = composer_model
        self.optimizer_config = optimizer_config
        self.spike_detector = spike_detector
        self.skipped_steps = skipped_steps
        self.keep_gradients = keep_gradients
        self._device_type = "cuda" if torch.cuda.is_available() else "cpu"
        self._pending: _PendingStep | None = None
        super().__init__(model=composer_model, **arguments)

    def _train_batch(self, use_grad_scaling: bool) -> dict[str, Tensor]:  # noqa: ARG002
        step: StepBatch = self.state.batch
        progress, optimizer = self.progress, self.state.optimizers[0]
        lr_fraction = self._set_learning_rate(step, optimizer)
        self._clear_gradients(optimizer)
        loss_sum, num_correct = self._accumulate_gradients(step)
        grad_norm = gradient_norm(self.state.model)
        self._finalize_pending()  # the previous step, while the device computes this one
        progress.count(step.global_num_samples, step.global_num_tokens)
        if progress.is_sync_step and self._device_type == "cuda":
            torch.cuda.synchronize()  # so that the time is measured after the end of the computation
        results = self._all_reduce_results(loss_sum, num_correct, grad_norm)
        update_unless(_must_skip(results, step), optimizer)
        self._pending = _PendingStep(
            step=progress.position.steps,
            batch=step.batch,
            num_masked=step.global_num_masked,
            lr_fraction=lr_fraction,
            is_clock_early=self._device_type == "cuda" and not progress.is_sync_step,
            results=_HostCopy(results),
        )
        if progress.is_sync_step:
            self._finalize_pending()
        if progress.is_done:
            self.state.max_duration = Time(progress.position.steps, TimeUnit.BATCH)
        self.first_train_batch_complete = True
        return {}

    def _set_learning_rate(self, step: StepBatch, optimizer: torch.optim.Optimizer) -> float:
        next_position = self.progress.position_after(step.global_num_samples, step.global_num_tokens)
        lr_fraction = learning_rate_fraction(self.optimizer_config, self.progress.plan.fraction_done(next_position))
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * lr_fraction
        return lr_fraction

    def _finalize_pending(self) -> None:
        """Read and check the results of the pending step, if there is one.

        Raises:
            RollbackRequest: If the run has to resume from a checkpoint.
        """
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        loss_sum, num_correct, grad_norm, num_stop_requests, cpu_seconds, seconds, step_seconds = step.results.wait()
        progress, num_masked = self.progress, max(1, step.num_masked)
        loss = loss_sum / num_masked
        report = StepReport(
            step=step.step,
            batch=step.batch,
            loss=loss,
            accuracy=num_correct / num_masked,
            grad_norm=grad_norm,
            seconds=step_seconds,
            cpu_seconds=cpu_seconds,
            lr_fraction=step.lr_fraction,
            updated=self.spike_detector.check(step.step, step.batch, loss if step.num_masked else math.nan, grad_norm),
        )
        progress.finalize(report, seconds + step.is_clock_early * progress.step_seconds)
        progress.stop_requested = num_stop_requests > 0
        if not report.updated:
            self.skipped_steps.write(report)

    def _clear_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=not self.keep_gradients)
        if self.keep_gradients:
            for weight in self.state.model.parameters():
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad

    def _accumulate_gradients(self, step: StepBatch) -> tuple[Tensor, Tensor]:
        """Run the forward and backward passes of all micro-batches.

        The gradients are those of the mean loss over the masked tokens of the global batch.

        Returns:
            Sum of this rank's losses and number of its correct predictions, () float64 each.
        """
        model = self.state.model
        scale = gradient_scale(model) / max(1, step.global_num_masked)
        loss_sum, num_correct = torch.zeros(2, dtype=torch.float64, device=self._device_type).unbind()
        micro_batches = step.micro_batches
        for index, micro_batch in enumerate(micro_batches):
            batch = micro_batch.to(self._device_type, non_blocking=True)
            with defer_all_reduce(model, is_last=index == len(micro_batches) - 1):
                with get_precision_context(self.state.precision, self.state.precision_config):
                    outputs = cast(Callable[[MicroBatch], tuple[Tensor, Tensor]], model)(batch)
                loss = self.composer_model.loss(outputs, batch)
                (loss * scale).backward()
            loss_sum += loss.detach()
            num_correct += outputs[1]
        return loss_sum, num_correct

    def _all_reduce_results(self, loss_sum: Tensor, num_correct: Tensor, grad_norm: Tensor) -> Tensor:
        """Reduce the results of a step over the ranks, its only communication apart from the gradients.

        The results are: sum of the losses; number of correct predictions; norm of the gradient; number of ranks that
        were asked to stop; CPU time of all ranks since the previous step in seconds; and, both of rank 0 in seconds,
        wall-clock time since the run began and training time since the previous step.

        Returns:
            (7,) float64 on the device.
        """
        step_seconds, is_rank_zero = self.clock.step_seconds(), dist.get_global_rank() == 0
        host_values = [
            float(self.stop.signal is not None),
            self.clock.step_cpu_seconds(),
            is_rank_zero * self.clock.seconds,
            is_rank_zero * step_seconds,
        ]
        device_values = [loss_sum, num_correct, grad_norm.to(torch.float64) / dist.get_world_size()]
        # Filled by kernels, because a copy from memory that is not pinned may wait for the device.
        host_tensors = [torch.full((), value, dtype=torch.float64, device=self._device_type) for value in host_values]
        results = torch.stack([*device_values, *host_tensors])
        dist.all_reduce(results, reduce_operation="SUM")
        return results

    def _iter_dataloader(self, trainer_mode: TrainerMode) -> Generator[Any, Any, None]:
        if trainer_mode != TrainerMode.TRAIN:
            yield from super()._iter_dataloader(trainer_mode)
            return
        # Every rank runs the same number of steps, so that the end needs no communication.
        steps = iter(cast(Iterable[StepBatch], self.state.dataloader))
        while True:
            self.engine.run_event(Event.BEFORE_DATALOADER)
            try:
                step = next(steps)
            except StopIteration:
                self.engine.run_marker_only_event(Event.AFTER_DATALOADER)
                return
            yield step

    def _accumulate_time_across_ranks(
        self, num_samples: int | float, num_tokens: int, batch_time: timedelta
    ) -> tuple[int, int, timedelta]:
        return int(num_samples), num_tokens, batch_time  # `data_spec` counts the samples of all ranks


class _HostCopy:
    """Asynchronous copy of a tensor to the host.

    Args:
        tensor: (N,) on any device.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor.to("cpu", non_blocking=True)  # from a GPU into pinned memory
        self._copied = torch.cuda.current_stream().record_event() if tensor.is_cuda else None

    def wait(self) -> list[float]:
        """Wait for the copy, and return the values."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._tensor.tolist()


@dataclass(frozen=True, kw_only=True)
class _PendingStep:
    """A step whose results have not been read yet.

    Attributes:
        step: Number of the step, from 1.
        batch: Number of its batch.
        num_masked: Masked tokens of the global batch.
        lr_fraction: Learning rate as a fraction of its peak.
        is_clock_early: Whether the clock was read when the device had reached the step, not when it had finished it.
        results: Copy of the results of `_all_reduce_results`.
    """

    step: int
    batch: int
    num_masked: int
    lr_fraction: float
    is_clock_early: bool
    results: _HostCopy


def _must_skip(results: Tensor, step: StepBatch) -> Tensor:
    """Return 1 if the step must be skipped, otherwise 0: () fp32 on the device.

    `SpikeDetector.check` makes the same decision later, on the host.

    Args:
        results: (6,) float64, the results of `_all_reduce_results`.
        step: Batch of the step. Without a masked token it has no loss, and is skipped.
    """
    if not step.global_num_masked:
        return torch.ones((), device=results.device)
    loss_sum, _, grad_norm, *_ = results.unbind()
    return (loss_sum + grad_norm).isfinite().logical_not().float()  # finite fp32 values have a finite sum in float64
