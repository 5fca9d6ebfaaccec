"""The loss of a run against time, as a picture."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_SMOOTHING = 0.9  # weight of the past in the running mean of the training loss


def draw_loss(metrics: list[dict[str, Any]], *, unigram_entropy: float, title: str, path: Path) -> None:
    """Draws training and held-out loss against training time, with the unigram entropy as the line to beat.

    Args:
        metrics: the lines of metrics.jsonl.
        unigram_entropy: of the held-out text, nats per token.
        title: of the figure.
        path: of the PNG.
    """
    training = [line for line in metrics if "loss" in line]
    held_out = [line for line in metrics if "eval_loss" in line]
    unit, divisor = ("hours", 3600) if training[-1]["seconds"] > 2 * 3600 else ("minutes", 60)
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    times = [line["seconds"] / divisor for line in training]
    axes.plot(times, [line["loss"] for line in training], color="#b9cbe3", linewidth=0.8)
    axes.plot(times, _running_mean([line["loss"] for line in training]), color="#2b5c9e", label="training")
    axes.plot(
        [line["seconds"] / divisor for line in held_out],
        [line["eval_loss"] for line in held_out],
        color="#c8553d",
        marker="o",
        markersize=4,
        label="held-out",
    )
    axes.axhline(unigram_entropy, color="#555555", linestyle="--", linewidth=1, label="unigram entropy, held-out text")
    axes.set_xlabel(f"training time ({unit})")
    axes.set_ylabel("masked-token loss (nats)")
    axes.set_title(title)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _running_mean(values: list[float]) -> list[float]:
    smooth: list[float] = []
    total = weight = 0.0
    for value in values:
        total = _SMOOTHING * total + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        smooth.append(total / weight)
    return smooth
