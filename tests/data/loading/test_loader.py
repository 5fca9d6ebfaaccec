import itertools
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from mosaicbert.config import SourceConfig
from mosaicbert.data.loading.loader import sample_groups
from mosaicbert.data.loading.sample_order import WINDOW, Group, mixed_order
from mosaicbert.data.prepare.pipeline import prepare
from mosaicbert.data.store import TRAIN, VALIDATION, TokenStore
from tests.data.corpus import short_texts, texts, write_jsonl
from tests.data.loaders import eval_loader_of, plan_of, train_loader_of
from tests.recipes import tiny_recipe

_STEPS = 12
_TRAIN = {"duration": f"{16 * _STEPS} samples", "global_batch_samples": 16}


def _mixed(folder, **data):
    """Create a recipe with two sources of weights 0.3 and 0.7."""
    documents = texts()
    sources = {
        name: SourceConfig(path=str(write_jsonl(folder / f"{name}.jsonl", subset)), weight=weight)
        for name, subset, weight in (("large", documents[:220], 0.3), ("small", documents[220:], 0.7))
    }
    fields = {"max_seq_len": 32, "validation_fraction": 0.2, "num_workers": 0, "sources": sources} | data
    recipe = tiny_recipe(folder, folder / "large.jsonl", data=fields, train=_TRAIN)
    prepare(recipe)
    return recipe


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    recipe = tiny_recipe(folder, write_jsonl(folder / "docs.jsonl"), train=_TRAIN)
    prepare(recipe)
    return recipe


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    return _mixed(tmp_path_factory.mktemp("mixture"))


@pytest.fixture(scope="module")
def chunked(tmp_path_factory):
    """Create a recipe with chunked texts and an increasing mask rate."""
    return _mixed(tmp_path_factory.mktemp("chunked"), sampling="chunk", mask_rate=0.05, final_mask_rate=0.60)


@pytest.fixture(params=["plain", "mixture", "chunked"])
def recipe(request):
    return request.getfixturevalue(request.param)


def _changed(recipe, section, **fields):
    return replace(recipe, **{section: replace(getattr(recipe, section), **fields)})


def _documents(batches):
    """Return the sorted documents of micro-batches with their labels."""
    documents = []
    for batch in batches:
        labels = torch.full_like(batch.input_ids, -100)
        labels[batch.masked_indices[: batch.num_masked]] = batch.labels[: batch.num_masked]
        ends = batch.cu_seqlens[: batch.num_sequences + 1].tolist()
        for first, end in pairwise(ends):
            documents.append((tuple(batch.input_ids[first:end].tolist()), tuple(labels[first:end].tolist())))
    return sorted(documents)


def _global_batches(recipe, world_size=1, build=train_loader_of, **fields):
    """Return the documents of each step, of all ranks together."""
    loaders = [build(recipe, rank, world_size, **fields) for rank in range(world_size)]
    return [_documents(batch for step in steps for batch in step.micro_batches) for steps in zip(*loaders, strict=True)]


def _originals(documents):
    """Return the documents before masking."""
    return sorted(
        tuple(token if label == -100 else label for token, label in zip(ids, labels, strict=True))
        for ids, labels in documents
    )


def _resumed(recipe, step, num_workers=0):
    return train_loader_of(_changed(recipe, "data", num_workers=num_workers), 0, 1, first_step=step)


def _growing(recipe, **train):
    """Create a recipe with 29 batches, eight of 8 to 15 samples, then 21 of 16 samples."""
    warmup = round(8 * 8 * _mean_tokens(recipe))
    return _changed(recipe, "train", duration="29 steps", initial_batch_samples=8, batch_warmup_tokens=warmup, **train)


def _mean_tokens(recipe):
    """Return the mean number of real tokens per sample in the store, including [CLS] and [SEP]."""
    store = TokenStore(recipe.store_folder, TRAIN)
    groups = sample_groups(recipe.data.sources, store.samples_by_source)
    means = []
    for group in groups:
        documents = store.read(group.first_sample + np.arange(group.num_samples))
        means.append(np.mean([len(ids) + 2 for ids in documents]))
    weights = [group.weight for group in groups]
    return sum(mean * weight for mean, weight in zip(means, weights, strict=True)) / sum(weights)


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_global_batches_are_the_same_for_any_number_of_ranks(recipe, world_size):
    assert _global_batches(recipe, world_size) == _global_batches(recipe)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("num_workers", [1, 4])
def test_global_batches_are_the_same_for_any_number_of_workers(recipe, num_workers):
    assert _global_batches(_changed(recipe, "data", num_workers=num_workers)) == _global_batches(recipe)


@pytest.mark.parametrize("micro_batch_tokens", [32, 100, 4096])
def test_global_batches_are_the_same_for_any_micro_batch_size(recipe, micro_batch_tokens):
    divided = _changed(recipe, "train", micro_batch_tokens=micro_batch_tokens)
    assert _global_batches(divided, world_size=2) == _global_batches(recipe)


def test_a_loader_can_start_at_any_step(recipe):
    whole = _global_batches(recipe)
    for step in range(_STEPS):
        assert _documents(next(iter(_resumed(recipe, step))).micro_batches) == whole[step]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_a_loader_that_starts_at_a_step_continues_to_the_last(recipe, num_workers):
    batches = [_documents(step.micro_batches) for step in _resumed(recipe, 5, num_workers)]
    assert batches == _global_batches(recipe)[5:]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_skipped_batches_are_replaced_by_the_next_batches(plain, num_workers):
    longer = _changed(plain, "train", duration=f"{_STEPS + 3} steps")
    whole = _global_batches(longer)
    remaining = [whole[batch] for batch in range(_STEPS + 3) if batch not in (1, 4, 5)]
    skipping = _changed(plain, "data", num_workers=num_workers)
    assert _global_batches(skipping, skipped_batches={5, 1, 4}) == remaining
    assert _global_batches(skipping, first_step=3, skipped_batches={5, 1, 4}) == remaining[3:]


def test_all_ranks_skip_the_same_batches(recipe):
    assert _global_batches(recipe, 3, skipped_batches={0, 7}) == _global_batches(recipe, skipped_batches={0, 7})


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("duration", ["1s", "20 tokens"])
def test_a_run_in_time_or_tokens_has_endless_batches(plain, duration, num_workers):
    endless = _changed(_changed(plain, "train", duration=duration), "data", num_workers=num_workers)
    loader = train_loader_of(endless, 0, 1, first_step=4, skipped_batches={6})
    steps = list(itertools.islice(loader, 3 * _STEPS))
    assert [step.batch for step in steps] == [4, 5, *range(7, 5 + 3 * _STEPS)]
    actual = [_documents(step.micro_batches) for step in steps if step.batch < _STEPS]
    assert actual == [
        documents for batch, documents in enumerate(_global_batches(plain)) if batch in (4, 5) or batch > 6
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_batch_sizes_follow_the_plan_for_any_number_of_ranks(recipe, world_size):
    growing = _growing(recipe)
    loaders = [train_loader_of(growing, rank, world_size) for rank in range(world_size)]
    batch_sizes = []
    for steps in zip(*loaders, strict=True):
        (samples,) = {step.global_num_samples for step in steps}
        assert sum(batch.num_sequences for step in steps for batch in step.micro_batches) == samples
        batch_sizes.append(samples)
    assert batch_sizes == [*range(8, 16), *[16] * 21]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_growing_batches_are_the_same_for_any_number_of_ranks_and_workers_and_from_any_step(recipe):
    growing = _growing(recipe)
    whole = _global_batches(growing)
    assert _global_batches(growing, world_size=3) == whole
    assert _global_batches(_changed(growing, "data", num_workers=3)) == whole
    for step in (1, 7, 8, 9):
        assert _global_batches(growing, first_step=step) == whole[step:]


def test_each_sample_of_an_epoch_is_used_once_with_growing_batches(plain):
    """The last batch of the epoch also contains samples of the next epoch."""
    store = TokenStore(plain.store_folder, TRAIN)
    expected = Counter((2, *ids.tolist(), 3) for ids in store.read(np.arange(store.num_samples)))
    last = plan_of(_growing(plain))._num_batches_within(store.num_samples)
    batches = [Counter(_originals(documents)) for documents in _global_batches(_growing(plain))]
    before_last, with_last = sum(batches[:last], Counter()), sum(batches[: last + 1], Counter())
    assert last > 8, "the epoch must end after the batch size warmup"
    assert before_last <= expected <= with_last


def test_a_loader_is_empty_after_the_last_step(plain):
    assert list(_resumed(plain, _STEPS)) == []


def test_a_loader_repeats_the_same_batches(recipe):
    loader = train_loader_of(recipe, 0, 1)
    first, second = ([_documents(step.micro_batches) for step in loader] for _ in range(2))
    assert first == second


def test_different_seeds_have_different_batches(plain):
    assert _global_batches(replace(plain, seed=18))[0] != _global_batches(plain)[0]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_every_rank_has_the_global_number_of_masked_tokens(recipe, world_size):
    for steps in zip(*(train_loader_of(recipe, rank, world_size) for rank in range(world_size)), strict=True):
        total = sum(int((batch.labels != -100).sum()) for step in steps for batch in step.micro_batches)
        assert {step.global_num_masked for step in steps} == {total}


@pytest.mark.parametrize("world_size", [1, 3])
def test_all_micro_batches_of_a_step_have_the_same_shape_on_all_ranks(recipe, world_size):
    for steps in zip(*(train_loader_of(recipe, rank, world_size) for rank in range(world_size)), strict=True):
        assert len({batch.shape for step in steps for batch in step.micro_batches}) == 1


def test_samples_follow_the_sample_order_with_special_tokens_and_without_truncation(recipe):
    store = TokenStore(recipe.store_folder, TRAIN)
    groups = sample_groups(recipe.data.sources, store.samples_by_source)
    for number, documents in enumerate(_global_batches(recipe)):
        _, samples = mixed_order(np.arange(16 * number, 16 * (number + 1)), groups, recipe.seed)
        assert _originals(documents) == sorted((2, *ids.tolist(), 3) for ids in store.read(samples))


def test_the_mask_rate_of_a_step_follows_the_recipe(chunked):
    wide = _changed(chunked, "train", global_batch_samples=2000, duration="8000 samples")
    steps = list(train_loader_of(wide, 0, 1))
    assert [step.mask_rate for step in steps] == pytest.approx([0.05, 0.05 + 0.55 / 3, 0.60 - 0.55 / 3, 0.60])
    for number, step in enumerate(steps):
        ordinary = sum(token >= 5 for document in _originals(_documents(step.micro_batches)) for token in document)
        assert step.mask_rate == plan_of(wide).mask_rate(number)
        assert stats.binomtest(step.global_num_masked, ordinary, step.mask_rate).pvalue > 1e-3
    assert steps[0].global_num_masked < steps[-1].global_num_masked / 8


def test_a_resumed_run_continues_the_mask_rate_schedule(chunked):
    whole = [step.global_num_masked for step in train_loader_of(chunked, 0, 1)]
    assert [step.global_num_masked for step in _resumed(chunked, 7)] == whole[7:]
    assert sum(whole[7:]) > 2 * sum(whole[:5])


@pytest.mark.parametrize("world_size", [1, 2, 5, 7])
def test_evaluation_uses_every_validation_sample_once_for_any_number_of_ranks(plain, world_size):
    store = TokenStore(plain.store_folder, VALIDATION)
    documents = [document for step in _global_batches(plain, world_size, eval_loader_of) for document in step]
    expected = sorted((2, *ids.tolist(), 3) for ids in store.read(np.arange(store.num_samples)))
    assert _originals(documents) == expected


@pytest.mark.parametrize("world_size", [2, 5, 7])
def test_evaluation_has_the_same_masks_for_any_number_of_ranks(recipe, world_size):
    assert _global_batches(recipe, world_size, eval_loader_of) == _global_batches(recipe, build=eval_loader_of)


def test_evaluation_does_not_depend_on_the_seed_of_the_run(plain):
    few = _changed(plain, "eval", max_samples=20)
    assert _global_batches(replace(few, seed=18), build=eval_loader_of) == _global_batches(few, build=eval_loader_of)


def test_evaluation_is_repeatable(plain):
    loader = eval_loader_of(plain, 0, 1)
    first, second = ([_documents(step.micro_batches) for step in loader] for _ in range(2))
    assert first == second


def test_evaluation_uses_its_own_mask_rate(plain):
    rates = []
    for rate in (0.15, 0.60):
        (step,) = eval_loader_of(_changed(plain, "eval", mask_rate=rate), 0, 1)
        rates.append(step.global_num_masked / sum(batch.num_tokens for batch in step.micro_batches))
    assert rates[0] == pytest.approx(0.14, abs=0.03)
    assert rates[1] == pytest.approx(0.56, abs=0.05)


def test_an_evaluation_subset_is_not_the_first_samples(plain):
    (documents,) = _global_batches(_changed(plain, "eval", max_samples=20), build=eval_loader_of)
    first_documents = TokenStore(plain.store_folder, VALIDATION).read(np.arange(20))
    assert len(documents) == 20
    assert len(set(_originals(documents)) & {(2, *ids.tolist(), 3) for ids in first_documents}) < 15


def test_all_ranks_evaluate_the_same_number_of_steps(plain):
    steps = [list(eval_loader_of(plain, rank, 7)) for rank in range(7)]
    assert {len(items) for items in steps} == {1}
    assert all(step.micro_batches for items in steps for step in items)


def test_fewer_validation_samples_than_ranks_are_rejected(plain):
    with pytest.raises(ValueError, match="must be at least 6, the number of processes, got 5"):
        eval_loader_of(_changed(plain, "eval", max_samples=5), 0, 6)


def test_tokens_are_converted_to_steps_by_the_mean_sample_length_of_the_mixture(recipe):
    num_tokens = 10**12
    plan = plan_of(_changed(recipe, "train", duration=f"{num_tokens} tokens"))
    assert num_tokens / 16 / plan.num_steps == pytest.approx(_mean_tokens(recipe), rel=1e-9)


def test_the_mean_sample_length_is_weighted_by_source(tmp_path):
    sources = {
        name: SourceConfig(path=str(write_jsonl(tmp_path / f"{name}.jsonl", documents)), weight=weight)
        for name, documents, weight in (("long", texts()[:150], 0.1), ("short", short_texts(100), 0.9))
    }
    recipe = tiny_recipe(tmp_path, tmp_path, data={"sources": sources}, train={"duration": "1_000_000_000 tokens"})
    prepare(recipe)
    store = TokenStore(recipe.store_folder, TRAIN)
    groups = sample_groups(recipe.data.sources, store.samples_by_source)
    _, samples = mixed_order(np.arange(2 * WINDOW), groups, recipe.seed)
    tokens = sum(len(ids) + 2 for ids in store.read(samples))
    assert plan_of(recipe).num_steps == pytest.approx(1e9 / 16 / (tokens / len(samples)), rel=1e-3)
    unweighted = (sum(len(ids) for ids in store.read(np.arange(store.num_samples))) / store.num_samples) + 2
    assert tokens / len(samples) < 0.8 * unweighted, "the sources must have different lengths"


def test_the_expected_number_of_steps_has_the_given_number_of_tokens(recipe):
    in_tokens = _changed(recipe, "train", duration="100_000 tokens")
    steps = itertools.islice(train_loader_of(in_tokens, 0, 1), plan_of(in_tokens).num_steps)
    assert sum(step.global_num_tokens for step in steps) == pytest.approx(100_000, rel=0.02)


def test_sources_without_weights_are_one_group(plain):
    (group,) = sample_groups(plain.data.sources, {"text": 70})
    assert (group.first_sample, group.num_samples) == (0, 70)


def test_several_sources_without_weights_are_mixed_by_size(plain):
    both = _changed(plain, "data", sources={name: SourceConfig(path="here") for name in ("large", "small")})
    (group,) = sample_groups(both.data.sources, {"large": 70, "small": 30})
    assert (group.first_sample, group.num_samples) == (0, 100)


def test_sources_with_weights_are_groups_in_the_order_of_the_store(mixture):
    groups = sample_groups(mixture.data.sources, {"small": 30, "large": 70})
    assert groups == [
        Group(first_sample=0, num_samples=30, weight=0.7),
        Group(first_sample=30, num_samples=70, weight=0.3),
    ]


def test_each_group_contains_the_samples_of_its_source(mixture):
    store = TokenStore(mixture.store_folder, TRAIN)
    large, small = sample_groups(mixture.data.sources, store.samples_by_source)
    assert large.num_samples + small.num_samples == store.num_samples
    assert (large.first_sample, small.first_sample) == (0, large.num_samples)


def test_a_weighted_source_is_sampled_by_its_weight(mixture):
    store = TokenStore(mixture.store_folder, TRAIN)
    _, small = sample_groups(mixture.data.sources, store.samples_by_source)
    small_documents = {(2, *ids.tolist(), 3) for ids in store.read(small.first_sample + np.arange(small.num_samples))}
    documents = [document for batch in _global_batches(mixture) for document in _originals(batch)]
    num_small = sum(document in small_documents for document in documents)
    assert stats.binomtest(num_small, len(documents), 0.7).pvalue > 1e-3
