"""The training step, in Composer's loop."""

import math
from collections.abc import Callable, Generator, Iterable
from datetime import timedelta
from typing import Any, cast

import torch
from composer import Event, Time, TimeUnit, Trainer
from composer.core import get_precision_context
from composer.core.types import TrainerMode
from composer.utils import dist
from torch import Tensor

from mosaicbert.batch import Batch, Step
from mosaicbert.data.batches import TrainSteps
from mosaicbert.train.adapter import MaskedLmTrainee
from mosaicbert.train.course import Clock, Course, StepReport
from mosaicbert.train.parallel import delay_exchange, gradient_norm, gradient_scale
from mosaicbert.train.stopping import StopRequest


class StepTrainer(Trainer):
    """Composer's Trainer with this package's step: one loss over the global batch, judged before it changes weights.

    Three methods of Composer 0.32's loop are replaced. They ask the other ranks for counts that every rank knows
    (`Step.global_masked` and its like), wait for the device each time they do, and copy every micro-batch; here a step
    asks and waits once.

    Args:
        course: of the run; each step advances it.
        clock: of this process.
        stop: what this process was asked.
        trainee: the model.
        steps: what the training data loader reads.
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
        steps: TrainSteps,
        keeps_gradients: bool,
        **arguments: Any,
    ) -> None:
        self.course = course
        self.clock = clock
        self.stop = stop
        self.trainee = trainee
        self.steps = steps
        self.keeps_gradients = keeps_gradients
        self._place = "cuda" if torch.cuda.is_available() else "cpu"
        super().__init__(model=trainee, **arguments)

    def _train_batch(self, use_grad_scaling: bool) -> dict[str, Tensor]:  # noqa: ARG002
        step: Step = self.state.batch
        course, optimizer = self.course, self.state.optimizers[0]
        share = course.learning_rate_share(step.global_samples, step.global_tokens)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share
        self._clear_gradients(optimizer)
        is_logged = course.is_logged(step.global_samples, step.global_tokens)
        sums = self._accumulate_gradients(step)
        loss_sum, num_right, norm, stop, seconds, step_seconds = self._agree(*sums, gradient_norm(self.state.model))
        masked = max(1, step.global_masked)
        loss = loss_sum / masked
        number = course.position.steps + 1
        updated = course.guard.judge(number, step.batch, loss if step.global_masked else math.nan, norm)
        if updated:
            optimizer.step()
        report = StepReport(
            loss=loss,
            accuracy=num_right / masked if is_logged else None,
            grad_norm=norm,
            seconds=step_seconds,
            learning_rate_share=share,
            updated=updated,
        )
        course.advance(report, samples=step.global_samples, tokens=step.global_tokens, seconds=seconds)
        course.stop = stop > 0
        if course.is_done:
            self.state.max_duration = Time(course.position.steps, TimeUnit.BATCH)
        self.first_train_batch_complete = True
        return {}

    def _clear_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=not self.keeps_gradients)
        if self.keeps_gradients:
            for weight in self.state.model.parameters():
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad

    def _accumulate_gradients(self, step: Step) -> tuple[Tensor, Tensor]:
        """Runs all micro-batches; gradients are those of the mean over the global batch's masked tokens.

        Returns:
            The sum of this rank's losses, and how many of its masked tokens were right; () float64 each.
        """
        model, device = self.state.model, self.state.device
        scale = gradient_scale(model) / max(1, step.global_masked)
        loss_sum, num_right = (device.tensor_to_device(torch.zeros((), dtype=torch.float64)) for _ in range(2))
        micro_batches = step.micro_batches
        for number, micro_batch in enumerate(micro_batches):
            batch = micro_batch.to(self._place, non_blocking=True)
            with delay_exchange(model, is_last=number == len(micro_batches) - 1):
                with get_precision_context(self.state.precision, self.state.precision_config):
                    outputs = cast(Callable[[Batch], tuple[Tensor, Tensor]], model)(batch)
                loss = self.trainee.loss(outputs, batch)
                (loss * scale).backward()
            loss_sum += loss.detach()
            num_right += outputs[1]
        return loss_sum, num_right

    def _agree(self, loss_sum: Tensor, num_right: Tensor, norm: Tensor) -> list[float]:
        """Makes numbers of a step those of all ranks together, in the only exchange of a step but the gradients'.

        Returns:
            Loss and right tokens summed over the ranks; the gradient's norm; how many ranks were asked to stop; seconds
            since the run began, and training seconds since the step before, both of rank 0.
        """
        lap, is_first = self.clock.lap(), dist.get_global_rank() == 0
        own = [float(self.stop.signal is not None), is_first * self.clock.seconds, is_first * lap]
        measured = torch.stack([loss_sum, num_right, norm.to(torch.float64) / dist.get_world_size()])
        numbers = torch.cat([measured, self.state.device.tensor_to_device(torch.tensor(own, dtype=torch.float64))])
        dist.all_reduce(numbers, reduce_operation="SUM")
        return numbers.tolist()

    def _iter_dataloader(self, trainer_mode: TrainerMode) -> Generator[Any, Any, None]:
        if trainer_mode != TrainerMode.TRAIN:
            yield from super()._iter_dataloader(trainer_mode)
            return
        # Every rank makes the same steps, so none need ask whether another has come to its end.
        steps = iter(cast(Iterable[Step], self.state.dataloader))
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
