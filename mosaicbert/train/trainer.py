"""The training step, in Composer's loop."""

import math
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
from torch import Tensor

from mosaicbert.batch import MicroBatch, StepBatch
from mosaicbert.data.loading.collator import TrainDataset
from mosaicbert.train.composer import Event, Time, TimeUnit, Trainer, TrainerMode, dist, get_precision_context
from mosaicbert.train.composer_model import MaskedLmTrainee
from mosaicbert.train.distributed import delay_exchange, gradient_norm, gradient_scale
from mosaicbert.train.faults.log import SkippedSteps
from mosaicbert.train.optimizers import update_unless
from mosaicbert.train.progress import Clock, Course, StepReport
from mosaicbert.train.signals import StopRequest


class StepTrainer(Trainer):
    """Composer's Trainer with this package's step: one loss over the global batch, and nobody waits for the device.

    Three methods of Composer 0.32's loop are replaced. They ask the other ranks for counts that every rank knows
    (such as `StepBatch.global_masked`), wait for the device each time they do, and copy every micro-batch. Here a step
    asks once, the device itself withholds an update that is not finite, and the host reads the numbers of a step when
    it has given the device the next one to do; or at once, if something is due after it (`Course.is_due`).

    Args:
        course: of the run; each step advances it.
        clock: of this process.
        stop: what this process was asked.
        trainee: the model.
        steps: what the training data loader reads.
        skipped: takes down the steps that do not change the weights.
        keeps_gradients: add up in memory of the gradients' own, since a CUDA graph writes over what it gave before.
        arguments: of Composer's Trainer.
    """

    def __init__(
        self,
        *,
        course: Course,
        clock: Clock,
        stop: StopRequest,
        trainee: MaskedLmTrainee,
        steps: TrainDataset,
        skipped: SkippedSteps,
        keeps_gradients: bool,
        **arguments: Any,
    ) -> None:
        self.course = course
        self.clock = clock
        self.stop = stop
        self.trainee = trainee
        self.steps = steps
        self.skipped = skipped
        self.keeps_gradients = keeps_gradients
        self._place = "cuda" if torch.cuda.is_available() else "cpu"
        self._unsettled: _Unsettled | None = None
        super().__init__(model=trainee, **arguments)

    def _train_batch(self, use_grad_scaling: bool) -> dict[str, Tensor]:  # noqa: ARG002
        step: StepBatch = self.state.batch
        course, optimizer = self.course, self.state.optimizers[0]
        share = course.learning_rate_share(step.global_samples, step.global_tokens)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share
        self._clear_gradients(optimizer)
        loss_sum, num_right = self._accumulate_gradients(step)
        norm = gradient_norm(self.state.model)
        self._settle()  # the step before, while the device is at this one
        course.count(step.global_samples, step.global_tokens)
        if course.is_due and self._place == "cuda":
            torch.cuda.synchronize()  # so that the clock is read when the work is done
        numbers = self._agree(loss_sum, num_right, norm)
        update_unless(_is_unusable(numbers, step), optimizer)
        self._unsettled = _Unsettled(
            step=course.position.steps,
            batch=step.batch,
            num_masked=step.global_masked,
            learning_rate_share=share,
            numbers=_Reading(numbers),
        )
        if course.is_due:
            self._settle()
        if course.is_done:
            self.state.max_duration = Time(course.position.steps, TimeUnit.BATCH)
        self.first_train_batch_complete = True
        return {}

    def _settle(self) -> None:
        """Waits for the numbers of the last step, if they have not been read yet, and judges them.

        Raises:
            RollBack: the run is to go back.
        """
        if self._unsettled is None:
            return
        step, self._unsettled = self._unsettled, None
        loss_sum, num_right, norm, stop, seconds, lap = step.numbers.wait()
        course, masked = self.course, max(1, step.num_masked)
        loss = loss_sum / masked
        report = StepReport(
            step=step.step,
            batch=step.batch,
            loss=loss,
            accuracy=num_right / masked,
            grad_norm=norm,
            seconds=lap,
            learning_rate_share=step.learning_rate_share,
            updated=course.guard.judge(step.step, step.batch, loss if step.num_masked else math.nan, norm),
        )
        course.settle(report, seconds)
        course.stop = stop > 0
        if not report.updated:
            self.skipped.note(report)

    def _clear_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=not self.keeps_gradients)
        if self.keeps_gradients:
            for weight in self.state.model.parameters():
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad

    def _accumulate_gradients(self, step: StepBatch) -> tuple[Tensor, Tensor]:
        """Runs all micro-batches; gradients are those of the mean over the global batch's masked tokens.

        Returns:
            The sum of this rank's losses, and how many of its masked tokens were right; () float64 each.
        """
        model = self.state.model
        scale = gradient_scale(model) / max(1, step.global_masked)
        loss_sum, num_right = torch.zeros(2, dtype=torch.float64, device=self._place).unbind()
        micro_batches = step.micro_batches
        for number, micro_batch in enumerate(micro_batches):
            batch = micro_batch.to(self._place, non_blocking=True)
            with delay_exchange(model, is_last=number == len(micro_batches) - 1):
                with get_precision_context(self.state.precision, self.state.precision_config):
                    outputs = cast(Callable[[MicroBatch], tuple[Tensor, Tensor]], model)(batch)
                loss = self.trainee.loss(outputs, batch)
                (loss * scale).backward()
            loss_sum += loss.detach()
            num_right += outputs[1]
        return loss_sum, num_right

    def _agree(self, loss_sum: Tensor, num_right: Tensor, norm: Tensor) -> Tensor:
        """Makes numbers of a step those of all ranks together, in the only exchange of a step but the gradients'.

        Returns:
            (6,) float64: loss and right tokens summed over the ranks; the gradient's norm; how many ranks were asked to
            stop; seconds since the run began, and training seconds since the step before, both of rank 0.
        """
        lap, is_first = self.clock.lap(), dist.get_global_rank() == 0
        own = [float(self.stop.signal is not None), is_first * self.clock.seconds, is_first * lap]
        measured = [loss_sum, num_right, norm.to(torch.float64) / dist.get_world_size()]
        # Filled in by kernels: a copy from memory that is not pinned may wait for the device.
        known = [torch.full((), number, dtype=torch.float64, device=self._place) for number in own]
        numbers = torch.stack([*measured, *known])
        dist.all_reduce(numbers, reduce_operation="SUM")
        return numbers

    def _iter_dataloader(self, trainer_mode: TrainerMode) -> Generator[Any, Any, None]:
        if trainer_mode != TrainerMode.TRAIN:
            yield from super()._iter_dataloader(trainer_mode)
            return
        # Every rank makes the same steps, so none need ask whether another has come to its end.
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


class _Reading:
    """Numbers on their way to the host.

    Args:
        numbers: (N,) on any device.
    """

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = numbers.to("cpu", non_blocking=True)  # from a GPU into pinned memory
        self._arrived = torch.cuda.current_stream().record_event() if numbers.is_cuda else None

    def wait(self) -> list[float]:
        """The numbers, as soon as they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._numbers.tolist()


@dataclass(frozen=True, kw_only=True)
class _Unsettled:
    """A step whose numbers have not been read yet.

    Attributes:
        step: its number, from 1.
        batch: number of its batch.
        num_masked: masked tokens of the global batch.
        learning_rate_share: of the peak.
        numbers: of `_agree`.
    """

    step: int
    batch: int
    num_masked: int
    learning_rate_share: float
    numbers: _Reading


def _is_unusable(numbers: Tensor, step: StepBatch) -> Tensor:
    """Whether a step may not change the weights, as the guard will judge: () fp32, 1 or 0, on the device.

    Args:
        numbers: of `_agree`; a sum of two finite ones is finite.
        step: without a masked token, its loss says nothing.
    """
    if not step.global_masked:
        return torch.ones((), device=numbers.device)
    loss_sum, _, norm, *_ = numbers.unbind()
    return (loss_sum + norm).isfinite().logical_not().float()
