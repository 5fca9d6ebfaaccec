"""Selection of the tasks to average: those that all checkpoints have scores of, with one protocol."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mosaicbert.config import ConfigError
from mosaicbert.config.glue import MNLI, TASKS
from mosaicbert.pareto.checkpoints import ScoredCheckpoint, Variant
from mosaicbert.scores.records import PRETRAINED, SCORES_FILE

_MAX_LISTED_NAMES = 3


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Scores to average.

    Attributes:
        variants: Variant of each task, in the order of TASKS.
        notices: One sentence per reason for skipped tasks, and one per task with unused scores.
    """

    variants: dict[str, Variant]
    notices: list[str]

    @property
    def is_partial(self) -> bool:
        return any(variant.is_partial for variant in self.variants.values())

    @property
    def average_name(self) -> str:
        """Name of the average score, for titles and axes."""
        num_tasks = len(self.variants)
        name = f"mean of {num_tasks} GLUE tasks" if num_tasks > 1 else f"GLUE {TASKS[next(iter(self.variants))].title}"
        return f"{name} (partial data)" if self.is_partial else name

    @property
    def is_paper_average(self) -> bool:
        """True if the average is that of the paper: all tasks, complete data, the same initialization."""
        return all(
            task in self.variants
            and not self.variants[task].is_partial
            and (self.variants[task].initialized_from == MNLI) == TASKS[task].from_mnli
            for task in TASKS
        )


def select_tasks(
    checkpoints: Sequence[ScoredCheckpoint], tasks: Sequence[str], init_from_mnli: bool | None
) -> Selection:
    """Select the tasks that all checkpoints have scores of, and one variant of each.

    Args:
        checkpoints: Checkpoints to compare.
        tasks: Names of the tasks to average, including partial data; empty for all tasks with complete data.
        init_from_mnli: True for scores initialized from MNLI where the paper does so, False for scores initialized
            from the pretrained model, None for those that all checkpoints have.

    Raises:
        ConfigError: If a task of `tasks` cannot be averaged, no task can be averaged, or a task has several common
            protocols.
    """
    checkpoints = [_filter_initialization(checkpoint, init_from_mnli) for checkpoint in checkpoints]
    variants: dict[str, Variant] = {}
    skipped: dict[str, list[str]] = {}  # titles by reason
    unused_notices: list[str] = []
    for task in TASKS:
        if tasks and task not in tasks:
            if any(task in checkpoint.scores for checkpoint in checkpoints):
                skipped.setdefault("not in `pareto.tasks`", []).append(TASKS[task].title)
            continue
        common = set.intersection(*({*checkpoint.scores.get(task, {})} for checkpoint in checkpoints))
        usable = {variant for variant in common if not variant.is_partial} or (common if tasks else set[Variant]())
        # The newest protocol is not chosen automatically: other tasks may have the older one alone, and the average
        # would mix both.
        if len(usable) > 1:
            raise ConfigError(
                f"Scores of {task} must have one protocol, got {'; '.join(sorted(map(str, usable)))}. "
                f"Set `pareto.init_from_mnli`, or remove the lines of the other protocols from {SCORES_FILE} of "
                f"{_list_names(checkpoints)}."
            )
        if not usable:
            reason = _skip_reason(task, checkpoints, is_required=bool(tasks))
            if tasks:
                raise ConfigError(
                    f"`pareto.tasks` must be tasks that can be averaged, got {task} ({reason}). "
                    "Score the task, or remove it from `pareto.tasks`."
                )
            skipped.setdefault(reason, []).append(TASKS[task].title)
            continue
        (variants[task],) = usable
        unused_notices += _describe_unused_scores(task, variants[task], checkpoints)
    notices = [f"Skipped: {', '.join(titles)} ({reason})." for reason, titles in skipped.items()]
    if not variants:
        raise ConfigError(
            "All checkpoints must have scores of a common task and protocol, got none. "
            f"{' '.join(notices)} Score one task of all checkpoints with the same protocol."
        )
    return Selection(variants=variants, notices=notices + unused_notices)


def _filter_initialization(checkpoint: ScoredCheckpoint, init_from_mnli: bool | None) -> ScoredCheckpoint:
    if init_from_mnli is None:
        return checkpoint
    scores: dict[str, dict[Variant, dict[int, float]]] = {}
    for task, by_variant in checkpoint.scores.items():
        initialization = MNLI if init_from_mnli and TASKS[task].from_mnli else PRETRAINED
        selected = {
            variant: seeds for variant, seeds in by_variant.items() if variant.initialized_from == initialization
        }
        if selected:
            scores[task] = selected
    return replace(checkpoint, scores=scores)


def _skip_reason(task: str, checkpoints: Sequence[ScoredCheckpoint], *, is_required: bool) -> str:
    unscored = [checkpoint for checkpoint in checkpoints if task not in checkpoint.scores]
    if unscored:
        return "no score" if len(unscored) == len(checkpoints) else f"no score of {_list_names(unscored)}"
    partial = [
        checkpoint for checkpoint in checkpoints if all(variant.is_partial for variant in checkpoint.scores[task])
    ]
    if partial:
        remedy = "" if is_required else "; add the task to `pareto.tasks` to include it"
        return f"partial data of {_list_names(partial)}{remedy}"
    variants = sorted({str(variant) for checkpoint in checkpoints for variant in checkpoint.scores[task]})
    return f"no common protocol: {'; '.join(variants)}"


def _describe_unused_scores(task: str, selected: Variant, checkpoints: Sequence[ScoredCheckpoint]) -> list[str]:
    unused = [
        (variant, seeds)
        for checkpoint in checkpoints
        for variant, seeds in checkpoint.scores[task].items()
        if variant != selected
    ]
    if not unused:
        return []
    variants = "; ".join(sorted({str(variant) for variant, _ in unused}))
    num_scores = sum(len(seeds) for _, seeds in unused)
    return [f"{TASKS[task].title}: scores of {selected} are used; {num_scores} score(s) of {variants} are not used."]


def _list_names(checkpoints: Sequence[ScoredCheckpoint]) -> str:
    names = [checkpoint.name for checkpoint in checkpoints]
    if len(names) > _MAX_LISTED_NAMES:
        return f"{', '.join(names[:_MAX_LISTED_NAMES])} and {len(names) - _MAX_LISTED_NAMES} more"
    return ", ".join(names)
