"""Mask predictions of an exported folder through the Hugging Face pipeline."""

from pathlib import Path

from transformers import pipeline

_NUM_PREDICTIONS = 4


def fill_masks(folder: Path, sentences: list[str]) -> list[tuple[str, list[tuple[str, float]]]]:
    """Predict the masked token of sentences with the fill-mask pipeline of an exported folder.

    Args:
        folder: Exported Hugging Face folder.
        sentences: Texts with one [MASK] each.

    Returns:
        Each sentence with its most probable tokens and their probabilities, highest first.
    """
    fill_mask = pipeline("fill-mask", model=str(folder), device="cpu", top_k=_NUM_PREDICTIONS)
    return [
        (sentence, [(prediction["token_str"], prediction["score"]) for prediction in fill_mask(sentence)])
        for sentence in sentences
    ]
