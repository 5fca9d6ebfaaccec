"""Training session: construction of the trainer, and the loop over rollbacks."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from rich.console import Console
from torch import nn

from mosaicbert.config import Duration, TrainingFault
from mosaicbert.data.loading.dataset import TrainDataset
from mosaicbert.data.loading.loader import build_eval_loader, build_train_loader, open_store
from mosaicbert.model.factory import build_model
from mosaicbert.train.callbacks.checkpointer import Checkpointer
from mosaicbert.train.callbacks.loggers import build_loggers
from mosaicbert.train.callbacks.metrics import MetricsLogger
from mosaicbert.train.callbacks.progress_bar import ProgressBar
from mosaicbert.train.callbacks.rng import StepSeeder
from mosaicbert.train.checkpoint.export_worker import ExportWorker
from mosaicbert.train.checkpoint.resume import find_resume_point, restore
from mosaicbert.train.checkpoint.rollback import log_rollback
from mosaicbert.train.compile import CompileChoice, compile_model
from mosaicbert.train.composer import Callback, Event, State, dist, release_memory
from mosaicbert.train.composer_model import MaskedLmComposerModel, data_spec
from mosaicbert.train.distributed import configure_sharded, fsdp_config
from mosaicbert.train.faults.log import FaultLog, SkippedStepLog
from mosaicbert.train.faults.spike_detector import RollbackRequest, SpikeDetector
from mosaicbert.train.optimizers import build_optimizer
from mosaicbert.train.progress.clock import TrainingClock
from mosaicbert.train.progress.run_progress import RunProgress
from mosaicbert.train.progress.sync_policy import SyncPolicy
from mosaicbert.train.resolve import ResolvedRun
from mosaicbert.train.signals import StopRequest, TrainingStopped
from mosaicbert.train.trainer import StepTrainer
from mosaicbert.train_plan import has_passed

_NO_END = "1000000000ba"  # `RunProgress` determines the end of the run


@dataclass(frozen=True)
class Session:
    """Values of one session of a run, from its start or its resumption until the process ends.

    Attributes:
        resolved: Resolved run.
        compilation: Parts of the training step that are compiled.
        peak_flops: Peak of one process's device in FLOP/s.
        stop: Stop request of this process.
        export_worker: Exporter of checkpoints, on rank 0 only.
        console: Console for the progress bar.
        log: Function that prints a line, on rank 0 only.
        clock: Training clock of this process, which continues during a rollback.
    """

    resolved: ResolvedRun
    compilation: CompileChoice
    peak_flops: float
    stop: StopRequest
    export_worker: ExportWorker | None
    console: Console
    log: Callable[[str], None]
    clock: TrainingClock = field(default_factory=TrainingClock)


def train(session: Session) -> None:
    """Train to the end of the run. Roll back to an earlier checkpoint whenever the spike detector requests it.

    Args:
        session: Session of the run.

    Raises:
        TrainingStopped: If the run was asked to stop.
        TrainingFault: If rollbacks exceed `faults.max_rollbacks`.
    """
    while True:
        trainer = build_trainer(session)
        try:
            if not trainer.progress.is_done:
                trainer.fit()
            trainer.close()
            return
        except TrainingStopped:
            trainer.close()
            raise
        except RollbackRequest as cause:
            trainer.close()
            _roll_back(session, trainer, cause)
        del trainer
        release_memory()


def _roll_back(session: Session, trainer: StepTrainer, cause: RollbackRequest) -> None:
    run, config = session.resolved.folder, session.resolved.recipe.faults
    faults = FaultLog(run.faults)
    if len(faults.rollbacks()) >= config.max_rollbacks:
        raise TrainingFault(
            f"Step {cause.step} of {run.path} must not require a rollback after {config.max_rollbacks} rollbacks "
            f"(`faults.max_rollbacks`), got {cause.reason}. Lower `optimizer.peak_lr` or raise "
            f"`optimizer.warmup_fraction` under a different `run_name`, or inspect the samples in {run.faults}."
        )
    dist.barrier()  # all ranks must count the rollbacks before another one is logged
    if dist.get_global_rank() == 0:
        fault = log_rollback(run, faults, cause, config.window_steps, trainer.skipped_steps.samples_of)
        session.log(
            f"step {cause.step}: {cause.reason}. Rolling back to step {fault.resumed_step} and skipping "
            f"{len(cause.batches)} batch(es), see {run.faults}."
        )
    dist.barrier()


def build_trainer(session: Session) -> StepTrainer:
    """Build the trainer of a run at its newest valid checkpoint. All ranks call it.

    Args:
        session: Session of the run.
    """
    resolved, recipe, run = session.resolved, session.resolved.recipe, session.resolved.folder
    faults = FaultLog(run.faults)
    resume_point, checkpoint = find_resume_point(run, faults, session.export_worker, session.log)
    if session.export_worker is not None:
        session.export_worker.start()  # exports that the last session did not finish
    if resume_point.path is not None:
        session.log(f"resuming from {resume_point.path}")
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model)
    if session.compilation.is_enabled:
        compile_model(model, cuda_graphs=session.compilation.uses_cuda_graphs)
    rank, world_size = dist.get_global_rank(), dist.get_world_size()
    is_sharded = recipe.train.sharding == "fsdp" and world_size > 1
    on_gpu = torch.cuda.is_available()
    device_type = "cuda" if on_gpu else "cpu"

    store = open_store(recipe.store_folder, resolved.store)
    train_loader = build_train_loader(
        resolved.plan,
        recipe.data,
        store,
        seed=recipe.seed,
        micro_batch_tokens=recipe.train.micro_batch_tokens,
        rank=rank,
        world_size=world_size,
        first_step=resume_point.step,
        skipped_batches=resume_point.skipped_batches,
    )
    eval_loader = build_eval_loader(
        recipe.eval,
        store,
        max_seq_len=recipe.data.max_seq_len,
        micro_batch_tokens=recipe.train.micro_batch_tokens,
        rank=rank,
        world_size=world_size,
    )

    eval_interval = recipe.eval.interval_length
    intervals = [eval_interval, recipe.checkpoint.interval_length]
    sync_policy = SyncPolicy(resolved.plan, recipe.log.interval_steps, intervals)
    progress, spike_detector = RunProgress(resolved.plan, sync_policy), SpikeDetector(recipe.faults)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)
        trainer = StepTrainer(
            progress=progress,
            clock=session.clock,
            stop=session.stop,
            composer_model=MaskedLmComposerModel(model, cpu_autocast=resolved.precision),
            optimizer_config=recipe.optimizer,
            spike_detector=spike_detector,
            skipped_steps=SkippedStepLog(faults, cast(TrainDataset, train_loader.dataset).samples_of),
            keep_gradients=session.compilation.uses_cuda_graphs,
            train_dataloader=data_spec(train_loader, device_type),
            eval_dataloader=data_spec(eval_loader, device_type),
            eval_interval=partial(_is_eval_step, progress, eval_interval),
            max_duration=_NO_END,
            optimizers=build_optimizer(model, recipe.optimizer, resolved.precision),
            callbacks=_build_callbacks(session, progress, spike_detector, model, faults),
            loggers=build_loggers(recipe.log.loggers, run, recipe.run_name),
            run_name=recipe.run_name,
            progress_bar=False,
            spin_dataloaders=False,
            device="gpu" if on_gpu else "cpu",
            precision="amp_bf16" if on_gpu and resolved.precision == torch.bfloat16 else "fp32",
            device_train_microbatch_size=1,  # has no effect, because the data loader creates the micro-batches
            seed=recipe.seed,
            parallelism_config=fsdp_config(model) if is_sharded else None,
        )
    if is_sharded:
        configure_sharded(model)
    restore(trainer, resume_point, checkpoint)
    return trainer


def _build_callbacks(
    session: Session, progress: RunProgress, spike_detector: SpikeDetector, model: nn.Module, faults: FaultLog
) -> list[Callback]:
    recipe, run = session.resolved.recipe, session.resolved.folder
    metrics = MetricsLogger(
        run.metrics,
        model=recipe.model,
        peak_lr=recipe.optimizer.peak_lr,
        progress=progress,
        clock=session.clock,
        spike_detector=spike_detector,
        num_rollbacks=len(faults.rollbacks()),
        peak_flops=session.peak_flops,
        log=session.log,
    )
    checkpointer = Checkpointer(
        recipe.checkpoint,
        run=run,
        progress=progress,
        spike_detector=spike_detector,
        model=model,
        faults=faults,
        export_worker=session.export_worker,
        log=session.log,
    )
    return [StepSeeder(recipe.seed), metrics, ProgressBar(progress, metrics, session.console), checkpointer]


def _is_eval_step(progress: RunProgress, interval: Duration, _state: State, event: Event) -> bool:
    if event != Event.BATCH_END or not progress.is_finalized:
        return False
    return progress.is_done or has_passed(interval, progress.last_sync_position, progress.position)
