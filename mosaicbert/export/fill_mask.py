"""Filling masks with an exported folder, the way its users will."""

from pathlib import Path

from transformers import pipeline

_NUM_PREDICTIONS = 4


def fill_masks(folder: Path, sentences: list[str]) -> list[tuple[str, list[tuple[str, float]]]]:
    """Loads `folder` through the fill-mask pipeline.

    Returns:
        Each sentence with the best guesses for its [MASK] and their probabilities.
    """
    fill_mask = pipeline("fill-mask", model=str(folder), device="cpu", top_k=_NUM_PREDICTIONS)
    return [
        (sentence, [(prediction["token_str"], prediction["score"]) for prediction in fill_mask(sentence)])
        for sentence in sentences
    ]
