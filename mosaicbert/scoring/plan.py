"""Scoring plan: jobs of the checkpoints of a source, and their recorded scores."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from mosaicbert.environment import describe_environment
from mosaicbert.model.pretrained import load_pretrained_tokenizer
from mosaicbert.scores.predictions import SplitPredictions, append_predictions, make_predictions
from mosaicbert.scores.records import PRETRAINED, Score, append_score, read_scores
from mosaicbert.scoring.checkpoints import CheckpointSource, CheckpointToScore
from mosaicbert.scoring.job_queue import Job, JobQueue


@dataclass(frozen=True, kw_only=True)
class ScoringJob:
    """Input of a job; a plan adds the fields that its function needs.

    Attributes:
        checkpoint: Checkpoint that the score belongs to.
        task: Name of the task.
        seed: Seed of the score.
    """

    checkpoint: CheckpointToScore
    task: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class ScoringResult:
    """Output of a job.

    Attributes:
        metrics: Validation metrics by name, as fractions.
        is_partial: True if the data are smaller than the official data.
        seconds: Duration of the job in seconds, without loading.
        environment: Device, versions and commit.
        predictions: Labels and predictions by split.
    """

    metrics: dict[str, float]
    is_partial: bool
    seconds: float
    environment: dict[str, Any]
    predictions: dict[str, SplitPredictions]


class ScoringPlan(ABC):
    """Jobs of the checkpoints of a source, and their recorded scores.

    Args:
        source: Source of the checkpoints.
        settings: All settings of each task that change its scores, except the model and the seed.

    Attributes:
        source: Source of the checkpoints.
        tasks: Names of the tasks.
        checkpoints: Checkpoints that have been added to the queue.
        settings: Settings of each task.
        protocols: Fingerprint of each task's settings.
        records: All lines of scores.jsonl.
    """

    def __init__(self, source: CheckpointSource, settings: Mapping[str, dict[str, Any]]) -> None:
        self.source = source
        self.tasks = list(settings)
        self.checkpoints: list[CheckpointToScore] = []
        self.settings = dict(settings)
        self.protocols = {task: fingerprint(task_settings) for task, task_settings in settings.items()}
        self.records = read_scores(source.scores_path)

    @abstractmethod
    def seeds_of(self, task: str) -> Sequence[int]:
        """Return the seeds of a task."""

    @abstractmethod
    def job_name(self, checkpoint: CheckpointToScore, task: str, seed: int) -> str:
        """Return the unique name of a job, which is printed."""

    @abstractmethod
    def jobs(self, checkpoint: CheckpointToScore, missing: list[tuple[str, int]]) -> Iterable[Job]:
        """Create the jobs of a checkpoint, in the order of their start.

        Args:
            checkpoint: Checkpoint to score.
            missing: Task and seed of each score that is not recorded yet.
        """

    def initial_weights_of(self, task: str) -> str:  # noqa: ARG002
        """Return the value of `Score.initialized_from` of a task."""
        return PRETRAINED

    def is_partial(self, checkpoint: CheckpointToScore, task: str, result: ScoringResult) -> bool:  # noqa: ARG002
        """Return the value of `Score.is_partial` of a result."""
        return result.is_partial

    def finish_job(self) -> None:  # noqa: B027 - most plans have nothing to clean up
        """Clean up after a job."""

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
                queue.cancel(
                    [self.job_name(previous, task, seed) for task in self.tasks for seed in self.seeds_of(task)]
                )
            self.checkpoints.append(checkpoint)
            queue.add(self.jobs(checkpoint, self.missing_scores(checkpoint)))

    def scores_of(self, checkpoint: CheckpointToScore) -> list[Score]:
        """Return the recorded scores of a checkpoint with the settings of the plan.

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

    def missing_scores(self, checkpoint: CheckpointToScore) -> list[tuple[str, int]]:
        """List the task and seed of each score that is not recorded yet."""
        recorded = {(score.task, score.seed) for score in self.scores_of(checkpoint)}
        return [(task, seed) for task in self.tasks for seed in self.seeds_of(task) if (task, seed) not in recorded]

    def record(self, job: Job, result: ScoringResult) -> Score | None:
        """Append the score of a job to scores.jsonl, and its predictions to predictions.jsonl.

        Args:
            job: Finished job.
            result: Output of the job.

        Returns:
            Recorded score; None if the score is recorded already or the run has replaced the checkpoint.
        """
        payload: ScoringJob = job.payload
        checkpoint = payload.checkpoint
        is_outdated = checkpoint not in self.checkpoints or self.source.has_replaced(checkpoint)
        if is_outdated or (payload.task, payload.seed) not in self.missing_scores(checkpoint):
            return None
        score = Score(
            model=checkpoint.identity,
            step=checkpoint.step,
            task=payload.task,
            seed=payload.seed,
            metrics=result.metrics,
            protocol=self.protocols[payload.task],
            settings=self.settings[payload.task],
            initialized_from=self.initial_weights_of(payload.task),
            is_partial=self.is_partial(checkpoint, payload.task, result),
            seconds=result.seconds,
            pretraining=checkpoint.pretraining,
            environment=result.environment,
            finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        # The predictions first, so that a recorded score has them.
        append_predictions(self.source.predictions_path, make_predictions(score, result.predictions))
        append_score(self.source.scores_path, score)
        self.records.append(score)
        return score


def describe_scoring_environment() -> dict[str, Any]:
    """Describe device, versions and commit for a score record."""
    environment = describe_environment()
    del environment["started"]
    return environment


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Compute a fingerprint of 12 hexadecimal digits.

    Args:
        settings: JSON-compatible settings of a task.
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
