"""Position to batches: which samples a step takes, how ranks share them, and how they become micro-batches."""

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mosaicbert.batch import IGNORED, StepBatch
from mosaicbert.data.loading.counter_rng import Words
from mosaicbert.data.loading.masking import Vocabulary, choose_masked, replace_masked, token_counters
from mosaicbert.data.loading.sample_order import Group, mixed_order, order
from mosaicbert.data.store import TokenStore

NUM_SPECIAL_TOKENS = 2  # [CLS] and [SEP], which every sequence gets
_EVAL_SAMPLES_PER_STEP = 1024
EVAL_SEED = 0  # runs with different seeds are measured by the same masks
_MASKED_DEVIATIONS = 3  # of the number of masked tokens, for which there is room; if more are masked, the shape grows
_SHAPES_PER_BUDGET = 128  # micro-batches are filled up to a multiple of so small a part of the budget


@dataclass(frozen=True, kw_only=True)
class MlmCollator:
    """Makes the micro-batches of one rank out of the samples of a step: a pure function of its arguments.

    Attributes:
        store: the split to read.
        vocabulary: of the store's tokenizer.
        seed: of the masks.
        max_seq_len: tokens of the longest sample.
        micro_batch_tokens: tokens of a micro-batch, at most.
        largest_mask_rate: of the run; micro-batches have room for it.
        rank: of this process among world_size.
        world_size: processes that share a step.
    """

    store: TokenStore
    vocabulary: Vocabulary
    seed: int
    max_seq_len: int
    micro_batch_tokens: int
    largest_mask_rate: float
    rank: int
    world_size: int

    def make(self, epochs: NDArray[np.int64], samples: NDArray[np.int64], mask_rate: float) -> StepBatch:
        """What this rank does of a step.

        Args:
            epochs: (samples,) of each sample.
            samples: their numbers in the store.
            mask_rate: share of the ordinary tokens that is masked.
        """
        documents = self.store.read(samples)
        seqlens = np.array([len(document) for document in documents], dtype=np.int64) + NUM_SPECIAL_TOKENS
        # Every rank looks at all micro-batches of the step: so all know their common shape, and the tokens masked in
        # all of them, without asking each other.
        parts = divide(seqlens, self.world_size, self.micro_batch_tokens)
        # As many for every rank, since ranks that share weights out make every forward pass together.
        parts += [np.zeros(0, dtype=np.int64)] * (-len(parts) % self.world_size)
        drafts = [
            self._draft(epochs[part], samples[part], [documents[index] for index in part], seqlens[part], mask_rate)
            for part in parts
        ]
        return self._put_together(
            drafts[self.rank :: self.world_size],
            self._shape(drafts),
            drafts,
            mask_rate,
        )

    def _draft(
        self,
        epochs: NDArray[np.int64],
        samples: NDArray[np.int64],
        documents: Sequence[NDArray[np.int64]],
        seqlens: NDArray[np.int64],
        mask_rate: float,
    ) -> "_Draft":
        text = np.concatenate([np.zeros(0, dtype=np.int64), *documents])
        # [CLS] stands at position 0 of each sequence and is never masked, nor is [SEP].
        counters = token_counters(self.seed, epochs, samples, seqlens - NUM_SPECIAL_TOKENS, first_position=1)
        chosen = choose_masked(text, counters, mask_rate, self.vocabulary)
        return _Draft(text, seqlens, chosen, counters[chosen])

    def _shape(self, drafts: Sequence["_Draft"]) -> tuple[int, int, int]:
        quantum = max(8, self.micro_batch_tokens // _SHAPES_PER_BUDGET)
        num_tokens, num_sequences, num_masked = zip(*(draft.counts for draft in drafts), strict=True)
        tokens = min(_round_up(max(num_tokens), quantum), self.micro_batch_tokens)
        # Filler stands behind the real documents. Empty ones cost next to nothing: their number is rounded generously.
        fillers = [-(-(tokens - number) // self.max_seq_len) for number in num_tokens]
        sequences = max(map(sum, zip(num_sequences, fillers, strict=True)))
        sequences = _round_up(sequences, max(1, 1 << sequences.bit_length() >> 2))
        # Room for the masked tokens follows from the tokens, so that it does not make shapes of its own.
        rate = self.largest_mask_rate
        expected = tokens * rate + _MASKED_DEVIATIONS * math.sqrt(tokens * rate * (1 - rate))
        return tokens, sequences, _round_up(max(math.ceil(expected), *num_masked), max(8, quantum // 2))

    def _put_together(
        self, drafts: Sequence["_Draft"], shape: tuple[int, int, int], of_all: Sequence["_Draft"], mask_rate: float
    ) -> StepBatch:
        tokens, sequences, masked = shape
        input_ids = np.full((len(drafts), tokens), self.vocabulary.pad_id, dtype=np.int64)
        cu_seqlens = np.full((len(drafts), sequences + 1), tokens, dtype=np.int32)
        cu_seqlens[:, 0] = 0
        masked_indices = np.zeros((len(drafts), masked), dtype=np.int64)
        labels = np.full((len(drafts), masked), IGNORED, dtype=np.int64)
        counts = [draft.counts for draft in drafts]
        for row, (draft, (num_tokens, num_sequences, num_masked)) in enumerate(zip(drafts, counts, strict=True)):
            ends = np.cumsum(draft.seqlens)
            starts = ends - draft.seqlens
            is_text = np.ones(num_tokens, dtype=np.bool_)
            is_text[starts] = is_text[ends - 1] = False
            ids = input_ids[row, :num_tokens]
            ids[is_text] = draft.text
            ids[starts], ids[ends - 1] = self.vocabulary.cls_id, self.vocabulary.sep_id
            cu_seqlens[row, 1 : num_sequences + 1] = ends
            filler = np.arange(num_tokens, tokens, self.max_seq_len)[1:]  # its documents are no longer than real ones
            cu_seqlens[row, num_sequences + 1 : num_sequences + 1 + len(filler)] = filler
            indices = np.flatnonzero(is_text)[draft.chosen]
            masked_indices[row, :num_masked] = indices
            labels[row, :num_masked] = ids[indices]
            ids[indices] = replace_masked(labels[row, :num_masked], draft.counters, self.vocabulary)
        global_tokens, global_samples, global_masked = map(sum, zip(*(draft.counts for draft in of_all), strict=True))
        return StepBatch(
            input_ids=torch.from_numpy(input_ids),
            cu_seqlens=torch.from_numpy(cu_seqlens),
            max_seqlen=self.max_seq_len,
            masked_indices=torch.from_numpy(masked_indices),
            labels=torch.from_numpy(labels),
            num_tokens=tuple(number for number, _, _ in counts),
            num_sequences=tuple(number for _, number, _ in counts),
            num_masked=tuple(number for _, _, number in counts),
            global_tokens=global_tokens,
            global_samples=global_samples,
            global_masked=global_masked,
            mask_rate=mask_rate,
        )


@dataclass(frozen=True)
class _Draft:
    """A micro-batch of any rank before its shape is known.

    Attributes:
        text: tokens of its documents, without [CLS] and [SEP].
        seqlens: of the documents, with them.
        chosen: positions in the text that are masked.
        counters: of these positions.
    """

    text: NDArray[Any]
    seqlens: NDArray[np.int64]
    chosen: NDArray[np.int64]
    counters: Words

    @property
    def counts(self) -> tuple[int, int, int]:
        """Tokens, documents, masked tokens."""
        return len(self.text) + NUM_SPECIAL_TOKENS * len(self.seqlens), len(self.seqlens), len(self.chosen)


def divide(seqlens: NDArray[np.int64], world_size: int, budget: int) -> list[NDArray[np.int64]]:
    """Divides the sequences of a step among the micro-batches of all ranks, as few as can be, nearly equally long.

    Args:
        seqlens: tokens of each sequence, none above the budget.
        world_size: number of ranks.
        budget: tokens of a micro-batch, at most.

    Returns:
        The sequences of each micro-batch, longest first; those of rank r stand at r, r + world_size, ... None is empty,
        and every rank has one if there are sequences enough.
    """
    per_rank = max(1, -(-int(seqlens.sum()) // (world_size * budget)))
    while True:
        parts = deal(seqlens, per_rank * world_size)
        if max(seqlens[part].sum() for part in parts) <= budget:
            return parts
        per_rank += 1


def deal(seqlens: NDArray[np.int64], num_hands: int) -> list[NDArray[np.int64]]:
    """Deals sequences out, longest first, in rounds; in each the hand that has least gets the longest.

    Hands get equal numbers of sequences and nearly equal numbers of tokens. Empty hands are left out.
    """
    longest_first = np.argsort(-seqlens, kind="stable")
    if num_hands == 1:
        return [longest_first]
    owners = np.empty(len(seqlens), dtype=np.int64)
    held = np.zeros(num_hands, dtype=np.int64)
    for first in range(0, len(seqlens), num_hands):
        dealt = longest_first[first : first + num_hands]
        takers = np.argsort(held, kind="stable")[: len(dealt)]
        owners[first : first + num_hands] = takers
        held[takers] += seqlens[dealt]
    by_owner = longest_first[np.argsort(owners, kind="stable")]
    return np.split(by_owner, np.cumsum(np.bincount(owners))[:-1])


class TrainDataset(torch.utils.data.IterableDataset[StepBatch]):
    """The steps of a training run, as one rank does them. It can begin at any step; nothing before it is read.

    Args:
        maker: makes the micro-batches.
        groups: that the store's samples form.
        first_sample: of a batch: batch b takes the samples from first_sample(b) to first_sample(b + 1) of the order.
        num_steps: of the run; None has no end.
        mask_rate: of a step.
        first_step: to begin at.
        skipped: numbers of the batches that are left out; the steps take those that remain, in order.
    """

    def __init__(
        self,
        maker: MlmCollator,
        *,
        groups: Sequence[Group],
        first_sample: Callable[[int], int],
        num_steps: int | None,
        mask_rate: Callable[[int], float],
        first_step: int = 0,
        skipped: Collection[int] = (),
    ) -> None:
        self.maker = maker
        self.groups = groups
        self.first_sample = first_sample
        self.num_steps = num_steps
        self.mask_rate = mask_rate
        self.first_step = first_step
        self.skipped = sorted(skipped)

    def __getitem__(self, step: int) -> StepBatch:
        batch = self.batch_of(step)
        epochs, samples = self.samples_of(batch)
        return replace(self.maker.make(epochs, samples, self.mask_rate(step)), batch=batch)

    def __iter__(self) -> Iterator[StepBatch]:
        for step in _steps_of_worker(self.first_step, self.num_steps):
            yield self[step]

    def batch_of(self, step: int) -> int:
        """The number of the batch that a step trains on."""
        batch = step
        for number in self.skipped:
            batch += number <= batch
        return batch

    def samples_of(self, batch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The samples of a batch, all ranks together.

        Returns:
            (samples,) the epoch of each, and its number in the store.
        """
        positions = np.arange(self.first_sample(batch), self.first_sample(batch + 1))
        return mixed_order(positions, self.groups, self.maker.seed)


class EvalDataset(torch.utils.data.IterableDataset[StepBatch]):
    """Samples from all over a split, always the same with the same masks, about a thousand at a time for all ranks.

    Args:
        maker: makes the micro-batches.
        max_samples: to read at most.
        mask_rate: share of the ordinary tokens that is masked.

    Raises:
        ValueError: the split has fewer samples than there are ranks.
    """

    def __init__(self, maker: MlmCollator, *, max_samples: int, mask_rate: float) -> None:
        self.maker = maker
        self.num_samples = min(max_samples, maker.store.num_samples)
        self.mask_rate = mask_rate
        if self.num_samples < maker.world_size:
            raise ValueError(f"{self.num_samples} held-out samples cannot be shared by {maker.world_size} processes.")

    def __len__(self) -> int:
        return max(1, self.num_samples // max(_EVAL_SAMPLES_PER_STEP, self.maker.world_size))

    def __iter__(self) -> Iterator[StepBatch]:
        # Portions of nearly equal size: every rank finds a sequence in each, and so all make the same number of steps.
        portions = np.array_split(np.arange(self.num_samples), len(self))
        for step in _steps_of_worker(0, len(self)):
            epochs, samples = order(portions[step], self.maker.store.num_samples, self.maker.seed)
            yield self.maker.make(epochs, samples, self.mask_rate)


def _steps_of_worker(first: int, end: int | None) -> Iterator[int]:
    # A DataLoader asks its workers in turn, so dealing out steps keeps their order.
    worker = torch.utils.data.get_worker_info()
    offset, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
    steps = itertools.count(first + offset, stride)
    return steps if end is None else itertools.takewhile(lambda step: step < end, steps)


def _round_up(number: int, quantum: int) -> int:
    return -(-number // quantum) * quantum
