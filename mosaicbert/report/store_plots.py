"""Plot of a token store: distributions of sample lengths and token frequencies."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mosaicbert.data.store_stats import Inspection

_COLORS = ("#2b5c9e", "#c8553d")  # of the training and validation splits
_NUM_BINS = 32


def draw_store(inspection: Inspection, *, title: str, path: Path) -> None:
    """Plot the distributions of sample lengths and token frequencies of each split.

    Args:
        inspection: Statistics of the store.
        title: Title of the figure.
        path: Path of the PNG file.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    lengths_axes, tokens_axes = figure.subplots(1, 2)
    for (name, split), color in zip(inspection.splits.items(), _COLORS, strict=True):
        edges = np.linspace(1, len(split.lengths), _NUM_BINS + 1)
        lengths = np.arange(len(split.lengths))
        fractions = split.lengths / split.lengths.sum()
        lengths_axes.hist(lengths, edges, weights=fractions, color=color, label=name, histtype="step")
        counts = np.sort(split.frequencies[split.frequencies > 0])[::-1]
        label = f"{name}, unigram entropy {split.unigram_entropy:.3f} nats"
        tokens_axes.loglog(np.arange(1, len(counts) + 1), counts / counts.sum(), color=color, label=label)
    lengths_axes.set_xlabel("Sample length (tokens), without [CLS] and [SEP]")
    lengths_axes.set_ylabel("Fraction of samples")
    tokens_axes.set_xlabel("Token rank")
    tokens_axes.set_ylabel("Fraction of tokens")
    for axes in (lengths_axes, tokens_axes):
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
