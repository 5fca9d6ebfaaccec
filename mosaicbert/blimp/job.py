"""Execution of one job: scores of one checkpoint on the paradigms of one phenomenon."""

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from mosaicbert.blimp.pairs import Paradigm
from mosaicbert.blimp.pseudo_likelihood import pseudo_log_likelihoods
from mosaicbert.config import ConfigError
from mosaicbert.model.modeling import MosaicBertForMaskedLM
from mosaicbert.model.pretrained import first_line, is_mosaicbert, load_pretrained_tokenizer
from mosaicbert.scores.predictions import SplitPredictions
from mosaicbert.scoring.plan import ScoringJob, ScoringResult, describe_scoring_environment


@dataclass(frozen=True, kw_only=True)
class BlimpJob(ScoringJob):
    """Input of a job.

    Attributes:
        paradigms: Paradigms of the phenomenon.
        batch_tokens: Maximum number of tokens per forward pass.
        is_partial: True if a paradigm has fewer pairs than the official data.
    """

    paradigms: list[Paradigm]
    batch_tokens: int
    is_partial: bool


def run_blimp_job(job: BlimpJob) -> ScoringResult:
    """Compute the accuracy of a checkpoint on each paradigm, in fp32 on the device of this process.

    A pair is correct if the grammatical sentence has the higher pseudo-log-likelihood. Ties are incorrect.

    Args:
        job: Input of the job.

    Raises:
        ConfigError: If the model cannot be read.
    """
    model, tokenizer = _load(job.checkpoint.model)
    start_time = time.monotonic()
    good, bad = ([text for paradigm in job.paradigms for text in getattr(paradigm, name)] for name in ("good", "bad"))
    values = pseudo_log_likelihoods(model, tokenizer, [*good, *bad], job.batch_tokens)
    is_correct = [first > second for first, second in zip(values[: len(good)], values[len(good) :], strict=True)]
    metrics: dict[str, float] = {}
    predictions: dict[str, SplitPredictions] = {}
    start = 0
    for paradigm in job.paradigms:
        correct = is_correct[start : start + len(paradigm.good)]
        start += len(correct)
        metrics[paradigm.name] = sum(correct) / len(correct)
        digits = "".join(str(int(value)) for value in correct)
        predictions[paradigm.name] = SplitPredictions(labels="1" * len(correct), predictions=digits)
    return ScoringResult(
        metrics=metrics,
        is_partial=job.is_partial,
        seconds=round(time.monotonic() - start_time, 2),
        environment=describe_scoring_environment(),
        predictions=predictions,
    )


@lru_cache(maxsize=1)
def _load(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    logging.disable_progress_bar()  # Transformers shows a progress bar for every file that it reads
    tokenizer = load_pretrained_tokenizer(name)
    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
        model_class: Any = MosaicBertForMaskedLM if is_mosaicbert(config) else AutoModelForMaskedLM
        model = model_class.from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"Model {name} cannot be loaded as a masked language model ({first_line(error)}). Check the name."
        ) from error
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer
