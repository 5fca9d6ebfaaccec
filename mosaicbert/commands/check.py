"""Whether a token store is fit for a run, said before GPU hours are spent: text and a picture."""

import math
from pathlib import Path

import matplotlib
import numpy as np
from rich.console import Console

from mosaicbert.config import ConfigError, Recipe
from mosaicbert.data.loading.loader import plan_run, sample_groups
from mosaicbert.data.loading.sample_order import Group
from mosaicbert.data.prepare.sources import TRAIN, VALIDATION
from mosaicbert.data.store_stats import Inspection, SplitInspection, inspect_store

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Up to four passes over the text are nearly as good as new text (Muennighoff et al. 2023, arXiv:2305.16264).
_MANY_EPOCHS = 4
_MANY_UNKNOWN = 0.01  # of all tokens; a tokenizer that fits its text leaves far fewer
_MANY_REPEATED = 0.05  # of all samples
_BARS = 32


def check(recipe: Recipe, console: Console) -> Path:
    """Reads the whole store of `recipe`, prints what it holds and what a run would make of it, and draws it.

    Returns:
        The path of the picture, in the run's folder.

    Raises:
        ConfigError: the store is missing, damaged, or not what the recipe asks for.
    """
    inspection = inspect_store(recipe)
    groups = sample_groups(recipe, inspection.record.splits[TRAIN].samples_by_source())
    for name, line in _describe(recipe, inspection, groups):
        console.print(f"{name + ':':18}{line}", highlight=False, soft_wrap=True)
    for warning in _warnings(recipe, inspection, groups):
        console.print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True)
    if inspection.problems:
        raise ConfigError(f"{'; '.join(inspection.problems)}; delete {recipe.store_folder} and prepare it again.")
    path = recipe.run_folder / "check.png"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_store(inspection, title=f"{recipe.run_name}: {recipe.store_folder}", path=path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error}); choose another runs_folder.") from error
    console.print(f"{'picture:':18}{path}", highlight=False, soft_wrap=True)
    return path


def draw_store(inspection: Inspection, *, title: str, path: Path) -> None:
    """Draws how long the samples of each split are, and how often its tokens occur.

    Args:
        inspection: of the store.
        title: of the figure.
        path: of the PNG.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for (name, split), color in zip(inspection.splits.items(), ("#2b5c9e", "#c8553d"), strict=True):
        edges = np.linspace(1, len(split.lengths), _BARS + 1)
        lengths = np.arange(len(split.lengths))
        left.hist(lengths, edges, weights=split.lengths / split.lengths.sum(), color=color, label=name, histtype="step")
        ranked = np.sort(split.frequencies[split.frequencies > 0])[::-1]
        label = f"{name}, unigram entropy {split.unigram_entropy:.3f} nats"
        right.loglog(np.arange(1, len(ranked) + 1), ranked / ranked.sum(), color=color, label=label)
    left.set_xlabel("tokens of a sample, without [CLS] and [SEP]")
    left.set_ylabel("share of the samples")
    right.set_xlabel("rank of a token")
    right.set_ylabel("share of the tokens")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _describe(recipe: Recipe, inspection: Inspection, groups: list[Group]) -> list[tuple[str, str]]:
    record = inspection.record
    shards = sum(len(split.shards) for split in record.splits.values())
    checked = (
        "checksums, sizes and ids are right" if not inspection.problems else f"{len(inspection.problems)} problems"
    )
    lines = [("store", f"{recipe.store_folder}, {shards:,} shards; {checked}")]
    for name, split in record.splits.items():
        seen = inspection.splits[name]
        lines.append(
            (
                name,
                f"{split.samples:,} samples, {split.tokens:,} tokens, {split.tokens / split.samples:.1f} per sample; "
                f"{_share_unknown(inspection, seen):.3%} unknown, {seen.repeated:.2%} of the samples repeated",
            )
        )
    lines.append(("held out", f"{inspection.held_out_in_training:.2%} of its samples are in training as well"))
    for name, documents in record.documents.items():
        dropped = record.dropped.get(name, {})
        reasons = ", ".join(f"{count:,} {reason} ({count / documents:.2%})" for reason, count in dropped.items())
        lines.append((f"source {name}", f"{documents:,} documents; left out: {reasons or 'nothing'}"))
    for name, epochs in _epochs(recipe, inspection, groups).items():
        lines.append((f"epochs {name}".rstrip(), f"{epochs:.2f}"))
    available = record.splits[TRAIN].samples // recipe.train.global_batch_samples
    lines += [
        ("steps", f"{_describe_steps(recipe)}; one pass over all samples is {available:,}"),
        (
            "unigram entropy",
            f"{inspection.splits[VALIDATION].unigram_entropy:.3f} nats held out, "
            f"{inspection.splits[TRAIN].unigram_entropy:.3f} in training: the loss of a model that knows only how "
            f"often each token occurs; one that knows nothing has {math.log(inspection.entries):.3f}",
        ),
    ]
    return lines


def _warnings(recipe: Recipe, inspection: Inspection, groups: list[Group]) -> list[str]:
    found: list[str] = []
    for name, epochs in _epochs(recipe, inspection, groups).items():
        if epochs > _MANY_EPOCHS:
            found.append(
                f"{name or 'all text'} is passed over {epochs:.1f} times; from {_MANY_EPOCHS} on a model learns little "
                "more from it. Add text, lower train.duration, or the source's weight."
            )
    for name, split in inspection.splits.items():
        if (unknown := _share_unknown(inspection, split)) > _MANY_UNKNOWN:
            found.append(f"{unknown:.1%} of the {name} tokens are [UNK]: the tokenizer does not fit the text.")
        if split.repeated > _MANY_REPEATED:
            found.append(f"{split.repeated:.1%} of the {name} samples are repetitions: documents begin alike.")
    if inspection.held_out_in_training > _MANY_REPEATED:
        found.append("held-out samples are in training as well: the held-out loss will be too good.")
    return found


def _describe_steps(recipe: Recipe) -> str:
    steps = plan_run(recipe).num_steps
    return f"as many as {recipe.train.duration} hold" if steps is None else f"{steps:,} for {recipe.train.duration}"


def _epochs(recipe: Recipe, inspection: Inspection, groups: list[Group]) -> dict[str, float]:
    """Passes over each source, or over everything under the empty name; none for a run whose duration is a time."""
    plan = plan_run(recipe)
    if plan.num_steps is None:
        return {}
    samples = plan.first_sample(plan.num_steps)
    whole = sum(group.weight for group in groups)
    names = list(inspection.record.splits[TRAIN].samples_by_source()) if len(groups) > 1 else [""]
    return {name: samples * group.weight / whole / group.num_samples for name, group in zip(names, groups, strict=True)}


def _share_unknown(inspection: Inspection, split: SplitInspection) -> float:
    return float(split.frequencies[inspection.unk_id] / max(1, split.frequencies.sum()))
