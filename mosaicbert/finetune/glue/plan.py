"""Scoring plan of GLUE: fine-tuning jobs, and their dependency on the model fine-tuned on MNLI."""

import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mosaicbert.config.glue import MNLI, SEEDS, TASKS, GlueConfig
from mosaicbert.filesystem import PARTIAL_SUFFIX
from mosaicbert.finetune.glue.dataset import DataSummary
from mosaicbert.finetune.glue.job import GlueJob
from mosaicbert.finetune.glue.settings import describe_settings
from mosaicbert.scores.records import PRETRAINED
from mosaicbert.scoring.checkpoints import CheckpointSource, CheckpointToScore
from mosaicbert.scoring.job_queue import Job
from mosaicbert.scoring.plan import ScoringPlan, ScoringResult

_MNLI_MODEL = re.compile(rf"[0-9a-f]{{12}}-[0-9a-f]{{12}}({re.escape(PARTIAL_SUFFIX)})?")  # folder name


class GluePlan(ScoringPlan):
    """Fine-tuning jobs of a recipe and their recorded scores.

    Args:
        config: Configuration of the scoring.
        source: Source of the checkpoints.
        summaries: Data summary of each task that can be scored.

    Attributes:
        config: Configuration of the scoring.
    """

    def __init__(self, config: GlueConfig, source: CheckpointSource, summaries: Mapping[str, DataSummary]) -> None:
        super().__init__(source, {task: describe_settings(config, task, summaries) for task in summaries})
        self.config = config

    def seeds_of(self, task: str) -> Sequence[int]:
        return SEEDS[: self.config.protocol_of(task).num_seeds]

    def job_name(self, checkpoint: CheckpointToScore, task: str, seed: int) -> str:
        return f"{checkpoint.label} / {TASKS[task].title} / seed {seed}"

    def initial_weights_of(self, task: str) -> str:
        return MNLI if self.config.is_initialized_from_mnli(task) else PRETRAINED

    def is_partial(self, checkpoint: CheckpointToScore, task: str, result: ScoringResult) -> bool:
        # For a Hub dataset, only the recorded MNLI score states whether the MNLI data are partial.
        is_mnli_partial = any(score.is_partial for score in self.scores_of(checkpoint) if score.task == MNLI)
        return result.is_partial or (self.config.is_initialized_from_mnli(task) and is_mnli_partial)

    def jobs(self, checkpoint: CheckpointToScore, missing: list[tuple[str, int]]) -> Iterator[Job]:
        needs_mnli = any(self.config.is_initialized_from_mnli(task) for task, _ in missing)
        mnli = (MNLI, SEEDS[0])
        folder = self._mnli_folder(checkpoint) if needs_mnli else None
        if folder is not None and mnli in missing:
            shutil.rmtree(folder, ignore_errors=True)  # left by an interrupted session; the MNLI job writes it again
        elif folder is not None and not folder.is_dir():
            missing = [*missing, mnli]  # the score is recorded, but the weights have been deleted
        # The job that others depend on is first, then the longest jobs.
        missing = sorted(missing, key=lambda pair: (pair != mnli, -self._num_examples(pair[0])))
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
            depends_on = None if initial_folder is None or initial_folder.is_dir() else self.job_name(checkpoint, *mnli)
            yield Job(name=self.job_name(checkpoint, task, seed), payload=payload, depends_on=depends_on)

    def finish_job(self) -> None:
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

    def _num_examples(self, task: str) -> int:
        protocol = self.config.protocol_of(task)
        return (protocol.train_examples or TASKS[task].num_examples["train"]) * protocol.epochs

    def _mnli_folder(self, checkpoint: CheckpointToScore) -> Path:
        digest = hashlib.sha256(repr(checkpoint).encode()).hexdigest()[:12]
        return self.source.work_folder / f"{digest}-{self.protocols[MNLI]}"
