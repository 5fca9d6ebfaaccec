"""Scoring plan of BLiMP: one job per checkpoint and phenomenon."""

from collections.abc import Iterator, Sequence
from typing import Any

from mosaicbert.blimp.job import BlimpJob
from mosaicbert.blimp.pairs import PairData
from mosaicbert.config.blimp import BlimpConfig
from mosaicbert.scores.records import BLIMP_PREFIX
from mosaicbert.scoring.checkpoints import CheckpointSource, CheckpointToScore
from mosaicbert.scoring.job_queue import Job
from mosaicbert.scoring.plan import ScoringPlan

_METHOD = "pseudo-log-likelihood, within-word l2r"
_SEED = 0  # the score does not depend on a seed


class BlimpPlan(ScoringPlan):
    """Jobs of a BLiMP evaluation and their recorded scores.

    Args:
        config: Settings of the evaluation.
        source: Source of the checkpoints.
        data: Minimal pairs.
    """

    def __init__(self, config: BlimpConfig, source: CheckpointSource, data: PairData) -> None:
        settings: dict[str, Any] = {"method": _METHOD, "digest": data.digest}
        super().__init__(source, {f"{BLIMP_PREFIX}{phenomenon}": settings for phenomenon in data.paradigms})
        self.config = config
        self.data = data

    def seeds_of(self, task: str) -> Sequence[int]:  # noqa: ARG002
        return (_SEED,)

    def job_name(self, checkpoint: CheckpointToScore, task: str, seed: int) -> str:  # noqa: ARG002
        return f"{checkpoint.label} / {task.removeprefix(BLIMP_PREFIX)}"

    def jobs(self, checkpoint: CheckpointToScore, missing: list[tuple[str, int]]) -> Iterator[Job]:
        # The largest phenomena first, so that all processes end at about the same time.
        missing = sorted(missing, key=lambda pair: -len(self.data.paradigms[pair[0].removeprefix(BLIMP_PREFIX)]))
        for task, seed in missing:
            payload = BlimpJob(
                checkpoint=checkpoint,
                task=task,
                seed=seed,
                paradigms=self.data.paradigms[task.removeprefix(BLIMP_PREFIX)],
                batch_tokens=self.config.batch_tokens,
                is_partial=self.data.is_partial,
            )
            yield Job(name=self.job_name(checkpoint, task, seed), payload=payload)
