"""Command `check`: integrity and statistics of a token store, as text and a plot."""

import math
from pathlib import Path

from rich.console import Console

from mosaicbert.config import ConfigError, Recipe
from mosaicbert.console import print_line
from mosaicbert.data.loading.loader import make_train_plan, sample_groups
from mosaicbert.data.loading.sample_order import Group
from mosaicbert.data.prepare.pipeline import check_store
from mosaicbert.data.store import TRAIN, VALIDATION
from mosaicbert.data.store_stats import Inspection, SplitInspection, inspect_store
from mosaicbert.report.store_plots import draw_store
from mosaicbert.train_plan import TrainPlan

# Limits above which a warning is printed.
_MAX_EPOCHS = 4  # repeated text is nearly as good as new text up to here (Muennighoff et al. 2023, arXiv:2305.16264)
_MAX_UNKNOWN_FRACTION = 0.01  # of all tokens; far above that of a tokenizer trained on similar text
_MAX_DUPLICATE_FRACTION = 0.05  # of all samples


def check(recipe: Recipe, console: Console) -> Path:
    """Verify the token store of a recipe, print its statistics and the length of the run, and plot the store.

    Returns:
        Path of the plot in the run folder.

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
        print_line(console, f"{name + ':':18}{line}")
    for warning in _warnings(inspection, epochs):
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if inspection.problems:
        raise ConfigError(f"{'; '.join(inspection.problems)}. Delete {recipe.store_folder} and prepare it again.")
    path = recipe.run_folder / "check.png"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_store(inspection, title=f"{recipe.run_name}: {recipe.store_folder}", path=path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error}). Set a different `runs_folder`.") from error
    print_line(console, f"{'plot:':18}{path}")
    return path


def _describe(
    recipe: Recipe, inspection: Inspection, plan: TrainPlan, epochs: dict[str, float]
) -> list[tuple[str, str]]:
    record = inspection.record
    num_shards = sum(len(split.shards) for split in record.splits.values())
    result = f"{len(inspection.problems)} problems" if inspection.problems else "checksums, sizes and ids are valid"
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
    for name, num_epochs in epochs.items():
        lines.append((f"epochs {name}".rstrip(), f"{num_epochs:.2f}"))
    duration = recipe.train.duration
    steps = (
        f"unknown before the run, for {duration}" if plan.num_steps is None else f"{plan.num_steps:,} for {duration}"
    )
    steps_per_epoch = record.splits[TRAIN].samples // recipe.train.global_batch_samples
    lines += [
        ("steps", f"{steps}; one epoch of all samples has {steps_per_epoch:,} steps"),
        (
            "unigram entropy",
            f"{inspection.splits[VALIDATION].unigram_entropy:.3f} nats in validation, "
            f"{inspection.splits[TRAIN].unigram_entropy:.3f} nats in training: the loss of a model that predicts the "
            f"token frequencies; the loss of a uniform distribution is {math.log(inspection.num_entries):.3f} nats",
        ),
    ]
    return lines


def _warnings(inspection: Inspection, epochs: dict[str, float]) -> list[str]:
    warnings: list[str] = []
    for name, num_epochs in epochs.items():
        if num_epochs > _MAX_EPOCHS:
            warnings.append(
                f"{f'source {name}' if name else 'the text'} is repeated for {num_epochs:.1f} epochs; "
                f"more than {_MAX_EPOCHS} epochs improve the model little. "
                "Add text, or reduce `train.duration` or the weight of the source."
            )
    for name, split in inspection.splits.items():
        if (fraction := _unknown_fraction(inspection, split)) > _MAX_UNKNOWN_FRACTION:
            warnings.append(f"{fraction:.1%} of the {name} tokens are [UNK]: the tokenizer does not fit the text.")
        if split.duplicate_fraction > _MAX_DUPLICATE_FRACTION:
            warnings.append(
                f"{split.duplicate_fraction:.1%} of the {name} samples are duplicates: documents start alike."
            )
    if inspection.validation_overlap > _MAX_DUPLICATE_FRACTION:
        warnings.append("validation samples are also training samples: the validation loss is biased downward.")
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
