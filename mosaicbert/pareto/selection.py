"""Selection of the scores to average: those that all checkpoints have, with one protocol."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mosaicbert.config import ConfigError
from mosaicbert.config.glue import MNLI, TASKS
from mosaicbert.pareto.checkpoints import ScoredCheckpoint, Variant
from mosaicbert.scores.records import PRETRAINED, SCORES_FILE

_MAX_LISTED_NAMES = 3


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Scores to average.

    Attributes:
        variants: Variant of each GLUE task, in the order of TASKS; empty if no checkpoint has GLUE scores.
        metrics: Metrics to average, by task; all metrics for other tasks.
        untrained_variants: Variant of each GLUE task for the untrained baselines, whose epochs and learning rates may
            differ.
        blimp: Protocol of the BLiMP scores; None if no checkpoint has complete BLiMP scores.
        blimp_paradigms: Paradigms of the BLiMP scores.
        is_blimp_partial: True if the BLiMP scores are of fewer pairs than the official data.
        notices: One sentence per reason for skipped tasks, and one per task with unused scores.
    """

    variants: dict[str, Variant]
    untrained_variants: dict[str, Variant] = field(default_factory=dict[str, Variant])
    metrics: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    blimp: str | None = None
    blimp_paradigms: frozenset[str] = frozenset()
    is_blimp_partial: bool = False
    notices: list[str]

    @property
    def is_partial(self) -> bool:
        return any(variant.is_partial for variant in self.variants.values())

    @property
    def average_name(self) -> str:
        """Name of the average GLUE score, for titles and axes."""
        num_tasks = len(self.variants)
        if not num_tasks:
            return "BLiMP"
        name = f"mean of {num_tasks} GLUE tasks" if num_tasks > 1 else f"GLUE {TASKS[next(iter(self.variants))].title}"
        return f"{name} (partial data)" if self.is_partial else name

    @property
    def is_paper_average(self) -> bool:
        """True if the average is that of the paper: all tasks and metrics, complete data, the same initialization."""
        return all(
            task in self.variants
            and set(self.metrics_of(task)) == set(TASKS[task].metrics)
            and not self.variants[task].is_partial
            and (self.variants[task].initialized_from == MNLI) == TASKS[task].from_mnli
            for task in TASKS
        )

    def metrics_of(self, task: str) -> Sequence[str]:
        """Return the metrics that are averaged to the score of a task."""
        return self.metrics.get(task, TASKS[task].metrics)

    def label_of(self, task: str) -> str:
        """Return the title and the metrics of a task, e.g. "MRPC acc/F1"."""
        return TASKS[task].label_of(self.metrics_of(task))


def select_scores(
    checkpoints: Sequence[ScoredCheckpoint],
    tasks: Sequence[str],
    init_from_mnli: bool | None,
    metrics: Mapping[str, Sequence[str]] | None = None,
    untrained: Sequence[ScoredCheckpoint] = (),
) -> Selection:
    """Select the GLUE tasks that all checkpoints have scores of, one variant of each, and one protocol of BLiMP.

    Checkpoints without any GLUE score, or without BLiMP scores, are not considered in the respective selection.

    Args:
        checkpoints: Checkpoints to compare.
        tasks: Names of the tasks to average, including partial data; empty for all tasks with complete data.
        init_from_mnli: True for scores initialized from MNLI where the paper does so, False for scores initialized
            from the pretrained model, None for those that all checkpoints have.
        metrics: Metrics to average that the checkpoints were read with, by task; all metrics for other tasks.
        untrained: Untrained baselines. They must have scores of the same tasks, and of one protocol each, which may
            differ from that of the checkpoints.

    Raises:
        ConfigError: If a task of `tasks` cannot be averaged, no task can be averaged, or a task has several common
            protocols.
    """
    everything = [*checkpoints, *untrained]
    blimp = _select_blimp(everything)
    with_glue = [checkpoint for checkpoint in everything if checkpoint.scores]
    if blimp.blimp is not None and not any(checkpoint.scores for checkpoint in checkpoints):
        return blimp
    notices = [f"No GLUE scores: {_list_names(unscored)}."] if (unscored := _without(everything, with_glue)) else []
    notices += blimp.notices
    checkpoints = [item for item in checkpoints if item.scores] or list(checkpoints)
    untrained = [item for item in untrained if item.scores]
    checkpoints, untrained = (
        [_filter_initialization(item, init_from_mnli) for item in group] for group in (checkpoints, untrained)
    )
    variants: dict[str, Variant] = {}
    untrained_variants: dict[str, Variant] = {}
    skipped: dict[str, list[str]] = {}  # titles by reason
    unused_notices: list[str] = []
    for task in TASKS:
        if tasks and task not in tasks:
            if any(task in checkpoint.scores for checkpoint in checkpoints):
                skipped.setdefault("not in `pareto.tasks`", []).append(TASKS[task].title)
            continue
        variant = _select_variant(task, checkpoints, is_required=bool(tasks))
        # A baseline of random weights may have its own epochs and learning rate, chosen for it.
        untrained_variant = _select_variant(task, untrained, is_required=bool(tasks), preferred=variant)
        if variant is None or (untrained and untrained_variant is None):
            reason = _skip_reason(task, [*checkpoints, *untrained], is_required=bool(tasks))
            if tasks:
                raise ConfigError(
                    f"`pareto.tasks` must be tasks that can be averaged, got {task} ({reason}). "
                    "Score the task, or remove it from `pareto.tasks`."
                )
            skipped.setdefault(reason, []).append(TASKS[task].title)
            continue
        variants[task] = variant
        unused_notices += _describe_unused_scores(task, variant, checkpoints)
        if untrained_variant is not None:
            untrained_variants[task] = untrained_variant
    notices += [f"Skipped: {', '.join(titles)} ({reason})." for reason, titles in skipped.items()]
    if not variants:
        raise ConfigError(
            "All checkpoints must have scores of a common task and protocol, got none. "
            f"{' '.join(notices)} Score one task of all checkpoints with the same protocol."
        )
    return replace(
        blimp,
        variants=variants,
        untrained_variants=untrained_variants,
        metrics=metrics or {},
        notices=notices + unused_notices,
    )


def _select_variant(
    task: str, checkpoints: Sequence[ScoredCheckpoint], *, is_required: bool, preferred: Variant | None = None
) -> Variant | None:
    if not checkpoints:
        return None
    common = set.intersection(*({*checkpoint.scores.get(task, {})} for checkpoint in checkpoints))
    if preferred in common:
        return preferred
    usable = {variant for variant in common if not variant.is_partial} or (common if is_required else set[Variant]())
    # The newest protocol is not chosen automatically: other tasks may have the older one alone, and the average would
    # mix both.
    if len(usable) > 1:
        raise ConfigError(
            f"Scores of {task} must have one protocol, got {'; '.join(sorted(map(str, usable)))}. "
            f"Set `pareto.init_from_mnli`, or remove the lines of the other protocols from {SCORES_FILE} of "
            f"{_list_names(checkpoints)}."
        )
    return next(iter(usable), None)


def _without(checkpoints: Sequence[ScoredCheckpoint], selected: Sequence[ScoredCheckpoint]) -> list[ScoredCheckpoint]:
    return [checkpoint for checkpoint in checkpoints if checkpoint not in selected]


def _select_blimp(checkpoints: Sequence[ScoredCheckpoint]) -> Selection:
    paradigms: dict[str, set[str]] = {}
    for checkpoint in checkpoints:
        for protocol, scores in checkpoint.blimp.items():
            paradigms.setdefault(protocol, set()).update(scores.accuracies)
    complete = {
        protocol: [
            item for item in checkpoints if protocol in item.blimp and {*item.blimp[protocol].accuracies} == names
        ]
        for protocol, names in paradigms.items()
    }
    complete = {protocol: items for protocol, items in complete.items() if items}
    if not complete:
        return Selection(variants={}, notices=[])
    # The protocol of most checkpoints; with as many checkpoints, that of more paradigms.
    protocol = max(complete, key=lambda name: (len(complete[name]), len(paradigms[name])))
    unscored = _without(checkpoints, complete[protocol])
    notices = [f"No complete BLiMP scores: {_list_names(unscored)}."] if unscored else []
    if len(paradigms) > 1:
        notices.append(f"BLiMP: scores of protocol {protocol} are used; those of other protocols are not used.")
    return Selection(
        variants={},
        blimp=protocol,
        blimp_paradigms=frozenset(paradigms[protocol]),
        is_blimp_partial=complete[protocol][0].blimp[protocol].is_partial,
        notices=notices,
    )


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
