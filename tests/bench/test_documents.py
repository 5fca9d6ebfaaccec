import torch
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.batch import IGNORED
from mosaicbert.bench.documents import (
    Document,
    cut_by_tokens,
    cut_in_order,
    pad_documents,
    read_embedding_workloads,
    sort_by_length,
    unmask,
)
from mosaicbert.bench.timing import NUM_WARMUP_ROUNDS
from mosaicbert.data.store import TRAIN, StoreRecord, TokenStore

_SEQLENS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def _documents(seqlens):
    return [
        Document(torch.full((length,), index + 1), torch.full((length,), IGNORED))
        for index, length in enumerate(seqlens)
    ]


def _flatten(batches):
    return sorted(int(document.input_ids[0]) for batch in batches for document in batch)


@given(_SEQLENS, st.integers(1, 100))
def test_batches_sorted_by_length_have_each_document_once_and_at_most_the_budget(seqlens, max_tokens):
    batches = cut_by_tokens(sort_by_length(_documents(seqlens)), max_tokens)
    assert _flatten(batches) == list(range(1, len(seqlens) + 1))
    for batch in batches:
        padded_tokens = len(batch) * max(len(document.input_ids) for document in batch)
        assert padded_tokens <= max_tokens or len(batch) == 1


@given(_SEQLENS, st.integers(1, 40))
def test_even_batches_have_each_document_once_in_order(seqlens, num_batches):
    batches = cut_in_order(_documents(seqlens), num_batches)
    assert len(batches) <= num_batches
    assert [int(document.input_ids[0]) for batch in batches for document in batch] == list(range(1, len(seqlens) + 1))


def test_padded_documents_are_the_padded_micro_batch(workloads):
    micro_batch = workloads[0].steps[0].micro_batches[0]
    expected = micro_batch.padded(pad_token_id=0)
    documents = {tuple(document.input_ids.tolist()): document for document in workloads[0].documents}
    rows = [
        documents[tuple(ids[: int(mask.sum())].tolist())]
        for ids, mask in zip(expected["input_ids"], expected["attention_mask"], strict=True)
    ]
    for name, tensor in pad_documents(rows, pad_token_id=0).items():
        assert torch.equal(tensor, expected[name])


def test_the_documents_of_a_step_are_its_real_tokens_and_masks(workloads):
    for workload in workloads:
        num_tokens = sum(step.global_num_tokens for step in workload.steps)
        assert workload.num_tokens == num_tokens == int(workload.seqlens.sum())
        assert len(workload.documents) == sum(step.global_num_samples for step in workload.steps)
        num_masked = sum(int((document.labels != IGNORED).sum()) for document in workload.documents)
        assert num_masked == workload.num_masked


def test_a_timed_round_has_at_least_four_micro_batches_and_a_warmup_round_one_step(workloads):
    assert [len(workload.steps) for workload in workloads[:NUM_WARMUP_ROUNDS]] == [1] * NUM_WARMUP_ROUNDS
    for workload in workloads[NUM_WARMUP_ROUNDS:]:
        assert 4 <= workload.num_micro_batches < 4 + len(workload.steps[-1].micro_batches)


def test_documents_are_not_sorted_by_length(workloads):
    seqlens = torch.cat([workload.seqlens for workload in workloads])
    assert not torch.equal(seqlens, seqlens.sort(descending=True).values)


def test_unmasked_documents_are_those_of_the_store(finished, workloads):
    recipe, _, _ = finished
    store = TokenStore(recipe.store_folder, TRAIN)
    texts = {tuple(document.tolist()) for document in store.read(torch.arange(store.num_samples).numpy())}
    for document in workloads[0].documents:
        assert tuple(unmask(document).input_ids[1:-1].tolist()) in texts


def test_embedding_workloads_are_128_documents_of_the_first_steps(finished, workloads):
    recipe, folder, _ = finished
    batches = read_embedding_workloads(recipe, StoreRecord.read(folder.path), num_rounds=3)
    assert [len(batch.documents) for batch in batches] == [128, 128, 128]
    expected = [document.input_ids for workload in workloads[:2] for document in workload.documents]  # 16 per step
    assert all(map(torch.equal, (document.input_ids for document in batches[0].documents), expected))
