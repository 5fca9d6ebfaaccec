"""Scoring plan: jobs of a recipe, their dependencies and their recorded scores."""

import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path

from mosaicbert.config.glue import MNLI, SEEDS, TASKS, GlueConfig
from mosaicbert.filesystem import PARTIAL_SUFFIX
from mosaicbert.finetune.glue.checkpoints import CheckpointSource, CheckpointToScore
from mosaicbert.finetune.glue.dataset import DataSummary
from mosaicbert.finetune.glue.job import GlueJob, GlueResult
from mosaicbert.finetune.glue.job_queue import Job, JobQueue
from mosaicbert.finetune.glue.settings import describe_settings, fingerprint
from mosaicbert.finetune.model import load_pretrained_tokenizer
from mosaicbert.scores.records import PRETRAINED, Score, append_score, read_scores

_MNLI_MODEL = re.compile(rf"[0-9a-f]{{12}}-[0-9a-f]{{12}}({re.escape(PARTIAL_SUFFIX)})?")  # folder name


class ScoringPlan:
    """Jobs of a recipe and their recorded scores.

    Args:
        config: Configuration of the scoring.
        source: Source of the checkpoints.
        summaries: Data summary of each task that can be scored.

    Attributes:
        config: Configuration of the scoring.
        source: Source of the checkpoints.
        tasks: Names of the tasks that can be scored.
        checkpoints: Checkpoints that have been added to the queue.
        settings: Fine-tuning settings of each task.
        protocols: Fingerprint of each task's settings.
        records: All lines of scores.jsonl.
    """

    def __init__(self, config: GlueConfig, source: CheckpointSource, summaries: Mapping[str, DataSummary]) -> None:
        self.config = config
        self.source = source
        self.tasks = list(summaries)
        self.checkpoints: list[CheckpointToScore] = []
        self.settings = {task: describe_settings(config, task, summaries) for task in summaries}
        self.protocols = {task: fingerprint(settings) for task, settings in self.settings.items()}
        self.records = read_scores(source.scores_path)

    def check_model(self) -> None:
        """Check that the model exists, before any process is started.

        Raises:
            ConfigError: If the model does not exist or has no tokenizer.
        """
        for checkpoint in self.source.checkpoints()[:1]:
            if self.missing_scores(checkpoint):
                load_pretrained_tokenizer(checkpoint.model)

    def update_queue(self, queue: JobQueue) -> None:
        """Add the jobs of new checkpoints to the queue.

        A checkpoint that has been trained again after a rollback replaces the jobs of the previous one.

        Args:
            queue: Queue that runs the jobs.
        """
        by_model = {checkpoint.model: checkpoint for checkpoint in self.checkpoints}
        for checkpoint in self.source.checkpoints():
            previous = by_model.get(checkpoint.model)
            if previous is not None and not self.source.has_replaced(previous):
                continue
            if previous is not None:
                self.checkpoints.remove(previous)
                queue.cancel([_job_name(previous, task, seed) for task in self.tasks for seed in self.seeds_of(task)])
            self.checkpoints.append(checkpoint)
            queue.add(self._jobs(checkpoint))

    def scores_of(self, checkpoint: CheckpointToScore) -> list[Score]:
        """Return the recorded scores of a checkpoint with the settings of the recipe.

        Args:
            checkpoint: Checkpoint of the source.
        """
        return [
            score
            for score in self.records
            if score.step == checkpoint.step
            # Scores in a run folder belong to that run. The recorded path may differ, because folders can be moved.
            and (self.source.run is not None or score.model == checkpoint.identity)
            and (
                checkpoint.pretraining is None
                or (score.pretraining is not None and score.pretraining.is_same_training(checkpoint.pretraining))
            )
            and score.protocol == self.protocols.get(score.task)
            and score.seed in self.seeds_of(score.task)
        ]

    def seeds_of(self, task: str) -> tuple[int, ...]:
        """Return the fine-tuning seeds of a task."""
        return SEEDS[: self.config.protocol_of(task).num_seeds]

    def missing_scores(self, checkpoint: CheckpointToScore) -> list[tuple[str, int]]:
        """List the task and seed of each score that is not recorded yet."""
        recorded = {(score.task, score.seed) for score in self.scores_of(checkpoint)}
        return [(task, seed) for task in self.tasks for seed in self.seeds_of(task) if (task, seed) not in recorded]

    def record(self, job: Job, result: GlueResult) -> Score | None:
        """Append the score of a job to scores.jsonl.

        Args:
            job: Finished job.
            result: Output of the job.

        Returns:
            Recorded score; None if the score is recorded already or the run has replaced the checkpoint.
        """
        payload: GlueJob = job.payload
        checkpoint = payload.checkpoint
        is_outdated = checkpoint not in self.checkpoints or self.source.has_replaced(checkpoint)
        if is_outdated or (payload.task, payload.seed) not in self.missing_scores(checkpoint):
            return None
        is_initialized_from_mnli = self.config.is_initialized_from_mnli(payload.task)
        score = Score(
            model=checkpoint.identity,
            step=checkpoint.step,
            task=payload.task,
            seed=payload.seed,
            metrics=result.metrics,
            protocol=self.protocols[payload.task],
            settings=self.settings[payload.task],
            initialized_from=MNLI if is_initialized_from_mnli else PRETRAINED,
            is_partial=result.is_partial or (is_initialized_from_mnli and self._is_mnli_partial(checkpoint)),
            seconds=result.seconds,
            pretraining=checkpoint.pretraining,
            environment=result.environment,
            finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        append_score(self.source.scores_path, score)
        self.records.append(score)
        return score

    def delete_unused_models(self) -> None:
        """Delete models fine-tuned on MNLI that no pending job uses, including models of earlier sessions."""
        used_folders = {
            self._mnli_folder(checkpoint)
            for checkpoint in self.checkpoints
            if any(self.config.is_initialized_from_mnli(task) for task, _ in self.missing_scores(checkpoint))
        }
        for path in self.source.work_folder.iterdir():
            final = path.with_name(path.name.removesuffix(PARTIAL_SUFFIX))
            if _MNLI_MODEL.fullmatch(path.name) and final not in used_folders:
                shutil.rmtree(path, ignore_errors=True)

    def _is_mnli_partial(self, checkpoint: CheckpointToScore) -> bool:
        # For a Hub dataset, only the recorded MNLI score states whether the MNLI data are partial.
        return any(score.is_partial for score in self.scores_of(checkpoint) if score.task == MNLI)

    def _jobs(self, checkpoint: CheckpointToScore) -> Iterator[Job]:
        missing = self.missing_scores(checkpoint)
        needs_mnli = any(self.config.is_initialized_from_mnli(task) for task, _ in missing)
        mnli = (MNLI, SEEDS[0])
        folder = self._mnli_folder(checkpoint) if needs_mnli else None
        if folder is not None and mnli in missing:
            shutil.rmtree(folder, ignore_errors=True)  # left by an interrupted session; the MNLI job writes it again
        elif folder is not None and not folder.is_dir():
            missing.append(mnli)  # the score is recorded, but the weights have been deleted
        # The job that others depend on is first, then the longest jobs.
        missing.sort(key=lambda pair: (pair != mnli, -self._num_examples(pair[0])))
        for task, seed in missing:
            initial_folder = folder if self.config.is_initialized_from_mnli(task) else None
            payload = GlueJob(
                config=self.config,
                checkpoint=checkpoint,
                task=task,
                seed=seed,
                model=checkpoint.model if initial_folder is None else str(initial_folder),
                save_to=folder if (task, seed) == mnli else None,
            )
            depends_on = None if initial_folder is None or initial_folder.is_dir() else _job_name(checkpoint, *mnli)
            yield Job(name=_job_name(checkpoint, task, seed), payload=payload, depends_on=depends_on)

    def _num_examples(self, task: str) -> int:
        return TASKS[task].num_examples["train"] * self.config.protocol_of(task).epochs

    def _mnli_folder(self, checkpoint: CheckpointToScore) -> Path:
        digest = hashlib.sha256(repr(checkpoint).encode()).hexdigest()[:12]
        return self.source.work_folder / f"{digest}-{self.protocols[MNLI]}"


def _job_name(checkpoint: CheckpointToScore, task: str, seed: int) -> str:
    return f"{checkpoint.label} / {TASKS[task].title} / seed {seed}"
