"""Documents of the benchmark: the first training steps of a recipe, and the same documents as padded batches."""

import itertools
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from mosaicbert.batch import IGNORED, StepBatch
from mosaicbert.bench.timing import NUM_WARMUP_ROUNDS
from mosaicbert.config import Recipe
from mosaicbert.data.loading.dataset import TrainDataset
from mosaicbert.data.loading.loader import build_train_loader, make_train_plan, open_store
from mosaicbert.data.store import StoreRecord

_NUM_EMBEDDED = 128  # documents of a round of embeddings
_MIN_MICRO_BATCHES = 4  # of a round, so that documents sorted by length have little padding


@dataclass(frozen=True)
class Document:
    """Masked document.

    Attributes:
        input_ids: (L,) int64 tokens after masking.
        labels: (L,) int64 original token at each masked position, -100 elsewhere.
    """

    input_ids: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Workload:
    """Documents of one round.

    Attributes:
        steps: Step batches of the data loader; none for embeddings.
        documents: Documents of the steps, in random order within each step, or documents to embed.
        loader_seconds: Time in which one process created a step batch, in seconds; None for embeddings.
    """

    steps: list[StepBatch]
    documents: list[Document]
    loader_seconds: float | None

    @property
    def num_masked(self) -> int:
        """Number of masked tokens."""
        return sum(step.global_num_masked for step in self.steps)

    @property
    def num_micro_batches(self) -> int:
        """Number of micro-batches of the data loader."""
        return sum(len(step.micro_batches) for step in self.steps)

    @property
    def num_tokens(self) -> int:
        """Number of tokens without padding."""
        return sum(len(document.input_ids) for document in self.documents)

    @property
    def seqlens(self) -> Tensor:
        """Length of each document in tokens, (B,) int64."""
        return torch.tensor([len(document.input_ids) for document in self.documents])


def build_run_loader(
    recipe: Recipe, record: StoreRecord, *, world_size: int = 1, first_step: int = 0
) -> DataLoader[StepBatch]:
    """Build the data loader of the first rank of a run.

    Args:
        recipe: Recipe of the run.
        record: Record of its token store.
        world_size: Number of ranks.
        first_step: Number of steps that are done.
    """
    return build_train_loader(
        make_train_plan(recipe.data, recipe.train, record),
        recipe.data,
        open_store(recipe.store_folder, record),
        seed=recipe.seed,
        micro_batch_tokens=recipe.train.micro_batch_tokens,
        rank=0,
        world_size=world_size,
        first_step=first_step,
    )


def read_steps(recipe: Recipe, record: StoreRecord) -> Generator[StepBatch]:
    """Create the steps of a run on one device in their order, in this process.

    Args:
        recipe: Recipe of the run.
        record: Record of its token store.
    """
    dataset = cast(TrainDataset, build_run_loader(recipe, record).dataset)
    yield from (dataset[index] for index in itertools.count())


def read_workloads(recipe: Recipe, record: StoreRecord, num_rounds: int) -> list[Workload]:
    """Read the first steps of a run on one device.

    A round after the warmup has as many steps as are needed for four micro-batches.

    Args:
        recipe: Recipe of the run.
        record: Record of its token store.
        num_rounds: Number of rounds, those of the warmup included.
    """
    all_steps = read_steps(recipe, record)
    workloads: list[Workload] = []
    for index in range(num_rounds):
        min_micro_batches = 1 if index < NUM_WARMUP_ROUNDS else _MIN_MICRO_BATCHES
        steps: list[StepBatch] = []
        start = time.perf_counter()
        while sum(len(step.micro_batches) for step in steps) < min_micro_batches:
            steps.append(next(all_steps))
        loader_seconds = (time.perf_counter() - start) / len(steps)
        documents = [document for step in steps for document in documents_of(step)]
        workloads.append(Workload(steps, documents, loader_seconds))
    return workloads


def read_embedding_workloads(recipe: Recipe, record: StoreRecord, num_rounds: int) -> list[Workload]:
    """Read rounds of 128 documents from the first steps of a run, in random order.

    Args:
        recipe: Recipe of the run.
        record: Record of its token store.
        num_rounds: Number of rounds.
    """
    num_rounds_of_steps = -(-num_rounds * _NUM_EMBEDDED // recipe.train.min_batch_samples)
    workloads = read_workloads(recipe, record, num_rounds_of_steps)
    documents = [document for workload in workloads for document in workload.documents]
    starts = range(0, num_rounds * _NUM_EMBEDDED, _NUM_EMBEDDED)
    return [Workload([], documents[start : start + _NUM_EMBEDDED], None) for start in starts]


def documents_of(step: StepBatch) -> list[Document]:
    """Return the real documents of a step in random order. The loader has sorted them by length."""
    documents: list[Document] = []
    for batch in step.micro_batches:
        labels = torch.full_like(batch.input_ids, IGNORED)
        labels[batch.masked_indices[: batch.num_masked]] = batch.labels[: batch.num_masked]
        seqlens: list[int] = batch.cu_seqlens[: batch.num_sequences + 1].diff().tolist()
        token_ids = batch.input_ids[: batch.num_tokens].split(seqlens)
        documents += map(Document, token_ids, labels[: batch.num_tokens].split(seqlens))
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(step.batch))
    return [documents[index] for index in order.tolist()]


def cut_in_order(documents: list[Document], num_batches: int) -> list[list[Document]]:
    """Cut documents into batches of equal size in their order, as a data loader with a fixed batch size does."""
    size = -(-len(documents) // num_batches)
    return [documents[start : start + size] for start in range(0, len(documents), size)]


def sort_by_length(documents: list[Document]) -> list[Document]:
    """Sort documents by their length, longest first."""
    return sorted(documents, key=lambda document: -len(document.input_ids))


def cut_by_tokens(documents: list[Document], max_tokens: int) -> list[list[Document]]:
    """Cut sorted documents into batches of at most `max_tokens` tokens with padding, one document at least.

    Args:
        documents: Documents, longest first.
        max_tokens: Maximum number of tokens with padding.
    """
    batches: list[list[Document]] = []
    for document in documents:
        if batches and (len(batches[-1]) + 1) * len(batches[-1][0].input_ids) <= max_tokens:
            batches[-1].append(document)
        else:
            batches.append([document])
    return batches


def pad_documents(documents: list[Document], pad_token_id: int) -> dict[str, Tensor]:
    """Pad documents to the longest of them.

    Args:
        documents: B documents, the longest of S tokens.
        pad_token_id: Token of padding.

    Returns:
        input_ids, attention_mask and labels, (B, S) int64 each; labels are -100 at padding.
    """
    token_ids, labels = zip(*((document.input_ids, document.labels) for document in documents), strict=True)
    mask = [torch.ones_like(document.input_ids) for document in documents]
    return {
        "input_ids": pad_sequence(list(token_ids), batch_first=True, padding_value=pad_token_id),
        "attention_mask": pad_sequence(mask, batch_first=True),
        "labels": pad_sequence(list(labels), batch_first=True, padding_value=IGNORED),
    }


def unmask(document: Document) -> Document:
    """Return the original document, without masks and labels."""
    is_masked = document.labels != IGNORED
    input_ids = torch.where(is_masked, document.labels, document.input_ids)
    return Document(input_ids, torch.full_like(document.labels, IGNORED))
