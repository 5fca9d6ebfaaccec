from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.data.batches import cut, share
from mosaicbert.data.loader import build_eval_loader, build_loader
from mosaicbert.data.prepare import prepare
from tests.data.corpus import write_jsonl
from tests.recipes import tiny_recipe

_SEQLENS = st.lists(st.integers(3, 128), min_size=1, max_size=200).map(np.array)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batches")
    recipe = tiny_recipe(folder, write_jsonl(folder / "docs.jsonl"), train={"total_samples": 400})
    prepare(recipe)
    return recipe


def _documents(batches):
    """The documents of some micro-batches, with their masks, in a fixed order."""
    found = []
    for batch in batches:
        labels = torch.full_like(batch.input_ids, -100)
        labels[batch.masked_indices] = batch.labels
        for first, end in zip(batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist(), strict=True):
            found.append((tuple(batch.input_ids[first:end].tolist()), tuple(labels[first:end].tolist())))
    return sorted(found)


def _steps(recipe, world_size):
    """Each step's documents, of all ranks together."""
    loaders = [build_loader(recipe, rank, world_size) for rank in range(world_size)]
    return [_documents(batch for share in shares for batch in share) for shares in zip(*loaders, strict=True)]


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_global_batches_are_the_same_for_any_number_of_ranks(recipe, world_size):
    assert _steps(recipe, world_size) == _steps(recipe, 1)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_global_batches_are_the_same_for_any_number_of_workers(recipe, num_workers):
    working = replace(recipe, data=replace(recipe.data, num_workers=num_workers))
    assert _steps(working, 1) == _steps(recipe, 1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_begins_at_any_step_without_replaying(recipe, num_workers):
    working = replace(recipe, data=replace(recipe.data, num_workers=num_workers))
    whole = [_documents(step) for step in build_loader(recipe, 0, 1)]
    resumed = build_loader(working, 0, 1)
    state = resumed.dataset.state_dict(7 * recipe.train.global_batch_samples, True)
    resumed.dataset.load_state_dict(state)
    assert [_documents(step) for step in resumed] == whole[7:]


def test_every_sequence_is_framed_and_within_the_budget(recipe):
    for step in build_loader(recipe, 0, 1):
        for batch in step:
            assert batch.num_tokens <= recipe.train.micro_batch_tokens
            originals = batch.input_ids.clone()
            originals[batch.masked_indices] = batch.labels
            assert set(originals[batch.cu_seqlens[:-1].long()].tolist()) == {2}  # [CLS]
            assert set(originals[batch.cu_seqlens[1:].long() - 1].tolist()) == {3}  # [SEP]
            assert batch.max_seqlen == batch.cu_seqlens.diff().max() <= recipe.data.max_seq_len


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_evaluation_sees_every_held_out_sample_once_with_fixed_masks(recipe, world_size):
    def evaluate(ranks):
        loaders = [build_eval_loader(recipe, rank, ranks) for rank in range(ranks)]
        assert len({len(loader) for loader in loaders}) == 1
        return _documents(batch for loader in loaders for item in loader for batch in item)

    assert evaluate(world_size) == evaluate(1)


def test_evaluation_has_the_same_number_of_steps_on_every_rank_however_many_there_are(recipe):
    steps = [list(build_eval_loader(recipe, rank, 7)) for rank in range(7)]
    assert {len(items) for items in steps} == {1}
    assert all(batches for items in steps for batches in items)


@given(seqlens=_SEQLENS, world_size=st.integers(1, 9))
def test_ranks_share_every_sequence_once_in_nearly_equal_numbers(seqlens, world_size):
    shares = [share(seqlens, rank, world_size) for rank in range(world_size)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(seqlens)))
    counts = [len(part) for part in shares]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("world_size", [2, 8])
def test_ranks_get_nearly_equal_numbers_of_tokens(world_size):
    seqlens = np.clip(np.random.default_rng(0).lognormal(5, 1, 4096), 3, 512).astype(int)
    tokens = [seqlens[share(seqlens, rank, world_size)].sum() for rank in range(world_size)]
    assert max(tokens) / np.mean(tokens) < 1.01


@given(seqlens=_SEQLENS, budget=st.integers(128, 1000))
def test_micro_batches_keep_order_lose_nothing_and_are_filled(seqlens, budget):
    indices = np.arange(len(seqlens))
    parts = cut(indices, seqlens, budget)
    assert np.concatenate(parts).tolist() == indices.tolist()
    sizes = [seqlens[part].sum() for part in parts]
    assert max(sizes) <= budget
    for size, following in zip(sizes, parts[1:], strict=False):
        assert size + seqlens[following[0]] > budget  # no micro-batch ends before it must
