"""Pretraining: the stages of a run."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict

import torch
from rich.console import Console

from mosaicbert.config import TrainingFault
from mosaicbert.console import print_line
from mosaicbert.estimate import count_parameters
from mosaicbert.filesystem import lock_folder, write_file
from mosaicbert.report.metrics import read_metrics
from mosaicbert.report.plots import draw_loss
from mosaicbert.train.checkpoint.disk_space import check_disk_space
from mosaicbert.train.checkpoint.export_worker import ExportWorker
from mosaicbert.train.checkpoint.format import list_checkpoints, read_state, step_of
from mosaicbert.train.compile import choose_compilation
from mosaicbert.train.composer import dist
from mosaicbert.train.device import limit_cpu_threads, peak_flops
from mosaicbert.train.resolve import ResolvedRun
from mosaicbert.train.results import summarize
from mosaicbert.train.run_folder import check_run_folder, check_same_store, create_run_folder
from mosaicbert.train.session import Session, train
from mosaicbert.train.signals import StopRequest, TrainingStopped
from mosaicbert.train.summary import log_results, log_run_summary

_TIMEOUT_SECONDS = 1800.0  # a rank may wait while another writes a large checkpoint to a slow disk


def pretrain(resolved: ResolvedRun, console: Console, command: str = "the same call") -> None:
    """Train a run to its end and export it, or resume a run that was interrupted. Every process of the run calls it.

    On SIGTERM or SIGINT the run finishes its step, writes a checkpoint and returns.

    Args:
        resolved: Run to train, see `resolve_run`.
        console: Console to print to, on rank 0 only.
        command: Command that resumes the run, which is printed if the run is stopped.

    Raises:
        ConfigError: If the run folder is in use or cannot be written, or an option is not supported by the device.
        TrainingFault: If the training diverges repeatedly, or the result cannot be exported.
    """
    log = _make_log(console)
    if resolved.folder.is_finished:
        log(f"{resolved.folder.path}: this run is finished.")
        log_results(resolved, log)
        return
    on_gpu = torch.cuda.is_available()
    _initialize_processes(on_gpu)
    compilation = choose_compilation(resolved.recipe.model, resolved.recipe.train, resolved.precision)
    with ExitStack() as stack:
        export_worker = _open_run_folder(resolved, stack, log) if dist.get_global_rank() == 0 else None
        dist.barrier()
        peak, peak_source = peak_flops(resolved.precision)
        log_run_summary(
            resolved,
            compilation,
            device_type="cuda" if on_gpu else "cpu",
            world_size=dist.get_world_size(),
            peak_flops=peak,
            peak_source=peak_source,
            log=log,
        )
        with StopRequest() as stop:
            try:
                train(Session(resolved, compilation, peak, stop, export_worker, console, log))
            except TrainingStopped as stopped:
                if export_worker is not None:
                    export_worker.stop()
                outcome = "with a checkpoint" if stopped.has_checkpoint else "without a checkpoint of the last steps"
                log(f"stopped by {stop.signal or 'another process'}, {outcome}; to resume: {command}")
                return
        if export_worker is not None:
            _finish(resolved, export_worker, log)


def _make_log(console: Console) -> Callable[[str], None]:
    def log(line: str) -> None:
        if dist.get_global_rank() == 0:
            print_line(console, line)

    return log


def _initialize_processes(on_gpu: bool) -> None:
    if dist.get_world_size() > 1 and not on_gpu:
        limit_cpu_threads(dist.get_local_world_size())
    dist.initialize_dist("gpu" if on_gpu else "cpu", timeout=_TIMEOUT_SECONDS)


def _open_run_folder(resolved: ResolvedRun, stack: ExitStack, log: Callable[[str], None]) -> ExportWorker:
    recipe, run = resolved.recipe, resolved.folder
    create_run_folder(recipe, resolved.store)
    message = f"{run.path} must be trained by one process group at a time. Another one is running: wait, or stop it."
    stack.enter_context(lock_folder(run.path, message))
    # Again under the lock: another command may have used the folder while the store was prepared.
    check_run_folder(recipe)
    check_same_store(run, resolved.store)
    check_disk_space(run, count_parameters(recipe.model), recipe.checkpoint.keep_last)
    return ExportWorker(run, log)


def _finish(resolved: ResolvedRun, export_worker: ExportWorker, log: Callable[[str], None]) -> None:
    run = resolved.folder
    newest = list_checkpoints(run.checkpoints)[-1:]
    state = read_state(newest[0]) if newest else {}
    if not state.get("is_done"):
        raise TrainingFault(f"The last checkpoint of {run.path} cannot be written. Free disk space, and run again.")
    log("exporting, and comparing the export with the checkpoint ...")
    export_worker.finish()
    failure = export_worker.failures.get(step_of(newest[0]))
    if failure is not None:
        raise TrainingFault(
            f"The export of {run.path} failed ({failure.rstrip('.')}). Fix the cause, and run "
            "`mosaicbert export RECIPE`."
        )
    metrics = read_metrics(run.metrics)
    draw_loss(
        metrics,
        unigram_entropy=resolved.store.unigram_entropy,
        title=resolved.recipe.run_name,
        path=run.loss_figure,
    )
    result = summarize(metrics, state, resolved.store)
    write_file(run.result, (json.dumps(asdict(result), indent=2) + "\n").encode())
    log_results(resolved, log)
