"""Scores to points: the checkpoints of run folders, the tasks that can be averaged, and the frontier."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mosaicbert.config import ConfigError
from mosaicbert.config.glue import MNLI, TASKS
from mosaicbert.config.pareto import SeriesConfig
from mosaicbert.scores.records import FILE_NAME, PRETRAINED, Pretraining, Score, read_scores
from mosaicbert.scores.statistics import interval_of, mean_of

_NAMED = 3  # checkpoints in a line; more are counted


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What scores of a task must share to be averaged or compared: see `mosaicbert.scores.records.Score`."""

    protocol: str
    start: str
    is_partial: bool

    def __str__(self) -> str:
        return f"{self.protocol} from {self.start}{' on partial data' if self.is_partial else ''}"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What has been scored at one step of a run, or a model that is no run of ours.

    Attributes:
        folder: as it was given.
        step: None for a model that is no run of ours.
        pretraining: what it had cost; None if that is not known.
        scores: 0 to 100, by task, variant and seed.
        num_outdated: lines that are not used, since the run has gone back and trained the step again.
    """

    folder: str
    step: int | None
    pretraining: Pretraining | None
    scores: dict[str, dict[Variant, dict[int, float]]]
    num_outdated: int

    @property
    def name(self) -> str:
        """As `--compare` takes it."""
        return self.folder if self.step is None else f"{self.folder}@{self.step}"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which scores are averaged.

    Attributes:
        variants: of each task, in the order of TASKS.
        notices: one sentence on each task that is left out, and on scores that are not used.
    """

    variants: dict[str, Variant]
    notices: list[str]

    @property
    def is_partial(self) -> bool:
        return any(variant.is_partial for variant in self.variants.values())

    @property
    def measure(self) -> str:
        """What the average is, for a title."""
        count = len(self.variants)
        named = f"mean of {count} GLUE tasks" if count > 1 else f"{TASKS[next(iter(self.variants))].title} of GLUE"
        return f"{named}, on partial data" if self.is_partial else named

    @property
    def is_the_papers(self) -> bool:
        """Whether the average is of what the paper averages: all tasks, whole, and begun with the same weights."""
        return all(
            task in self.variants
            and not self.variants[task].is_partial
            and (self.variants[task].start == MNLI) == TASKS[task].from_mnli
            for task in TASKS
        )


@dataclass(frozen=True, kw_only=True)
class Point:
    """A checkpoint in the figure.

    Attributes:
        series: its name.
        name: run folder and step, as `--compare` takes them.
        folder: of the run.
        step: of the run.
        pretraining: what it had cost.
        hours: wall-clock, with evaluations and checkpoints.
        devices: that trained it.
        dollars: hours x devices x price; None without a price.
        scores: by task and seed, 0 to 100.
        average: mean over tasks of the mean over seeds.
        interval: of the average over fine-tuning seeds, 95%; None if no task has two.
    """

    series: str
    name: str
    folder: str
    step: int
    pretraining: Pretraining
    hours: float
    devices: int
    dollars: float | None
    scores: dict[str, dict[int, float]]
    average: float
    interval: tuple[float, float] | None


def read_checkpoints(folder: str) -> list[Checkpoint]:
    """The scored checkpoints of a run folder, in their order. Of two lines about the same the later one stands.

    Raises:
        ConfigError: there are no scores, or a line is of no task of ours.
    """
    path = Path(folder) / FILE_NAME
    by_step: dict[int | None, list[Score]] = {}
    for score in read_scores(path):
        _check(path, score)
        by_step.setdefault(score.step, []).append(score)
    if not by_step:
        raise ConfigError(f"{path}: no scores; name the folder of a run that has been scored with mosaicbert glue.")
    return [_gather(folder, by_step[step]) for step in sorted(by_step, key=lambda step: -1 if step is None else step)]


def _check(path: Path, score: Score) -> None:
    if score.task not in TASKS:
        raise ConfigError(f"{path}: a score of task {score.task!r}; the tasks are {', '.join(TASKS)}.")
    names = TASKS[score.task].metrics
    if set(score.metrics) != set(names):
        raise ConfigError(
            f"{path}: a score of {score.task} by {', '.join(score.metrics)}; that task has {', '.join(names)}: "
            "take the line out."
        )
    if not math.isfinite(score.value):
        raise ConfigError(
            f"{path}: the score of {score.task} with seed {score.seed} is {score.value}, no number: take the line out."
        )


def _gather(folder: str, lines: list[Score]) -> Checkpoint:
    first, num_lines = lines[0], len(lines)
    cost = next((line.pretraining for line in reversed(lines) if line.pretraining is not None), None)
    if cost is not None:
        lines = [line for line in lines if line.pretraining is None or line.pretraining.is_same_training(cost)]
    if first.step is None:
        models = sorted({line.model_name for line in lines})
        if len(models) > 1:
            named = ", ".join(models)
            raise ConfigError(f"{folder}: scores of several models ({named}); give each a folder of its own.")
        lines = [line for line in lines if line.model == lines[-1].model]
    scores: dict[str, dict[Variant, dict[int, float]]] = {}
    for line in lines:
        variant = Variant(protocol=line.protocol, start=line.start, is_partial=line.is_partial)
        scores.setdefault(line.task, {}).setdefault(variant, {})[line.seed] = line.value
    outdated = num_lines - len(lines)
    return Checkpoint(folder=folder, step=first.step, pretraining=cost, scores=scores, num_outdated=outdated)


def leave_out_unknown_costs(series: str, checkpoints: Sequence[Checkpoint]) -> tuple[list[Checkpoint], list[str]]:
    """The checkpoints that can stand against time, and a sentence on each of the others.

    Raises:
        ConfigError: the scores are of no run of ours, or a cost cannot be.
    """
    known: list[Checkpoint] = []
    notices: list[str] = []
    for checkpoint in checkpoints:
        if checkpoint.step is None:
            raise ConfigError(
                f"pareto.series.{series}: {checkpoint.name} holds scores of a model that is no run of ours, and its "
                "training time is not known; name run folders only."
            )
        if checkpoint.pretraining is None:
            notices.append(f"Left out: {checkpoint.name} (removed before it was scored, so its cost is not known).")
            continue
        if not 0 < checkpoint.pretraining.wall_seconds < math.inf:
            raise ConfigError(
                f"pareto.series.{series}: {checkpoint.name} took {checkpoint.pretraining.wall_seconds} s, which has no "
                f"place on a logarithmic axis; take its lines out of {FILE_NAME}."
            )
        known.append(checkpoint)
    return known, notices


def select_tasks(checkpoints: Sequence[Checkpoint], wanted: Sequence[str], chain: bool | None) -> Selection:
    """Chooses the tasks that all checkpoints have, each under one protocol, and says what is left out.

    Args:
        checkpoints: to be compared.
        wanted: the tasks to average, partial data included; empty: all whose data are complete.
        chain: whether tasks that the paper begins with MNLI have done so; None: whichever all checkpoints have.

    Raises:
        ConfigError: a wanted task, or every task, cannot be averaged; or a task has several protocols to choose from.
    """
    checkpoints = [_with_start(checkpoint, chain) for checkpoint in checkpoints]
    variants: dict[str, Variant] = {}
    left_out: dict[str, list[str]] = {}  # titles by the reason
    unused: list[str] = []
    for task in TASKS:
        if wanted and task not in wanted:
            if any(task in checkpoint.scores for checkpoint in checkpoints):
                left_out.setdefault("not named by pareto.tasks", []).append(TASKS[task].title)
            continue
        shared = set.intersection(*({*checkpoint.scores.get(task, {})} for checkpoint in checkpoints))
        usable = {variant for variant in shared if not variant.is_partial} or (shared if wanted else set[Variant]())
        # Two protocols that all checkpoints share are two comparisons. The newer is not the better one: it may be there
        # for this task alone, and the average would mix it with the others' older one. So the user decides.
        if len(usable) > 1:
            raise ConfigError(
                f"{task} was scored in several ways ({'; '.join(sorted(map(str, usable)))}), which no average may mix; "
                f"set pareto.chain, or take the lines of all but one out of the {FILE_NAME} of {_names(checkpoints)}, "
                "which say what each protocol is."
            )
        if not usable:
            reason = _why_not(task, checkpoints)
            if wanted:
                raise ConfigError(f"pareto.tasks names {task}, but: {reason}; score it there, or name other tasks.")
            left_out.setdefault(reason, []).append(TASKS[task].title)
            continue
        (variants[task],) = usable
        unused += _unused(task, variants[task], checkpoints)
    notices = [f"Left out: {', '.join(titles)} ({reason})." for reason, titles in left_out.items()]
    if not variants:
        raise ConfigError(f"no task can be averaged. {' '.join(notices)} Score one under one protocol everywhere.")
    return Selection(variants=variants, notices=notices + unused)


def _with_start(checkpoint: Checkpoint, chain: bool | None) -> Checkpoint:
    if chain is None:
        return checkpoint
    kept: dict[str, dict[Variant, dict[int, float]]] = {}
    for task, ways in checkpoint.scores.items():
        start = MNLI if chain and TASKS[task].from_mnli else PRETRAINED
        chosen = {variant: seeds for variant, seeds in ways.items() if variant.start == start}
        if chosen:
            kept[task] = chosen
    return replace(checkpoint, scores=kept)


def find_outdated(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """A sentence on each checkpoint or model whose weights are others than when it was first scored."""
    return [
        f"{one.name}: {one.num_outdated} score(s) of its earlier weights are not used."
        for one in checkpoints
        if one.num_outdated
    ]


def find_uneven_seeds(points: Sequence[Point]) -> list[str]:
    """A sentence on the tasks that points have other seeds of, whose averages are then not quite alike."""
    uneven = [
        TASKS[task].title for task in points[0].scores if len({frozenset(point.scores[task]) for point in points}) > 1
    ]
    return [f"Not all points have the same seeds of {', '.join(uneven)}; score what is missing."] if uneven else []


def _why_not(task: str, checkpoints: Sequence[Checkpoint]) -> str:
    lacking = [checkpoint for checkpoint in checkpoints if task not in checkpoint.scores]
    if lacking:
        return "no score" if len(lacking) == len(checkpoints) else f"no score of {_names(lacking)}"
    parts = [one for one in checkpoints if all(variant.is_partial for variant in one.scores[task])]
    if parts:
        return f"partial data of {_names(parts)}; it is averaged if pareto.tasks names it"
    ways = sorted({str(variant) for checkpoint in checkpoints for variant in checkpoint.scores[task]})
    return f"no protocol common to all: {'; '.join(ways)}"


def _unused(task: str, variant: Variant, checkpoints: Sequence[Checkpoint]) -> list[str]:
    others = [(other, seeds) for one in checkpoints for other, seeds in one.scores[task].items() if other != variant]
    if not others:
        return []
    ways = "; ".join(sorted({str(other) for other, _ in others}))
    count = sum(len(seeds) for _, seeds in others)
    return [f"{TASKS[task].title} is taken as scored under {variant}; {count} score(s) under {ways} are not used."]


def _names(checkpoints: Sequence[Checkpoint]) -> str:
    names = [checkpoint.name for checkpoint in checkpoints]
    if len(names) > _NAMED:
        return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"
    return ", ".join(names)


def make_point(series: str, config: SeriesConfig, checkpoint: Checkpoint, selection: Selection) -> Point:
    """Puts a checkpoint's average beside what it had cost, which must be known."""
    spent = checkpoint.pretraining
    assert spent is not None and checkpoint.step is not None
    hours = spent.wall_seconds / 3600
    devices = config.devices or spent.num_devices
    price = config.dollars_per_device_hour
    scores = {task: checkpoint.scores[task][variant] for task, variant in selection.variants.items()}
    values = [list(seeds.values()) for seeds in scores.values()]
    return Point(
        series=series,
        name=checkpoint.name,
        folder=checkpoint.folder,
        step=checkpoint.step,
        pretraining=spent,
        hours=hours,
        devices=devices,
        dollars=None if price is None else hours * devices * price,
        scores=scores,
        average=mean_of(values),
        interval=interval_of(values),
    )


def find_frontier(costs: Sequence[float], averages: Sequence[float]) -> list[bool]:
    """Whether each point is on the frontier: none is better without costing more, or cheaper without scoring less."""
    points = list(zip(costs, averages, strict=True))
    return [
        not any(c <= cost and a >= average and (c, a) != (cost, average) for c, a in points) for cost, average in points
    ]
