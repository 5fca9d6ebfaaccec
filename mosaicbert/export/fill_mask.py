"""Filling masks with an exported folder, the way its users will."""

from pathlib import Path

from transformers import pipeline

_GUESSES = 4


def fill_masks(folder: Path, sentences: list[str]) -> list[tuple[str, list[tuple[str, float]]]]:
    """Loads `folder` through the fill-mask pipeline.

    Returns:
        Each sentence with the best guesses for its [MASK] and their probabilities.
    """
    fill = pipeline("fill-mask", model=str(folder), device="cpu", top_k=_GUESSES)
    return [(sentence, [(guess["token_str"], guess["score"]) for guess in fill(sentence)]) for sentence in sentences]
