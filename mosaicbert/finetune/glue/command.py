"""`mosaicbert glue`: fine-tunes checkpoints on the tasks of GLUE, side by side, and keeps the ledger of scores."""

import hashlib
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import torch
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mosaicbert.config.glue import MNLI, SEEDS, TASKS, GlueConfig, GlueRecipe
from mosaicbert.filesystem import lock
from mosaicbert.finetune.glue.checkpoints import Checkpoint, Target
from mosaicbert.finetune.glue.dataset import FoundTask, find_tasks
from mosaicbert.finetune.glue.job import PARTIAL, GlueJob, GlueResult, describe_settings, fingerprint, score
from mosaicbert.finetune.glue.job_queue import Event, Job, Queue
from mosaicbert.finetune.glue.score_table import scores_table
from mosaicbert.finetune.model import load_tokenizer
from mosaicbert.processes import count_cores
from mosaicbert.scores.records import PRETRAINED, Score, append_score, read_scores

_INTERRUPTED = 130  # what shells say of SIGINT
_POLL_SECONDS = 10.0  # between two looks for new checkpoints
_KEPT = re.compile(rf"[0-9a-f]{{12}}-[0-9a-f]{{12}}({re.escape(PARTIAL)})?")  # names of models fine-tuned on MNLI


def glue(recipe: GlueRecipe, console: Console) -> int:
    """Scores what a recipe names, and prints the scores; what is in the ledger already is not done again.

    Args:
        recipe: of the scoring.
        console: to print to.

    Returns:
        The exit code: 1 if a job has failed twice, 130 if the user has stopped it.

    Raises:
        ConfigError: model or data are not there, or another process scores the same model.
    """
    target, config = Target(recipe), recipe.glue
    found, left_out = find_tasks(config)
    for task, why in left_out.items():
        _say(console, f"{TASKS[task].title} is left out: {why}.")
    target.work.mkdir(parents=True, exist_ok=True)
    with lock(target.work, f"{target.scores}: another process is adding scores; wait, or stop it."):
        plan = _Plan(config, target, found)
        plan.require_model()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Composer's ends the program where it stands
        try:
            failed = _run(plan, console)
        except KeyboardInterrupt:
            _say(console, "stopped; the same command goes on from here.")
            return _INTERRUPTED
    _print_scores(plan, console)
    _say(console, f"scores: {target.scores}")
    return 1 if failed else 0


def _print_scores(plan: "_Plan", console: Console) -> None:
    """Prints a table per checkpoint; and another with the other kind of start, if the ledger has such scores."""
    config, seeds = plan.config, {task: len(plan.seeds(task)) for task in plan.found}
    other = _Plan(replace(config, chain=not config.chain), plan.target, plan.found)
    for checkpoint in sorted(plan.checkpoints, key=lambda checkpoint: checkpoint.step or 0):
        console.print(scores_table(checkpoint.label, plan.scores_of(checkpoint), seeds))
        scores = other.scores_of(checkpoint)
        if any(TASKS[entry.task].from_mnli for entry in scores):
            title = f"{checkpoint.label}, glue.chain={str(other.config.chain).lower()}"
            console.print(scores_table(title, scores, seeds))


def environments(num_processes: int | None) -> list[dict[str, str]]:
    """What sets the processes of a queue apart: one for each GPU, or a share of the cores.

    Args:
        num_processes: how many; None: one per GPU, or one on a machine without. More than GPUs share them.
    """
    num_gpus = torch.cuda.device_count()
    if num_gpus:
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        # CUDA takes them up to the first that it does not know.
        gpus = visible[:num_gpus] if len(visible) >= num_gpus else [str(number) for number in range(num_gpus)]
        wanted = num_processes or num_gpus
        return [{"CUDA_VISIBLE_DEVICES": gpus[number % num_gpus]} for number in range(wanted)]
    wanted = num_processes or 1
    return [{"OMP_NUM_THREADS": str(max(1, count_cores() // wanted))} for _ in range(wanted)]


class _Plan:
    """Which jobs a recipe wants, and which of them are done.

    Attributes:
        checkpoints: seen so far.
        settings: of the fine-tuning of each task.
        protocols: their fingerprints.
        ledger: all lines of scores.jsonl.
    """

    def __init__(self, config: GlueConfig, target: Target, found: dict[str, FoundTask]) -> None:
        self.config = config
        self.target = target
        self.found = found
        self.checkpoints: list[Checkpoint] = []
        self.settings = {task: describe_settings(config, task, found) for task in found}
        self.protocols = {task: fingerprint(settings) for task, settings in self.settings.items()}
        self.ledger = read_scores(target.scores)

    def require_model(self) -> None:
        """Refuses a model that cannot be loaded before any process is started for it.

        Raises:
            ConfigError: it is not there, or has no tokenizer.
        """
        for checkpoint in self.target.checkpoints()[:1]:
            if self.wanted(checkpoint):
                load_tokenizer(checkpoint.model)

    def look(self, queue: Queue) -> None:
        """Gives the queue the jobs of checkpoints that are new, or have been trained again."""
        known = {checkpoint.model: checkpoint for checkpoint in self.checkpoints}
        for checkpoint in self.target.checkpoints():
            before = known.get(checkpoint.model)
            if before is not None and not self.target.has_replaced(before):
                continue
            if before is not None:
                self.checkpoints.remove(before)
                queue.forget([_name(before, task, seed) for task in self.found for seed in self.seeds(task)])
            self.checkpoints.append(checkpoint)
            queue.add(self._jobs(checkpoint))

    def scores_of(self, checkpoint: Checkpoint) -> list[Score]:
        """What the ledger has of a checkpoint that was fine-tuned as the recipe wants it."""
        return [
            entry
            for entry in self.ledger
            if entry.step == checkpoint.step
            # A run's ledger lies in its folder, which may have been moved, or be called by another path.
            and (self.target.run is not None or entry.model == checkpoint.identity)
            and (
                checkpoint.pretraining is None
                or (entry.pretraining is not None and entry.pretraining.is_same_training(checkpoint.pretraining))
            )
            and entry.protocol == self.protocols.get(entry.task)
            and entry.seed in self.seeds(entry.task)
        ]

    def seeds(self, task: str) -> tuple[int, ...]:
        """Those that a task is fine-tuned with."""
        return SEEDS[: self.config.protocol_of(task).num_seeds]

    def wanted(self, checkpoint: Checkpoint) -> list[tuple[str, int]]:
        """Task and seed of all that is still to be scored."""
        done = {(entry.task, entry.seed) for entry in self.scores_of(checkpoint)}
        return [(task, seed) for task in self.found for seed in self.seeds(task) if (task, seed) not in done]

    def record(self, job: Job, result: GlueResult) -> Score | None:
        """Puts a result into the ledger, unless it is there, or is of weights that the run has replaced."""
        payload: GlueJob = job.payload
        checkpoint = payload.checkpoint
        is_outdated = checkpoint not in self.checkpoints or self.target.has_replaced(checkpoint)
        if is_outdated or (payload.task, payload.seed) not in self.wanted(checkpoint):
            return None
        entry = Score(
            model=checkpoint.identity,
            step=checkpoint.step,
            task=payload.task,
            seed=payload.seed,
            metrics=result.metrics,
            protocol=self.protocols[payload.task],
            settings=self.settings[payload.task],
            start=MNLI if self.config.starts_from_mnli(payload.task) else PRETRAINED,
            is_partial=result.is_partial
            or (self.config.starts_from_mnli(payload.task) and self._has_part_of_mnli(checkpoint)),
            seconds=result.seconds,
            pretraining=checkpoint.pretraining,
            environment=result.environment,
            finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        append_score(self.target.scores, entry)
        self.ledger.append(entry)
        return entry

    def tidy(self) -> None:
        """Removes the models fine-tuned on MNLI that no task needs any more, those of other sittings among them."""
        needed = {
            self._kept(checkpoint)
            for checkpoint in self.checkpoints
            if any(self.config.starts_from_mnli(task) for task, _ in self.wanted(checkpoint))
        }
        for path in self.target.work.iterdir():
            if _KEPT.fullmatch(path.name) and path.with_name(path.name.removesuffix(PARTIAL)) not in needed:
                shutil.rmtree(path, ignore_errors=True)

    def _has_part_of_mnli(self, checkpoint: Checkpoint) -> bool:
        """Whether the model fine-tuned on MNLI saw less than all of it, which of a Hub dataset only its job knows."""
        return any(entry.is_partial for entry in self.scores_of(checkpoint) if entry.task == MNLI)

    def _jobs(self, checkpoint: Checkpoint) -> Iterator[Job]:
        wanted = self.wanted(checkpoint)
        chained = any(self.config.starts_from_mnli(task) for task, _ in wanted)
        first = (MNLI, SEEDS[0])
        kept = self._kept(checkpoint) if chained else None
        if kept is not None and first in wanted:
            shutil.rmtree(kept, ignore_errors=True)  # what an interrupted sitting left; the job makes it anew
        elif kept is not None and not kept.is_dir():
            wanted.append(first)  # it has been scored, but its weights are gone
        # What others wait for comes first, then what takes longest.
        wanted.sort(key=lambda pair: (pair != first, -self._work(pair[0])))
        for task, seed in wanted:
            begin = kept if self.config.starts_from_mnli(task) else None
            payload = GlueJob(
                config=self.config,
                checkpoint=checkpoint,
                task=task,
                seed=seed,
                model=checkpoint.model if begin is None else str(begin),
                keep=kept if (task, seed) == first else None,
            )
            needs = None if begin is None or begin.is_dir() else _name(checkpoint, *first)
            yield Job(name=_name(checkpoint, task, seed), payload=payload, needs=needs)

    def _work(self, task: str) -> int:
        return TASKS[task].num_examples["train"] * self.config.protocol_of(task).epochs

    def _kept(self, checkpoint: Checkpoint) -> Path:
        which = hashlib.sha256(repr(checkpoint).encode()).hexdigest()[:12]
        return self.target.work / f"{which}-{self.protocols[MNLI]}"


def _name(checkpoint: Checkpoint, task: str, seed: int) -> str:
    return f"{checkpoint.label} / {TASKS[task].title} / seed {seed}"


def _run(plan: _Plan, console: Console) -> bool:
    """Does all jobs, those of checkpoints that come meanwhile among them; returns whether one has failed for good."""
    has_failed, is_growing = False, True
    with (
        Queue(score, environments(plan.config.num_processes)) as queue,
        Live(console=console, auto_refresh=False, transient=True) as live,
    ):
        while is_growing or queue.pending:
            is_growing = plan.target.is_growing()  # before looking: what comes with the run's end is seen
            plan.look(queue)
            looked = time.monotonic()
            for event in queue.events():
                if event is not None and not _drop_removed(plan, queue, event, console):
                    has_failed |= event.kind in ("failed", "left out")
                    _report(plan, event, console)
                if console.is_terminal:
                    live.update(_progress(plan, queue), refresh=True)
                if is_growing and time.monotonic() - looked > _POLL_SECONDS:
                    plan.look(queue)
                    looked = time.monotonic()
            if is_growing:
                time.sleep(_POLL_SECONDS)
    return has_failed


def _drop_removed(plan: _Plan, queue: Queue, event: Event, console: Console) -> bool:
    """Whether a job has come to nothing because the run keeps its checkpoint no longer; its other jobs then go, too."""
    checkpoint: Checkpoint = event.job.payload.checkpoint
    if event.kind in ("started", "done") or not plan.target.has_removed(checkpoint):
        return False
    queue.pending = [job for job in queue.pending if job.payload.checkpoint != checkpoint]
    _say(console, f"{checkpoint.label}: the run has removed this checkpoint; what is missing is left out.")
    return True


def _report(plan: _Plan, event: Event, console: Console) -> None:
    if event.kind == "started":
        return
    line = f"{event.job.name}: {event.kind}"
    if event.kind == "done":
        entry = plan.record(event.job, event.result)
        plan.tidy()
        if entry is None:
            return
        metrics = ", ".join(f"{name} {100 * value:.2f}" for name, value in entry.metrics.items())
        line = f"{event.job.name}: {metrics} ({timedelta(seconds=round(entry.seconds))})"
    else:
        line += f": {event.reason}"
        if event.kind == "failed" and event.details:
            (plan.target.work / "failures.log").open("a").write(f"{event.job.name}\n{event.details}\n")
            line += f"; see {plan.target.work / 'failures.log'}"
    _say(console, line)


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _progress(plan: _Plan, queue: Queue) -> Table:
    left = sum(len(plan.wanted(checkpoint)) for checkpoint in plan.checkpoints)
    total = len(plan.checkpoints) * sum(len(plan.seeds(task)) for task in plan.found)
    table = Table(title=f"{total - left} of {total} scores", box=None)
    for column in ("under way", "since", "waiting"):
        table.add_column(column)
    waiting = str(len(queue.pending))
    for number, (job, seconds) in enumerate(queue.running):
        table.add_row(Text(job.name), str(timedelta(seconds=round(seconds))), waiting if number == 0 else "")
    return table
