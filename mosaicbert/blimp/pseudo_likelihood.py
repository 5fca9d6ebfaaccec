"""Pseudo-log-likelihood of sentences under a masked language model."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mosaicbert.batch import MicroBatch
from mosaicbert.model.modeling import MosaicBertForMaskedLM


@dataclass(frozen=True)
class MaskedSequence:
    """Input whose prediction at one masked token is a term of a pseudo-log-likelihood.

    Attributes:
        ids: Token ids, with the token and the following ones of its word masked.
        position: Index of the token.
        target: Original id of the token.
        sentence: Index of the sentence.
    """

    ids: tuple[int, ...]
    position: int
    target: int
    sentence: int


def pseudo_log_likelihoods(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], batch_tokens: int
) -> list[float]:
    """Compute the pseudo-log-likelihood of each sentence, in nats.

        PLL(s) = sum_t log P(s_t | s without s_t and without the tokens after s_t in the word of s_t)

    Equal sentences have equal values, because each distinct sequence of tokens is computed once.

    Args:
        model: Masked language model in evaluation mode.
        tokenizer: Fast tokenizer of the model, which knows the word of each token.
        sentences: Sentences.
        batch_tokens: Maximum number of tokens per forward pass. A longer sentence is a batch of its own.

    Source: PLL of Salazar et al. 2020, arXiv:1910.14659; correction within words ("PLL-word-l2r") of Kauf and Ivanova
    2023, arXiv:2305.10588.
    """
    encoded: Any = tokenizer(list(sentences), return_attention_mask=False)
    first_index: dict[tuple[int, ...], int] = {}  # of each distinct sequence of tokens
    indices = [first_index.setdefault(tuple(ids), index) for index, ids in enumerate(encoded["input_ids"])]
    mask_token_id = cast(int, tokenizer.mask_token_id)
    by_length: defaultdict[int, list[MaskedSequence]] = defaultdict(list)
    for ids, index in first_index.items():
        by_length[len(ids)] += mask_tokens(ids, encoded.word_ids(index), mask_token_id, index)
    totals = torch.zeros(len(sentences), dtype=torch.float64)
    for length, sequences in sorted(by_length.items()):
        size = max(1, batch_tokens // length)
        for start in range(0, len(sequences), size):
            batch = sequences[start : start + size]
            scores = _log_probabilities(model, batch).double().cpu()
            totals.index_add_(0, torch.tensor([sequence.sentence for sequence in batch]), scores)
    return totals[torch.tensor(indices, dtype=torch.int64)].tolist()


def mask_tokens(
    ids: Sequence[int], words: Sequence[int | None], mask_token_id: int, sentence: int
) -> Iterator[MaskedSequence]:
    """Create the inputs of a sentence, one for each of its tokens that are not special.

    Args:
        ids: Token ids of the sentence.
        words: Index of the word of each token; None for special tokens.
        mask_token_id: Id of [MASK].
        sentence: Index of the sentence.
    """
    for position, word in enumerate(words):
        if word is None:
            continue
        masked = [
            mask_token_id if index >= position and other == word else token
            for index, (token, other) in enumerate(zip(ids, words, strict=True))
        ]
        yield MaskedSequence(tuple(masked), position, ids[position], sentence)


@torch.inference_mode()
def _log_probabilities(model: PreTrainedModel, batch: Sequence[MaskedSequence]) -> Tensor:
    # Returns (B,) fp32. All sequences have the same length, so that no model needs padding.
    device = model.device
    ids = torch.tensor([sequence.ids for sequence in batch], device=device)  # (B, S)
    positions = torch.tensor([sequence.position for sequence in batch], device=device)
    targets = torch.tensor([sequence.target for sequence in batch], device=device)
    predict = _predict_unpadded if isinstance(model, MosaicBertForMaskedLM) else _predict
    logits = predict(model, ids, positions).float()  # (B, V)
    return logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]


def _predict_unpadded(model: Any, ids: Tensor, positions: Tensor) -> Tensor:
    num_sequences, length = ids.shape
    starts = torch.arange(num_sequences + 1, device=ids.device, dtype=torch.int32) * length
    batch = MicroBatch(
        input_ids=ids.flatten(),
        cu_seqlens=starts,
        max_seqlen=length,
        masked_indices=starts[:-1] + positions,
        labels=torch.zeros_like(positions),
        num_tokens=ids.numel(),
        num_sequences=num_sequences,
        num_masked=num_sequences,
    )
    return model.predict(batch)


def _predict(model: Any, ids: Tensor, positions: Tensor) -> Tensor:
    # The decoder is computed at the masked positions only: for short sentences it is most of the computation.
    decoder: nn.Module = model.get_output_embeddings()

    def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (hidden,) = inputs  # (B, S, C)
        return (hidden[torch.arange(len(positions), device=hidden.device), positions][:, None],)

    with decoder.register_forward_pre_hook(select):
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 0]
