"""Position to batches: which samples a step takes, how ranks share them, and how they become micro-batches."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mosaicbert.batch import Batch
from mosaicbert.data.masking import Vocabulary, mask_tokens, token_counters
from mosaicbert.data.order import order
from mosaicbert.data.store import TokenStore

_EVAL_SAMPLES_PER_STEP = 1024


@dataclass(frozen=True, kw_only=True)
class BatchMaker:
    """Makes the micro-batches of one rank out of the samples of a step: a pure function of its arguments.

    Attributes:
        store: the split to read.
        vocabulary: of the store's tokenizer.
        seed: of the run.
        mask_rate: share of the ordinary tokens that is masked.
        micro_batch_tokens: tokens of a micro-batch, at most.
        rank: of this process among world_size.
        world_size: processes that share a step.
    """

    store: TokenStore
    vocabulary: Vocabulary
    seed: int
    mask_rate: float
    micro_batch_tokens: int
    rank: int
    world_size: int

    def make(self, epochs: NDArray[np.int64], samples: NDArray[np.int64]) -> list[Batch]:
        """The micro-batches that this rank takes of a step's samples, given with the epoch of each."""
        documents = self.store.read(samples)
        seqlens = np.array([len(document) for document in documents], dtype=np.int64) + 2
        mine = share(seqlens, self.rank, self.world_size)
        return [
            self._make_one(epochs[part], samples[part], [documents[index] for index in part])
            for part in cut(mine, seqlens, self.micro_batch_tokens)
        ]

    def _make_one(
        self, epochs: NDArray[np.int64], samples: NDArray[np.int64], documents: list[NDArray[np.int64]]
    ) -> Batch:
        cls, sep = np.array([self.vocabulary.cls_id]), np.array([self.vocabulary.sep_id])
        input_ids = np.concatenate([piece for ids in documents for piece in (cls, ids, sep)]).astype(np.int64)
        seqlens = np.array([len(ids) for ids in documents], dtype=np.int64) + 2
        counters = token_counters(self.seed, epochs, samples, seqlens)
        input_ids, masked_indices, labels = mask_tokens(input_ids, counters, self.mask_rate, self.vocabulary)
        return Batch(
            input_ids=torch.from_numpy(input_ids),
            cu_seqlens=torch.from_numpy(np.concatenate([[0], np.cumsum(seqlens)]).astype(np.int32)),
            max_seqlen=int(seqlens.max()),
            masked_indices=torch.from_numpy(masked_indices),
            labels=torch.from_numpy(labels),
        )


def share(seqlens: NDArray[np.int64], rank: int, world_size: int) -> NDArray[np.int64]:
    """Which of a step's sequences a rank takes, longest first.

    Sorted by length, they are dealt out back and forth (0 1 2, 2 1 0, 0 1 2, ...), so that ranks get equal numbers of
    sequences and nearly equal numbers of tokens. Neighbours of equal length are what attention on the CPU is fast at.
    """
    longest_first = np.argsort(-seqlens, kind="stable")
    turns = np.arange(len(seqlens)) % (2 * world_size)
    takers = np.minimum(turns, 2 * world_size - 1 - turns)
    return longest_first[takers == rank]


def cut(indices: NDArray[np.int64], seqlens: NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
    """Cuts a rank's sequences, in order, into micro-batches of at most `budget` tokens."""
    parts: list[list[int]] = []
    room = 0
    for index in indices.tolist():
        if seqlens[index] > room:
            parts.append([])
            room = budget
        parts[-1].append(index)
        room -= int(seqlens[index])
    return [np.array(part, dtype=np.int64) for part in parts]


class TrainSteps(torch.utils.data.IterableDataset[list[Batch]]):
    """The steps of a training run; each item is this rank's list of micro-batches. It can begin at any step.

    Args:
        maker: makes the micro-batches.
        samples_per_step: of the global batch.
        num_steps: of the run.
    """

    def __init__(self, maker: BatchMaker, *, samples_per_step: int, num_steps: int) -> None:
        self.maker = maker
        self.samples_per_step = samples_per_step
        self.num_steps = num_steps
        self.first_step = 0

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> list[Batch]:
        positions = np.arange(step * self.samples_per_step, (step + 1) * self.samples_per_step)
        return self.maker.make(*order(positions, self.maker.store.num_samples, self.maker.seed))

    def __iter__(self) -> Iterator[list[Batch]]:
        for step in _steps_of_worker(self.first_step, self.num_steps):
            yield self[step]

    def state_dict(self, num_samples: int, _from_beginning: bool) -> dict[str, int]:
        """The position after `num_samples` samples, as Composer asks for it: one integer."""
        return {"step": num_samples // self.samples_per_step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues at a position; nothing is replayed."""
        self.first_step = state["step"]


class EvalSteps(torch.utils.data.IterableDataset[list[Batch]]):
    """The first samples of a split, always with the same masks, in portions of about a thousand for all ranks together.

    Args:
        maker: makes the micro-batches.
        max_samples: to read at most.

    Raises:
        ValueError: the split has fewer samples than there are ranks.
    """

    def __init__(self, maker: BatchMaker, *, max_samples: int) -> None:
        self.maker = maker
        self.num_samples = min(max_samples, maker.store.num_samples)
        if self.num_samples < maker.world_size:
            raise ValueError(f"{self.num_samples} held-out samples cannot be shared by {maker.world_size} processes.")

    def __len__(self) -> int:
        return max(1, self.num_samples // max(_EVAL_SAMPLES_PER_STEP, self.maker.world_size))

    def __iter__(self) -> Iterator[list[Batch]]:
        # Portions of nearly equal size: every rank finds a sequence in each, and so all make the same number of steps.
        portions = np.array_split(np.arange(self.num_samples), len(self))
        for step in _steps_of_worker(0, len(self)):
            samples = portions[step]
            yield self.maker.make(np.zeros_like(samples), samples)


def _steps_of_worker(first: int, end: int) -> range:
    # A DataLoader asks its workers in turn, so dealing out steps keeps their order.
    worker = torch.utils.data.get_worker_info()
    return range(first, end) if worker is None else range(first + worker.id, end, worker.num_workers)
