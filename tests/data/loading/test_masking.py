import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from mosaicbert.data.loading.masking import choose_masked, replace_masked, token_counters
from mosaicbert.data.tokenizer import Vocabulary, vocabulary_of

_SPECIALS = [0, 1, 2, 3, 4]
_ENTRIES = 1000
_RATES = [0.05, 0.15, 0.30, 0.60]


@pytest.fixture(scope="module")
def vocabulary():
    is_special = np.zeros(_ENTRIES, dtype=bool)
    is_special[_SPECIALS] = True
    return Vocabulary(
        cls_id=2, sep_id=3, mask_id=4, pad_id=0, ordinary_ids=np.arange(5, _ENTRIES), is_special=is_special
    )


@pytest.fixture(scope="module")
def gapped():
    """A tokenizer with special tokens of its own and with ids that belong to no entry."""
    pieces = {
        "[PAD]": 3,
        "[UNK]": 10,
        "[CLS]": 11,
        "[SEP]": 12,
        "[MASK]": 13,
        "old": 0,
        "new": 40,
        "##er": 41,
        "cat": 90,
    }
    tokenizer = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[BOS]", "cat"])
    tokenizer.add_tokens([AddedToken("mosaic", special=False)])
    return tokenizer


@pytest.fixture(scope="module")
def tokens():
    """A million tokens of ten thousand documents, every tenth of them special."""
    input_ids = np.random.default_rng(0).integers(5, _ENTRIES, 1_000_000)
    input_ids[::10] = np.resize(_SPECIALS, len(input_ids[::10]))
    return input_ids


@pytest.fixture(scope="module")
def counters():
    """Those of `tokens`."""
    return token_counters(17, np.zeros(10_000, dtype=np.int64), np.arange(10_000), np.full(10_000, 100))


@pytest.fixture(scope="module")
def masked(tokens, counters, vocabulary):
    """Positions, what stood there and what replaces it, at 30%."""
    indices = choose_masked(tokens, counters, 0.30, vocabulary)
    return indices, tokens[indices], replace_masked(tokens[indices], counters[indices], vocabulary)


def _mask(seed, epoch, sample, input_ids, vocabulary, rate=0.3):
    """Masked positions of a document, and what stands there."""
    counters = token_counters(seed, np.array([epoch]), np.array([sample]), np.array([len(input_ids)]))
    indices = choose_masked(input_ids, counters, rate, vocabulary)
    return indices.tolist(), replace_masked(input_ids[indices], counters[indices], vocabulary).tolist()


def _p_value(successes, trials, share):
    return stats.binomtest(int(successes), int(trials), share).pvalue


@pytest.mark.parametrize("rate", _RATES)
def test_the_asked_share_of_ordinary_tokens_is_masked(rate, tokens, counters, vocabulary):
    indices = choose_masked(tokens, counters, rate, vocabulary)
    assert _p_value(len(indices), (tokens >= 5).sum(), rate) > 1e-3


@pytest.mark.parametrize("rate", [*_RATES, 1.0 - 2.0**-53])
def test_special_tokens_are_never_masked(rate, tokens, counters, vocabulary):
    assert (tokens[choose_masked(tokens, counters, rate, vocabulary)] >= 5).all()


def test_nearly_all_ordinary_tokens_are_masked_at_a_rate_of_nearly_one(tokens, counters, vocabulary):
    indices = choose_masked(tokens, counters, 1.0 - 2.0**-53, vocabulary)
    assert indices.tolist() == np.flatnonzero(tokens >= 5).tolist()


def test_masked_positions_are_ascending_and_come_once(masked):
    assert (np.diff(masked[0]) > 0).all()


def test_neither_tokens_nor_counters_are_written_to(tokens, counters, vocabulary):
    before = tokens.copy(), counters.copy()
    indices = choose_masked(tokens, counters, 0.30, vocabulary)
    labels = tokens[indices]
    replace_masked(labels, counters[indices], vocabulary)
    assert np.array_equal(tokens, before[0])
    assert np.array_equal(counters, before[1])
    assert np.array_equal(labels, tokens[indices])


def test_masked_tokens_split_into_80_10_10(masked):
    _, labels, replaced = masked
    assert _p_value((replaced == 4).sum(), len(labels), 0.8) > 1e-3
    # A random token equals the original one in one of 995 cases.
    assert _p_value((replaced == labels).sum(), len(labels), 0.1 + 0.1 / 995) > 1e-3


@pytest.mark.parametrize("rate", _RATES)
def test_the_split_does_not_depend_on_the_rate(rate, tokens, counters, vocabulary):
    indices = choose_masked(tokens, counters, rate, vocabulary)
    replaced = replace_masked(tokens[indices], counters[indices], vocabulary)
    assert _p_value((replaced == 4).sum(), len(indices), 0.8) > 1e-3


def test_random_tokens_are_ordinary_entries_drawn_evenly(masked):
    _, labels, replaced = masked
    random = replaced[(replaced != 4) & (replaced != labels)]
    assert random.min() >= 5
    assert random.max() < _ENTRIES
    assert stats.chisquare(np.bincount(random, minlength=_ENTRIES)[5:]).pvalue > 1e-3


def test_random_tokens_do_not_depend_on_the_tokens_that_they_replace(masked):
    _, labels, replaced = masked
    random = (replaced != 4) & (replaced != labels)
    assert abs(stats.spearmanr(labels[random], replaced[random]).statistic) < 0.03


def test_masks_are_independent_of_position(masked):
    per_position = np.bincount(masked[0] % 100, minlength=100)[np.arange(100) % 10 != 0]
    assert stats.chisquare(per_position).pvalue > 1e-3


@pytest.mark.parametrize("distance", [1, 2, 100], ids=["next", "next-but-one", "same-place-of-the-next-sample"])
def test_masks_of_two_tokens_coincide_only_by_chance(distance, counters):
    chosen = counters < np.uint64(0.30 * 2.0**64)
    both = chosen[:-distance] & chosen[distance:]
    assert _p_value(both.sum(), len(both), 0.09) > 1e-3


def test_what_replaces_a_masked_token_does_not_depend_on_its_neighbours(masked):
    indices, _, replaced = masked
    neighbours = np.flatnonzero(np.diff(indices) == 1)
    both = (replaced[neighbours] == 4) & (replaced[neighbours + 1] == 4)
    assert _p_value(both.sum(), len(both), 0.64) > 1e-3


@pytest.mark.parametrize("other", [(2, 0), (1, 1)], ids=["other-seed", "other-epoch"])
def test_masks_of_seeds_and_epochs_coincide_only_by_chance(other, vocabulary):
    samples, seqlens, input_ids = np.arange(2000), np.full(2000, 100), np.full(200_000, 9)

    def mask(seed, epoch):
        chosen = np.zeros(200_000, dtype=bool)
        counters = token_counters(seed, np.full(2000, epoch), samples, seqlens)
        chosen[choose_masked(input_ids, counters, 0.3, vocabulary)] = True
        return chosen

    both = mask(1, 0) & mask(*other)
    assert _p_value(both.sum(), len(both), 0.09) > 1e-3


def test_what_is_masked_at_a_rate_is_masked_alike_at_a_higher_rate(tokens, counters, vocabulary):
    few, many = (choose_masked(tokens, counters, rate, vocabulary) for rate in (0.15, 0.30))
    assert np.isin(few, many).all()
    replaced = dict(zip(many, replace_masked(tokens[many], counters[many], vocabulary), strict=True))
    assert [replaced[index] for index in few] == replace_masked(tokens[few], counters[few], vocabulary).tolist()


@given(
    seed=st.integers(0, 2**31 - 1),
    documents=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2**40), st.integers(1, 60)), min_size=1, max_size=6),
    rate=st.sampled_from(_RATES),
)
def test_a_documents_mask_does_not_depend_on_its_neighbours(seed, documents, rate, vocabulary):
    epochs, samples, seqlens = (np.array(column) for column in zip(*documents, strict=True))
    input_ids = np.resize(np.arange(_ENTRIES), seqlens.sum())
    counters = token_counters(seed, epochs, samples, seqlens)
    indices = choose_masked(input_ids, counters, rate, vocabulary)
    together = dict(
        zip(indices.tolist(), replace_masked(input_ids[indices], counters[indices], vocabulary), strict=True)
    )
    alone, first = {}, 0
    for epoch, sample, length in documents:
        places, replaced = _mask(seed, epoch, sample, input_ids[first : first + length], vocabulary, rate)
        alone |= {first + place: token for place, token in zip(places, replaced, strict=True)}
        first += length
    assert together == alone


def test_the_mask_of_a_documents_beginning_does_not_depend_on_its_end(vocabulary):
    input_ids = np.arange(5, 105)
    whole = _mask(1, 2, 7, input_ids, vocabulary)
    beginning = _mask(1, 2, 7, input_ids[:40], vocabulary)
    assert beginning[0] == [place for place in whole[0] if place < 40]
    assert beginning[1] == whole[1][: len(beginning[1])]


def test_which_positions_are_masked_does_not_depend_on_the_ordinary_tokens_there(vocabulary):
    first, second = np.arange(5, 205), np.full(200, 700)
    assert _mask(1, 2, 7, first, vocabulary)[0] == _mask(1, 2, 7, second, vocabulary)[0]


@pytest.mark.parametrize(
    "other",
    [(2, 0, 7), (1, 1, 7), (1, 0, 8), (0, 1, 7), (1, 7, 0), (7, 0, 1)],
    ids=["other-seed", "other-epoch", "other-sample", "swapped-seed-epoch", "swapped-epoch-sample", "swapped-ends"],
)
def test_seed_epoch_and_sample_each_change_the_mask(other, vocabulary):
    input_ids = np.full(200, 9)
    assert _mask(1, 0, 7, input_ids, vocabulary)[0] != _mask(*other, input_ids, vocabulary)[0]


def test_a_vocabulary_holds_the_ids_of_the_tokenizers_frame(gapped):
    vocabulary = vocabulary_of(gapped)
    assert (vocabulary.pad_id, vocabulary.cls_id, vocabulary.sep_id, vocabulary.mask_id) == (3, 11, 12, 13)


def test_ordinary_are_the_entries_that_are_not_special_and_no_gap(gapped):
    vocabulary = vocabulary_of(gapped)
    mosaic, bos = gapped.token_to_id("mosaic"), gapped.token_to_id("[BOS]")
    assert bos not in vocabulary.ordinary_ids
    assert vocabulary.ordinary_ids.tolist() == sorted([0, 40, 41, mosaic])  # "cat" was declared special


def test_every_id_of_a_tokenizer_is_either_special_or_ordinary(gapped):
    vocabulary = vocabulary_of(gapped)
    largest = max(gapped.get_vocab(with_added_tokens=True).values())
    assert len(vocabulary.is_special) == largest + 1
    assert np.flatnonzero(~vocabulary.is_special).tolist() == vocabulary.ordinary_ids.tolist()


def test_special_tokens_and_gaps_of_a_tokenizer_are_neither_masked_nor_drawn(gapped):
    vocabulary = vocabulary_of(gapped)
    input_ids = np.resize(np.arange(len(vocabulary.is_special)), 100_000)
    counters = token_counters(17, np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), np.array([100_000]))
    indices = choose_masked(input_ids, counters, 0.5, vocabulary)
    ordinary = set(vocabulary.ordinary_ids.tolist())
    assert set(input_ids[indices].tolist()) == ordinary
    assert set(replace_masked(input_ids[indices], counters[indices], vocabulary).tolist()) == ordinary | {13}
