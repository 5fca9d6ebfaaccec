"""Position to batches: which samples a step takes, how ranks share them, and how they become micro-batches."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mosaicbert.batch import IGNORED, Step
from mosaicbert.data.hashing import Words
from mosaicbert.data.masking import Vocabulary, choose_masked, replace_masked, token_counters
from mosaicbert.data.order import Group, mixed_order, order
from mosaicbert.data.store import TokenStore

_EVAL_SAMPLES_PER_STEP = 1024
EVAL_SEED = 0  # runs with different seeds are measured by the same masks
_MASKED_DEVIATIONS = 3  # of the number of masked tokens, for which there is room; if more are masked, the shape grows
_SHAPES_PER_BUDGET = 128  # micro-batches are filled up to a multiple of so small a part of the budget


@dataclass(frozen=True, kw_only=True)
class BatchMaker:
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

    def make(self, epochs: NDArray[np.int64], samples: NDArray[np.int64], mask_rate: float) -> Step:
        """What this rank does of a step.

        Args:
            epochs: (samples,) of each sample.
            samples: their numbers in the store.
            mask_rate: share of the ordinary tokens that is masked.
        """
        documents = self.store.read(samples)
        seqlens = np.array([len(document) for document in documents], dtype=np.int64) + 2
        # Every rank looks at all micro-batches of the step: so all know their common shape, and the tokens masked in
        # all of them, without asking each other.
        parts = divide(seqlens, self.world_size, self.micro_batch_tokens)
        drafts = [
            self._draft(epochs[part], samples[part], [documents[index] for index in part], seqlens[part], mask_rate)
            for part in parts
        ]
        return self._put_together(
            drafts[self.rank :: self.world_size],
            self._shape(drafts),
            global_masked=sum(draft.counts[2] for draft in drafts),
        )

    def _draft(
        self,
        epochs: NDArray[np.int64],
        samples: NDArray[np.int64],
        documents: Sequence[NDArray[np.int64]],
        seqlens: NDArray[np.int64],
        mask_rate: float,
    ) -> "_Draft":
        text = np.concatenate(documents)
        # [CLS] stands at position 0 of each sequence and is never masked, nor is [SEP].
        counters = token_counters(self.seed, epochs, samples, seqlens - 2, first_position=1)
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

    def _put_together(self, drafts: Sequence["_Draft"], shape: tuple[int, int, int], global_masked: int) -> Step:
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
        return Step(
            input_ids=torch.from_numpy(input_ids),
            cu_seqlens=torch.from_numpy(cu_seqlens),
            max_seqlen=self.max_seq_len,
            masked_indices=torch.from_numpy(masked_indices),
            labels=torch.from_numpy(labels),
            num_tokens=tuple(number for number, _, _ in counts),
            num_sequences=tuple(number for _, number, _ in counts),
            num_masked=tuple(number for _, _, number in counts),
            global_masked=global_masked,
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
        return len(self.text) + 2 * len(self.seqlens), len(self.seqlens), len(self.chosen)


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


class TrainSteps(torch.utils.data.IterableDataset[Step]):
    """The steps of a training run, as one rank does them. It can begin at any step.

    Args:
        maker: makes the micro-batches.
        groups: that the store's samples form.
        samples_per_step: of the global batch.
        num_steps: of the run.
        mask_rate: of a step.
    """

    def __init__(
        self,
        maker: BatchMaker,
        *,
        groups: Sequence[Group],
        samples_per_step: int,
        num_steps: int,
        mask_rate: Callable[[int], float],
    ) -> None:
        self.maker = maker
        self.groups = groups
        self.samples_per_step = samples_per_step
        self.num_steps = num_steps
        self.mask_rate = mask_rate
        self.first_step = 0

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> Step:
        positions = np.arange(step * self.samples_per_step, (step + 1) * self.samples_per_step)
        epochs, samples = mixed_order(positions, self.groups, self.maker.seed)
        return self.maker.make(epochs, samples, self.mask_rate(step))

    def __iter__(self) -> Iterator[Step]:
        for step in _steps_of_worker(self.first_step, self.num_steps):
            yield self[step]

    def state_dict(self, num_samples: int, _from_beginning: bool) -> dict[str, int]:
        """The position after `num_samples` samples, as Composer asks for it: one integer."""
        return {"step": num_samples // self.samples_per_step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues at a position; nothing is replayed."""
        self.first_step = state["step"]


class EvalSteps(torch.utils.data.IterableDataset[Step]):
    """Samples from all over a split, always the same with the same masks, about a thousand at a time for all ranks.

    Args:
        maker: makes the micro-batches.
        max_samples: to read at most.
        mask_rate: share of the ordinary tokens that is masked.

    Raises:
        ValueError: the split has fewer samples than there are ranks.
    """

    def __init__(self, maker: BatchMaker, *, max_samples: int, mask_rate: float) -> None:
        self.maker = maker
        self.num_samples = min(max_samples, maker.store.num_samples)
        self.mask_rate = mask_rate
        if self.num_samples < maker.world_size:
            raise ValueError(f"{self.num_samples} held-out samples cannot be shared by {maker.world_size} processes.")

    def __len__(self) -> int:
        return max(1, self.num_samples // max(_EVAL_SAMPLES_PER_STEP, self.maker.world_size))

    def __iter__(self) -> Iterator[Step]:
        # Portions of nearly equal size: every rank finds a sequence in each, and so all make the same number of steps.
        portions = np.array_split(np.arange(self.num_samples), len(self))
        for step in _steps_of_worker(0, len(self)):
            epochs, samples = order(portions[step], self.maker.store.num_samples, self.maker.seed)
            yield self.maker.make(epochs, samples, self.mask_rate)


def _steps_of_worker(first: int, end: int) -> range:
    # A DataLoader asks its workers in turn, so dealing out steps keeps their order.
    worker = torch.utils.data.get_worker_info()
    return range(first, end) if worker is None else range(first + worker.id, end, worker.num_workers)


def _round_up(number: int, quantum: int) -> int:
    return -(-number // quantum) * quantum
