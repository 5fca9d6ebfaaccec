import numpy as np
import pytest
from scipy import stats

from mosaicbert.data.masking import Vocabulary, mask_tokens, token_counters

_SPECIALS = [0, 1, 2, 3, 4]
_ENTRIES = 1000


@pytest.fixture(scope="module")
def vocabulary():
    is_special = np.zeros(_ENTRIES, dtype=bool)
    is_special[_SPECIALS] = True
    return Vocabulary(cls_id=2, sep_id=3, mask_id=4, ordinary_ids=np.arange(5, _ENTRIES), is_special=is_special)


@pytest.fixture(scope="module")
def masked(vocabulary):
    """A million tokens of ten thousand documents, every tenth of them special, masked at 30%."""
    seqlens = np.full(10_000, 100)
    input_ids = np.random.default_rng(0).integers(5, _ENTRIES, seqlens.sum())
    input_ids[::10] = np.resize(_SPECIALS, len(input_ids[::10]))
    counters = token_counters(17, np.zeros(10_000, dtype=np.int64), np.arange(10_000), seqlens)
    return input_ids, *mask_tokens(input_ids, counters, 0.30, vocabulary)


def _p_value(successes, trials, share):
    return stats.binomtest(int(successes), int(trials), share).pvalue


def test_the_asked_share_of_ordinary_tokens_is_masked(masked):
    input_ids, _, indices, _ = masked
    assert _p_value(len(indices), (input_ids >= 5).sum(), 0.30) > 1e-3


def test_special_tokens_are_never_masked(masked):
    input_ids, _, indices, _ = masked
    assert (input_ids[indices] >= 5).all()


def test_labels_are_the_original_tokens_and_nothing_else_changes(masked):
    input_ids, after, indices, labels = masked
    assert (labels == input_ids[indices]).all()
    untouched = np.ones(len(input_ids), dtype=bool)
    untouched[indices] = False
    assert (after[untouched] == input_ids[untouched]).all()


def test_masked_tokens_split_into_80_10_10(masked):
    _, after, indices, labels = masked
    replaced = after[indices]
    assert _p_value((replaced == 4).sum(), len(indices), 0.8) > 1e-3
    # A random token equals the original one in one of 995 cases.
    assert _p_value((replaced == labels).sum(), len(indices), 0.1 + 0.1 / 995) > 1e-3


def test_random_tokens_are_ordinary_entries_drawn_evenly(masked):
    _, after, indices, labels = masked
    replaced = after[indices]
    random = replaced[(replaced != 4) & (replaced != labels)]
    assert random.min() >= 5
    assert random.max() < _ENTRIES
    assert stats.chisquare(np.bincount(random, minlength=_ENTRIES)[5:]).pvalue > 1e-3


def test_masks_are_independent_of_position(masked):
    _, _, indices, _ = masked
    per_position = np.bincount(indices % 100, minlength=100)[np.arange(100) % 10 != 0]
    assert stats.chisquare(per_position).pvalue > 1e-3


def test_a_documents_mask_does_not_depend_on_its_neighbours(vocabulary):
    ids = np.arange(5, 105)
    alone = mask_tokens(ids, token_counters(1, np.array([2]), np.array([7]), np.array([100])), 0.3, vocabulary)[0]
    counters = token_counters(1, np.array([0, 2, 2]), np.array([7, 7, 8]), np.array([40, 100, 3]))
    together = mask_tokens(np.concatenate([ids[:40], ids, ids[:3]]), counters, 0.3, vocabulary)[0]
    assert together[40:140].tolist() == alone.tolist()


@pytest.mark.parametrize("other", [(2, 0, 7), (1, 1, 7), (1, 0, 8)], ids=["other-seed", "other-epoch", "other-sample"])
def test_seed_epoch_and_sample_each_change_the_mask(other, vocabulary):
    def mask(seed, epoch, sample):
        counters = token_counters(seed, np.array([epoch]), np.array([sample]), np.array([200]))
        return mask_tokens(np.full(200, 9), counters, 0.3, vocabulary)[1].tolist()

    assert mask(1, 0, 7) != mask(*other)
