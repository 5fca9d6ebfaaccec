"""The `check` command: contents of a token store and their fit for a run, as text and a plot."""

import math
from pathlib import Path

from rich.console import Console

from mosaicbert.config import ConfigError, Recipe
from mosaicbert.data.loading.loader import make_train_plan, sample_groups
from mosaicbert.data.loading.sample_order import Group
from mosaicbert.data.prepare.pipeline import check_store
from mosaicbert.data.store import TRAIN, VALIDATION
from mosaicbert.data.store_stats import Inspection, SplitInspection, inspect_store
from mosaicbert.report.store_plots import draw_store
from mosaicbert.train_plan import TrainPlan

# Up to four epochs are nearly as good as new text (Muennighoff et al. 2023, arXiv:2305.16264).
_MANY_EPOCHS = 4
_MANY_UNKNOWN = 0.01  # fraction of all tokens; a tokenizer that fits its text leaves far fewer
_MANY_DUPLICATES = 0.05  # fraction of all samples


def check(recipe: Recipe, console: Console) -> Path:
    """Read the whole token store of a recipe, print its statistics and those of a run over it, and plot it.

    Returns:
        The path of the plot, in the run folder.

    Raises:
        ConfigError: If the store is missing, corrupted, or does not match the recipe.
    """
    record = check_store(recipe)
    inspection = inspect_store(recipe.store_folder, record, recipe.data.max_text_tokens)
    plan = make_train_plan(recipe.data, recipe.train, record)
    samples_by_source = record.splits[TRAIN].samples_by_source()
    groups = sample_groups(recipe.data.sources, samples_by_source)
    epochs = _count_epochs(plan, list(samples_by_source) if len(groups) > 1 else [""], groups)
    for name, line in _describe(recipe, inspection, plan, epochs):
        console.print(f"{name + ':':18}{line}", highlight=False, soft_wrap=True)
    for warning in _warnings(inspection, epochs):
        console.print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True)
    if inspection.problems:
        raise ConfigError(f"{'; '.join(inspection.problems)}. Delete {recipe.store_folder} and prepare it again.")
    path = recipe.run_folder / "check.png"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_store(inspection, title=f"{recipe.run_name}: {recipe.store_folder}", path=path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error}). Set another `runs_folder`.") from error
    console.print(f"{'plot:':18}{path}", highlight=False, soft_wrap=True)
    return path


def _describe(
    recipe: Recipe, inspection: Inspection, plan: TrainPlan, epochs: dict[str, float]
) -> list[tuple[str, str]]:
    record = inspection.record
    num_shards = sum(len(split.shards) for split in record.splits.values())
    result = f"{len(inspection.problems)} problems" if inspection.problems else "checksums, sizes and ids are correct"
    lines = [("store", f"{recipe.store_folder}, {num_shards:,} shards; {result}")]
    for name, split in record.splits.items():
        inspected = inspection.splits[name]
        lines.append(
            (
                name,
                f"{split.samples:,} samples, {split.tokens:,} tokens, {split.tokens / split.samples:.1f} per sample; "
                f"{_unknown_fraction(inspection, inspected):.3%} unknown tokens, "
                f"{inspected.duplicate_fraction:.2%} duplicate samples",
            )
        )
    lines.append(
        ("overlap", f"{inspection.validation_overlap:.2%} of the validation samples are also training samples")
    )
    for name, num_documents in record.documents.items():
        skipped = record.skipped_documents.get(name, {})
        reasons = ", ".join(f"{count:,} {reason} ({count / num_documents:.2%})" for reason, count in skipped.items())
        lines.append((f"source {name}", f"{num_documents:,} documents; skipped: {reasons or 'none'}"))
    for name, number in epochs.items():
        lines.append((f"epochs {name}".rstrip(), f"{number:.2f}"))
    duration = recipe.train.duration
    steps = (
        f"not known before the run, for {duration}" if plan.num_steps is None else f"{plan.num_steps:,} for {duration}"
    )
    steps_per_epoch = record.splits[TRAIN].samples // recipe.train.global_batch_samples
    lines += [
        ("steps", f"{steps}; one epoch over all samples is {steps_per_epoch:,}"),
        (
            "unigram entropy",
            f"{inspection.splits[VALIDATION].unigram_entropy:.3f} nats in validation, "
            f"{inspection.splits[TRAIN].unigram_entropy:.3f} nats in training: the loss of a model that knows only the "
            f"token frequencies; the loss of a uniform guess is {math.log(inspection.num_entries):.3f} nats",
        ),
    ]
    return lines


def _warnings(inspection: Inspection, epochs: dict[str, float]) -> list[str]:
    warnings: list[str] = []
    for name, number in epochs.items():
        if number > _MANY_EPOCHS:
            warnings.append(
                f"{f'source {name}' if name else 'the text'} is repeated for {number:.1f} epochs; beyond "
                f"{_MANY_EPOCHS} epochs a model learns little more from it. "
                "Add text, or lower `train.duration` or the source's weight."
            )
    for name, split in inspection.splits.items():
        if (fraction := _unknown_fraction(inspection, split)) > _MANY_UNKNOWN:
            warnings.append(f"{fraction:.1%} of the {name} tokens are [UNK]: the tokenizer does not fit the text.")
        if split.duplicate_fraction > _MANY_DUPLICATES:
            warnings.append(
                f"{split.duplicate_fraction:.1%} of the {name} samples are duplicates: documents begin alike."
            )
    if inspection.validation_overlap > _MANY_DUPLICATES:
        warnings.append("validation samples are also training samples: the validation loss will be too low.")
    return warnings


def _count_epochs(plan: TrainPlan, names: list[str], groups: list[Group]) -> dict[str, float]:
    if plan.num_samples is None:
        return {}
    total_weight = sum(group.weight for group in groups)
    return {
        name: plan.num_samples * group.weight / total_weight / group.num_samples
        for name, group in zip(names, groups, strict=True)
    }


def _unknown_fraction(inspection: Inspection, split: SplitInspection) -> float:
    return float(split.frequencies[inspection.unk_id] / max(1, split.frequencies.sum()))
