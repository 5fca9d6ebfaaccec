import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from mosaicbert.data.loading.masking import choose_masked, replace_masked, token_counters
from mosaicbert.data.tokenizer import Vocabulary, vocabulary_of

_SPECIAL_IDS = [0, 1, 2, 3, 4]
_VOCAB_SIZE = 1000
_RATES = [0.05, 0.15, 0.30, 0.60]


@pytest.fixture(scope="module")
def vocabulary():
    is_special = np.zeros(_VOCAB_SIZE, dtype=bool)
    is_special[_SPECIAL_IDS] = True
    return Vocabulary(
        cls_id=2, sep_id=3, mask_id=4, pad_id=0, ordinary_ids=np.arange(5, _VOCAB_SIZE), is_special=is_special
    )


@pytest.fixture(scope="module")
def sparse_tokenizer():
    """Create a tokenizer with additional special tokens and unused ids."""
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
    """Return a million tokens of ten thousand documents, every tenth of which is special."""
    input_ids = np.random.default_rng(0).integers(5, _VOCAB_SIZE, 1_000_000)
    input_ids[::10] = np.resize(_SPECIAL_IDS, len(input_ids[::10]))
    return input_ids


@pytest.fixture(scope="module")
def counters():
    """Return the counters of `tokens`."""
    return token_counters(17, np.zeros(10_000, dtype=np.int64), np.arange(10_000), np.full(10_000, 100))


@pytest.fixture(scope="module")
def masked(tokens, counters, vocabulary):
    """Return positions, labels and replacements of masked tokens at a mask rate of 30%."""
    indices = choose_masked(tokens, counters, 0.30, vocabulary)
    return indices, tokens[indices], replace_masked(tokens[indices], counters[indices], vocabulary)


def _mask(seed, epoch, sample, input_ids, vocabulary, rate=0.3):
    """Return the masked positions of a document and their replacements."""
    counters = token_counters(seed, np.array([epoch]), np.array([sample]), np.array([len(input_ids)]))
    indices = choose_masked(input_ids, counters, rate, vocabulary)
    return indices.tolist(), replace_masked(input_ids[indices], counters[indices], vocabulary).tolist()


def _p_value(num_successes, num_trials, probability):
    return stats.binomtest(int(num_successes), int(num_trials), probability).pvalue


@pytest.mark.parametrize("rate", _RATES)
def test_ordinary_tokens_are_masked_with_the_given_probability(rate, tokens, counters, vocabulary):
    indices = choose_masked(tokens, counters, rate, vocabulary)
    assert _p_value(len(indices), (tokens >= 5).sum(), rate) > 1e-3


@pytest.mark.parametrize("rate", [*_RATES, 1.0 - 2.0**-53])
def test_special_tokens_are_never_masked(rate, tokens, counters, vocabulary):
    assert (tokens[choose_masked(tokens, counters, rate, vocabulary)] >= 5).all()


def test_nearly_all_ordinary_tokens_are_masked_at_a_rate_of_nearly_one(tokens, counters, vocabulary):
    indices = choose_masked(tokens, counters, 1.0 - 2.0**-53, vocabulary)
    assert indices.tolist() == np.flatnonzero(tokens >= 5).tolist()


def test_masked_positions_are_strictly_ascending(masked):
    assert (np.diff(masked[0]) > 0).all()


def test_tokens_and_counters_are_not_modified(tokens, counters, vocabulary):
    before = tokens.copy(), counters.copy()
    indices = choose_masked(tokens, counters, 0.30, vocabulary)
    labels = tokens[indices]
    replace_masked(labels, counters[indices], vocabulary)
    assert np.array_equal(tokens, before[0])
    assert np.array_equal(counters, before[1])
    assert np.array_equal(labels, tokens[indices])


def test_masked_tokens_are_replaced_in_the_ratio_80_10_10(masked):
    _, labels, replaced = masked
    assert _p_value((replaced == 4).sum(), len(labels), 0.8) > 1e-3
    # A random token equals the original token with probability 1 / 995.
    assert _p_value((replaced == labels).sum(), len(labels), 0.1 + 0.1 / 995) > 1e-3


@pytest.mark.parametrize("rate", _RATES)
def test_the_replacement_ratio_does_not_depend_on_the_mask_rate(rate, tokens, counters, vocabulary):
    indices = choose_masked(tokens, counters, rate, vocabulary)
    replaced = replace_masked(tokens[indices], counters[indices], vocabulary)
    assert _p_value((replaced == 4).sum(), len(indices), 0.8) > 1e-3


def test_random_tokens_are_uniform_over_the_ordinary_entries(masked):
    _, labels, replaced = masked
    random = replaced[(replaced != 4) & (replaced != labels)]
    assert random.min() >= 5
    assert random.max() < _VOCAB_SIZE
    assert stats.chisquare(np.bincount(random, minlength=_VOCAB_SIZE)[5:]).pvalue > 1e-3


def test_random_tokens_are_independent_of_the_original_tokens(masked):
    _, labels, replaced = masked
    random = (replaced != 4) & (replaced != labels)
    assert abs(stats.spearmanr(labels[random], replaced[random]).statistic) < 0.03


def test_masks_are_independent_of_position(masked):
    per_position = np.bincount(masked[0] % 100, minlength=100)[np.arange(100) % 10 != 0]
    assert stats.chisquare(per_position).pvalue > 1e-3


@pytest.mark.parametrize("distance", [1, 2, 100], ids=["adjacent", "distance-two", "same-position-of-the-next-sample"])
def test_masks_of_two_tokens_are_independent(distance, counters):
    chosen = counters < np.uint64(0.30 * 2.0**64)
    both = chosen[:-distance] & chosen[distance:]
    assert _p_value(both.sum(), len(both), 0.09) > 1e-3


def test_replacements_of_neighboring_tokens_are_independent(masked):
    indices, _, replaced = masked
    neighbors = np.flatnonzero(np.diff(indices) == 1)
    both = (replaced[neighbors] == 4) & (replaced[neighbors + 1] == 4)
    assert _p_value(both.sum(), len(both), 0.64) > 1e-3


@pytest.mark.parametrize("other", [(2, 0), (1, 1)], ids=["other-seed", "other-epoch"])
def test_masks_of_different_seeds_and_epochs_are_independent(other, vocabulary):
    samples, seqlens, input_ids = np.arange(2000), np.full(2000, 100), np.full(200_000, 9)

    def mask(seed, epoch):
        chosen = np.zeros(200_000, dtype=bool)
        counters = token_counters(seed, np.full(2000, epoch), samples, seqlens)
        chosen[choose_masked(input_ids, counters, 0.3, vocabulary)] = True
        return chosen

    both = mask(1, 0) & mask(*other)
    assert _p_value(both.sum(), len(both), 0.09) > 1e-3


def test_tokens_masked_at_one_rate_are_masked_identically_at_a_higher_rate(tokens, counters, vocabulary):
    few, many = (choose_masked(tokens, counters, rate, vocabulary) for rate in (0.15, 0.30))
    assert np.isin(few, many).all()
    replaced = dict(zip(many, replace_masked(tokens[many], counters[many], vocabulary), strict=True))
    assert [replaced[index] for index in few] == replace_masked(tokens[few], counters[few], vocabulary).tolist()


@given(
    seed=st.integers(0, 2**31 - 1),
    documents=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2**40), st.integers(1, 60)), min_size=1, max_size=6),
    rate=st.sampled_from(_RATES),
)
def test_the_mask_of_a_document_does_not_depend_on_other_documents(seed, documents, rate, vocabulary):
    epochs, samples, seqlens = (np.array(column) for column in zip(*documents, strict=True))
    input_ids = np.resize(np.arange(_VOCAB_SIZE), seqlens.sum())
    counters = token_counters(seed, epochs, samples, seqlens)
    indices = choose_masked(input_ids, counters, rate, vocabulary)
    together = dict(
        zip(indices.tolist(), replace_masked(input_ids[indices], counters[indices], vocabulary), strict=True)
    )
    alone, first = {}, 0
    for epoch, sample, length in documents:
        positions, replaced = _mask(seed, epoch, sample, input_ids[first : first + length], vocabulary, rate)
        alone |= {first + position: token for position, token in zip(positions, replaced, strict=True)}
        first += length
    assert together == alone


def test_the_mask_of_a_prefix_does_not_depend_on_the_rest_of_the_document(vocabulary):
    input_ids = np.arange(5, 105)
    whole = _mask(1, 2, 7, input_ids, vocabulary)
    beginning = _mask(1, 2, 7, input_ids[:40], vocabulary)
    assert beginning[0] == [position for position in whole[0] if position < 40]
    assert beginning[1] == whole[1][: len(beginning[1])]


def test_masked_positions_do_not_depend_on_the_ordinary_tokens(vocabulary):
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


def test_a_vocabulary_has_the_special_ids_of_the_tokenizer(sparse_tokenizer):
    vocabulary = vocabulary_of(sparse_tokenizer)
    assert (vocabulary.pad_id, vocabulary.cls_id, vocabulary.sep_id, vocabulary.mask_id) == (3, 11, 12, 13)


def test_ordinary_ids_are_neither_special_nor_unused(sparse_tokenizer):
    vocabulary = vocabulary_of(sparse_tokenizer)
    mosaic, bos = sparse_tokenizer.token_to_id("mosaic"), sparse_tokenizer.token_to_id("[BOS]")
    assert bos not in vocabulary.ordinary_ids
    assert vocabulary.ordinary_ids.tolist() == sorted([0, 40, 41, mosaic])  # "cat" is special


def test_every_id_is_either_special_or_ordinary(sparse_tokenizer):
    vocabulary = vocabulary_of(sparse_tokenizer)
    largest = max(sparse_tokenizer.get_vocab(with_added_tokens=True).values())
    assert len(vocabulary.is_special) == largest + 1
    assert np.flatnonzero(~vocabulary.is_special).tolist() == vocabulary.ordinary_ids.tolist()


def test_special_and_unused_ids_are_neither_masked_nor_drawn(sparse_tokenizer):
    vocabulary = vocabulary_of(sparse_tokenizer)
    input_ids = np.resize(np.arange(len(vocabulary.is_special)), 100_000)
    counters = token_counters(17, np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), np.array([100_000]))
    indices = choose_masked(input_ids, counters, 0.5, vocabulary)
    ordinary = set(vocabulary.ordinary_ids.tolist())
    assert set(input_ids[indices].tolist()) == ordinary
    assert set(replace_masked(input_ids[indices], counters[indices], vocabulary).tolist()) == ordinary | {13}
