"""Execution of a scoring plan in parallel processes, including checkpoints that appear during the scoring."""

import os
import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.live import Live

from mosaicbert.console import print_line
from mosaicbert.filesystem import lock_folder
from mosaicbert.processes import count_cpus
from mosaicbert.scoring.checkpoints import CheckpointSource, CheckpointToScore
from mosaicbert.scoring.display import describe_score, progress_table
from mosaicbert.scoring.job_queue import JobEvent, JobQueue
from mosaicbert.scoring.plan import ScoringPlan, ScoringResult

INTERRUPTED = 130  # exit code of shells after SIGINT
_POLL_SECONDS = 10.0  # between two polls for new checkpoints


def run_plan(
    plan: ScoringPlan, function: Callable[[Any], ScoringResult], num_processes: int | None, console: Console
) -> int:
    """Run all jobs of a plan, including those of checkpoints that appear during the scoring.

    Args:
        plan: Plan that creates the jobs and records their results.
        function: Function of a module that runs a job, called with the payload in another process.
        num_processes: Number of processes, see `worker_environments`.
        console: Console for progress and scores.

    Returns:
        Exit code: 1 if a job has failed in all attempts, `INTERRUPTED` if the user has pressed Ctrl-C, else 0.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Composer's handler exits immediately
    try:
        return int(_run_jobs(plan, function, num_processes, console))
    except KeyboardInterrupt:
        print_line(console, "Interrupted. Run the same command again to continue.")
        return INTERRUPTED


@contextmanager
def lock_scores(source: CheckpointSource) -> Generator[None]:
    """Create the work folder of a source, and lock the score records of its folder.

    Args:
        source: Source of the checkpoints.

    Raises:
        ConfigError: If another process scores the same model.
    """
    source.work_folder.mkdir(parents=True, exist_ok=True)
    message = f"{source.scores_path} is in use by another process. Wait for it to finish, or stop it."
    with lock_folder(source.work_folder, message):
        yield


def _run_jobs(
    plan: ScoringPlan, function: Callable[[Any], ScoringResult], num_processes: int | None, console: Console
) -> bool:
    has_failed, may_add_checkpoints = False, True
    with (
        JobQueue(function, worker_environments(num_processes)) as queue,
        Live(console=console, auto_refresh=False, transient=True) as live,
    ):
        while may_add_checkpoints or queue.pending:
            # Checked before the poll, so that the poll after the end of the run finds its last checkpoint.
            may_add_checkpoints = plan.source.may_add_checkpoints()
            plan.update_queue(queue)
            last_poll = time.monotonic()
            for event in queue.events():
                if event is not None and not _skip_removed_checkpoint(plan, queue, event, console):
                    has_failed |= event.kind in ("failed", "skipped")
                    _handle_event(plan, event, console)
                if console.is_terminal:
                    live.update(progress_table(plan, queue), refresh=True)
                if may_add_checkpoints and time.monotonic() - last_poll > _POLL_SECONDS:
                    plan.update_queue(queue)
                    last_poll = time.monotonic()
            if may_add_checkpoints:
                time.sleep(_POLL_SECONDS)
    return has_failed


def worker_environments(num_processes: int | None) -> list[dict[str, str]]:
    """Build the environment variables of each process, which assign a GPU or a fraction of the CPUs.

    Args:
        num_processes: Number of processes. None starts one process per GPU, or one process on a machine without GPUs.
            Several processes share a GPU if there are more processes than GPUs.
    """
    num_gpus = torch.cuda.device_count()
    if num_gpus:
        visible_gpus = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        # CUDA ignores all names after the first invalid one, so that there may be more names than GPUs.
        gpus = visible_gpus[:num_gpus] if len(visible_gpus) >= num_gpus else [str(index) for index in range(num_gpus)]
        num_workers = num_processes or num_gpus
        return [{"CUDA_VISIBLE_DEVICES": gpus[index % num_gpus]} for index in range(num_workers)]
    num_workers = num_processes or 1
    return [{"OMP_NUM_THREADS": str(max(1, count_cpus() // num_workers))} for _ in range(num_workers)]


def _skip_removed_checkpoint(plan: ScoringPlan, queue: JobQueue, event: JobEvent, console: Console) -> bool:
    checkpoint: CheckpointToScore = event.job.payload.checkpoint
    if event.kind in ("started", "done") or not plan.source.has_removed(checkpoint):
        return False
    queue.pending = [job for job in queue.pending if job.payload.checkpoint != checkpoint]
    print_line(console, f"{checkpoint.label}: the run has deleted this checkpoint. Its remaining jobs are skipped.")
    return True


def _handle_event(plan: ScoringPlan, event: JobEvent, console: Console) -> None:
    if event.kind == "started":
        return
    if event.kind == "done":
        score = plan.record(event.job, event.result)
        plan.finish_job()
        if score is not None:
            print_line(console, f"{event.job.name}: {describe_score(score)}")
        return
    line = f"{event.job.name}: {event.kind}: {event.reason}"
    if event.kind == "failed" and event.details:
        log = plan.source.work_folder / "failures.log"
        with log.open("a") as file:
            file.write(f"{event.job.name}\n{event.details}\n")
        line += f"; see {log}"
    print_line(console, line)
