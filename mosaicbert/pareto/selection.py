"""Selection of the tasks that can be averaged: those that all checkpoints have scores of under one protocol."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mosaicbert.config import ConfigError
from mosaicbert.config.glue import MNLI, TASKS
from mosaicbert.pareto.checkpoints import ScoredCheckpoint, Variant
from mosaicbert.scores.records import PRETRAINED, SCORES_FILE

_MAX_NAMES = 3  # of checkpoints in a line; the others are counted


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
    def average_name(self) -> str:
        """What the average is, for a title."""
        count = len(self.variants)
        named = f"mean of {count} GLUE tasks" if count > 1 else f"{TASKS[next(iter(self.variants))].title} of GLUE"
        return f"{named}, on partial data" if self.is_partial else named

    @property
    def is_paper_average(self) -> bool:
        """Whether the average is of what the paper averages: all tasks, whole, and begun with the same weights."""
        return all(
            task in self.variants
            and not self.variants[task].is_partial
            and (self.variants[task].initialized_from == MNLI) == TASKS[task].from_mnli
            for task in TASKS
        )


def select_tasks(
    checkpoints: Sequence[ScoredCheckpoint], wanted: Sequence[str], init_from_mnli: bool | None
) -> Selection:
    """Chooses the tasks that all checkpoints have, each under one protocol, and says what is left out.

    Args:
        checkpoints: to be compared.
        wanted: the tasks to average, partial data included; empty: all whose data are complete.
        init_from_mnli: whether tasks that the paper begins with MNLI have done so; None: whichever all checkpoints
            have.

    Raises:
        ConfigError: a wanted task, or every task, cannot be averaged; or a task has several protocols to choose from.
    """
    checkpoints = [_with_initialization(checkpoint, init_from_mnli) for checkpoint in checkpoints]
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
                "set pareto.init_from_mnli, or take the lines of all but one out of the "
                f"{SCORES_FILE} of {_list_names(checkpoints)}, which say what each protocol is."
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


def _with_initialization(checkpoint: ScoredCheckpoint, init_from_mnli: bool | None) -> ScoredCheckpoint:
    if init_from_mnli is None:
        return checkpoint
    kept: dict[str, dict[Variant, dict[int, float]]] = {}
    for task, ways in checkpoint.scores.items():
        initialization = MNLI if init_from_mnli and TASKS[task].from_mnli else PRETRAINED
        chosen = {variant: seeds for variant, seeds in ways.items() if variant.initialized_from == initialization}
        if chosen:
            kept[task] = chosen
    return replace(checkpoint, scores=kept)


def _why_not(task: str, checkpoints: Sequence[ScoredCheckpoint]) -> str:
    lacking = [checkpoint for checkpoint in checkpoints if task not in checkpoint.scores]
    if lacking:
        return "no score" if len(lacking) == len(checkpoints) else f"no score of {_list_names(lacking)}"
    parts = [one for one in checkpoints if all(variant.is_partial for variant in one.scores[task])]
    if parts:
        return f"partial data of {_list_names(parts)}; it is averaged if pareto.tasks names it"
    ways = sorted({str(variant) for checkpoint in checkpoints for variant in checkpoint.scores[task]})
    return f"no protocol common to all: {'; '.join(ways)}"


def _unused(task: str, variant: Variant, checkpoints: Sequence[ScoredCheckpoint]) -> list[str]:
    others = [(other, seeds) for one in checkpoints for other, seeds in one.scores[task].items() if other != variant]
    if not others:
        return []
    ways = "; ".join(sorted({str(other) for other, _ in others}))
    count = sum(len(seeds) for _, seeds in others)
    return [f"{TASKS[task].title} is taken as scored under {variant}; {count} score(s) under {ways} are not used."]


def _list_names(checkpoints: Sequence[ScoredCheckpoint]) -> str:
    names = [checkpoint.name for checkpoint in checkpoints]
    if len(names) > _MAX_NAMES:
        return f"{', '.join(names[:_MAX_NAMES])} and {len(names) - _MAX_NAMES} more"
    return ", ".join(names)
