"""Execution of a scoring plan in parallel processes, including checkpoints that appear during the scoring."""

import os
import time

import torch
from rich.console import Console
from rich.live import Live

from mosaicbert.console import print_line
from mosaicbert.finetune.glue.checkpoints import CheckpointToScore
from mosaicbert.finetune.glue.display import describe_score, progress_table
from mosaicbert.finetune.glue.job import run_job
from mosaicbert.finetune.glue.job_queue import JobEvent, JobQueue
from mosaicbert.finetune.glue.scoring_plan import ScoringPlan
from mosaicbert.processes import count_cpus

_POLL_SECONDS = 10.0  # between two polls for new checkpoints


def run_jobs(plan: ScoringPlan, console: Console) -> bool:
    """Run all jobs of a plan, including those of checkpoints that appear during the scoring.

    Args:
        plan: Plan that creates the jobs and records their results.
        console: Console for progress and scores.

    Returns:
        True if a job has failed in all attempts.
    """
    has_failed, may_add_checkpoints = False, True
    with (
        JobQueue(run_job, worker_environments(plan.config.num_processes)) as queue,
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
        plan.delete_unused_models()
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
