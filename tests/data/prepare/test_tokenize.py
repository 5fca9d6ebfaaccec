import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, pre_tokenizers

from mosaicbert.data.prepare.readers import Block, FilePosition, clean
from mosaicbert.data.prepare.sources import InputFile
from mosaicbert.data.prepare.tokenize import BlockTokenizer, SampleRules, cut_evenly, hash_text, split_of
from mosaicbert.data.store import TRAIN, VALIDATION
from tests.data.corpus import jsonl, short_texts, texts, trained

_INPUT_FILE = InputFile(source="text", path="a.jsonl", kind=".jsonl", text_column="text")


def _block_tokenizer(tokenizer=None, **changes):
    rules = {
        "tokenizer": (tokenizer or trained()).to_str(),
        "max_tokens": 8,
        "sampling": "truncate",
        "min_characters": 1,
        "validation_fraction": 0.2,
        "dtype": np.dtype(np.uint16),
    }
    return BlockTokenizer(SampleRules(**(rules | changes)))


def _block(content, input_file=_INPUT_FILE):
    """Of lines if texts or bytes are given."""
    if isinstance(content, list) and input_file.kind == ".jsonl":
        content = jsonl(content)
    return Block(input_file=input_file, start=FilePosition(), end=FilePosition(), fraction=1.0, content=content)


def _pieces(samples):
    return np.split(samples.ids, np.cumsum(samples.seqlens)[:-1])


_SPACES = [" ", "  ", "\t", "\n", "\xa0", "\u3000", "\u2028"]
_WORDS = [
    "word",
    "x" * 45,
    "x" * 101,
    "é",
    "e\u0301",
    "\u0301",
    "ß",
    "ﬁ",
    "中文",
    "中" * 50,
    "한국",
    "ไทย",
    "🙂",
    "\ufffd",
]
_TRAPS = ["[MASK]", "[MASK", "[SEP] ", "##ing", "\x00", "\x07", "\u200b"]
_FRAGMENTS = st.sampled_from([*_SPACES, *_WORDS, *_TRAPS])
_TEXTS = st.lists(st.one_of(_FRAGMENTS, st.text(max_size=20)), max_size=40).map("".join)


def _added(token):
    tokenizer = Tokenizer.from_str(trained().to_str())
    tokenizer.add_tokens([token])
    tokenizer.encode_special_tokens = True
    return tokenizer


def _other_pre_tokenizer():
    tokenizer = Tokenizer.from_str(trained().to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.encode_special_tokens = True
    return tokenizer


_TOKENIZERS = {
    "trained": trained(),
    "token-with-space": _added(AddedToken("return the value of", normalized=False)),
    "token-that-eats-spaces": _added(AddedToken("word", lstrip=True, rstrip=True)),
    "single-word": _added(AddedToken("wo", single_word=True)),
    "other-pre-tokenizer": _other_pre_tokenizer(),
}


@pytest.mark.parametrize("name", _TOKENIZERS)
@settings(max_examples=150)
@given(documents=st.lists(_TEXTS, min_size=1, max_size=4), max_tokens=st.integers(1, 12))
@example(documents=["return the value of it"], max_tokens=2)
@example(documents=["return the " * 3 + "value of it all " * 9], max_tokens=12)
@example(documents=["word " * 100], max_tokens=3)
@example(documents=["\u0301 " * 300 + "the end"], max_tokens=3)
@example(documents=["x" * 45 + " " + "y" * 45], max_tokens=12)
def test_truncation_gives_the_first_tokens_of_the_whole_text(name, documents, max_tokens):
    documents = [clean(text) for text in documents]
    encoded = _block_tokenizer(_TOKENIZERS[name], max_tokens=max_tokens).encode(documents)
    whole = [_TOKENIZERS[name].encode(text, add_special_tokens=False).ids for text in documents]
    assert [ids.tolist() for ids in encoded] == [ids[:max_tokens] for ids in whole]


@pytest.mark.parametrize("name", _TOKENIZERS)
@given(documents=st.lists(_TEXTS, min_size=1, max_size=4), at_once=st.integers(1, 40))
def test_a_long_text_is_tokenised_in_pieces_as_it_is_in_one(name, documents, at_once):
    documents = [clean(text) for text in documents]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mosaicbert.data.prepare.tokenize._MAX_CHARACTERS", at_once)
        encoded = _block_tokenizer(_TOKENIZERS[name], sampling="chunk").encode(documents)
    assert [ids.tolist() for ids in encoded] == [
        _TOKENIZERS[name].encode(text, add_special_tokens=False).ids for text in documents
    ]


def test_the_names_of_special_tokens_in_a_text_are_words_like_any_other():
    (ids,) = _block_tokenizer(max_tokens=99).encode(["[MASK] and [SEP], [PAD] or [CLS]"])
    assert min(ids) >= 5
    assert trained().decode(ids.tolist()) == "[ mask ] and [ sep ], [ pad ] or [ cls ]"


def test_truncation_reads_no_more_of_a_long_text_than_it_needs(monkeypatch):
    block_tokenizer = _block_tokenizer()
    encoded = []
    encode_whole = block_tokenizer._encode_whole
    monkeypatch.setattr(block_tokenizer, "_encode_whole", lambda texts: encoded.extend(texts) or encode_whole(texts))
    block_tokenizer.encode(["the value of the object " * 1000])
    assert sum(map(len, encoded)) < 100


@given(documents=st.lists(_TEXTS, min_size=1, max_size=4), max_tokens=st.integers(1, 12))
def test_pieces_of_a_text_are_together_the_whole_encoding(documents, max_tokens):
    documents = [clean(text) for text in documents]
    tokenized = _block_tokenizer(max_tokens=max_tokens, sampling="chunk", validation_fraction=1e-9)(_block(documents))
    whole = [trained().encode(text, add_special_tokens=False).ids for text in documents]
    assert tokenized.samples[TRAIN].ids.tolist() == [token for ids in whole for token in ids]
    first = 0
    for ids, pieces in zip(filter(None, whole), tokenized.samples[TRAIN].samples_per_document, strict=True):
        assert sum(tokenized.samples[TRAIN].seqlens[first : first + pieces]) == len(ids)
        first += pieces


@given(num_tokens=st.integers(1, 5000), max_tokens=st.integers(1, 600))
def test_pieces_are_as_few_as_fit_and_nearly_equal(num_tokens, max_tokens):
    pieces = cut_evenly(num_tokens, max_tokens)
    assert sum(pieces) == num_tokens
    assert max(pieces) <= max_tokens
    assert len(pieces) == -(-num_tokens // max_tokens)
    assert max(pieces) - min(pieces) <= 1


@pytest.mark.parametrize("sampling", ["truncate", "chunk"])
def test_every_document_knows_how_many_samples_it_has(sampling):
    documents = texts()[:40]
    tokenized = _block_tokenizer(sampling=sampling)(_block(documents))
    for samples in tokenized.samples.values():
        assert samples.samples_per_document.sum() == len(samples.seqlens)
        assert samples.seqlens.sum() == len(samples.ids)
        assert len(samples.hashes) == len(samples.samples_per_document)
        assert samples.ids.dtype == np.uint16


def test_documents_of_both_splits_keep_their_order():
    documents = short_texts(100)
    tokenized = _block_tokenizer()(_block(documents))
    for split, samples in tokenized.samples.items():
        expected = [text for text in documents if split_of(_INPUT_FILE, hash_text(text)[0], 0.2) == split]
        assert [ids.tolist() for ids in _pieces(samples)] == [
            trained().encode(text, add_special_tokens=False).ids[:8] for text in expected
        ]
        assert samples.hashes.tolist() == [list(hash_text(text)) for text in expected]


def test_the_held_out_share_is_what_was_asked_for():
    validation = sum(split_of(_INPUT_FILE, hash_text(text)[0], 0.05) == VALIDATION for text in short_texts(20_000))
    assert 0.045 < validation / 20_000 < 0.055


def test_a_larger_held_out_share_holds_out_the_same_texts_and_more():
    shares = [
        {t for t in short_texts(2000) if split_of(_INPUT_FILE, hash_text(t)[0], share) == VALIDATION}
        for share in (0.1, 0.3)
    ]
    assert shares[0] < shares[1]


@pytest.mark.parametrize("split", [TRAIN, VALIDATION])
def test_all_texts_of_a_part_that_has_a_split_go_to_it(split):
    input_file = InputFile(source="text", path="owner/name", kind="hub", text_column="text", split=split)
    tokenized = _block_tokenizer()(_block([text.encode() for text in short_texts(50)], input_file))
    assert {name: len(samples.seqlens) for name, samples in tokenized.samples.items() if len(samples.seqlens)} == {
        split: 50
    }


def test_what_is_left_out_is_counted_by_its_reason():
    content = (
        jsonl(["long enough", "short", "\x00\u200b" * 10])
        + b'{\n[]\n{"text": 3}\n{"text": "\xff"}\n\n'
        + jsonl(["tiny"])
    )
    tokenized = _block_tokenizer(min_characters=6)(_block(content))
    assert tokenized.skipped_documents == {
        "too short": 2,
        "without a token": 1,
        "not JSON": 1,
        "no JSON object": 1,
        "no text": 1,
        "not UTF-8": 1,
    }
    assert tokenized.documents == 8
    assert str(tokenized.first_invalid).startswith("a.jsonl, line 4: not JSON")


def test_shortness_is_counted_in_characters_and_size_in_bytes():
    tokenized = _block_tokenizer(min_characters=4)(_block(["äöü", "äöüß"]))
    assert tokenized.skipped_documents == {"too short": 1}
    assert tokenized.text_bytes == 14


def test_half_a_character_is_mended():
    tokenized = _block_tokenizer(validation_fraction=1e-9)(_block(b'{"text": "half a pair \\ud800 of surrogates"}\n'))
    assert tokenized.samples[TRAIN].hashes.tolist() == [list(hash_text("half a pair ? of surrogates"))]


def test_a_whole_pair_of_surrogates_is_a_character():
    tokenized = _block_tokenizer(validation_fraction=1e-9)(_block(b'{"text": "smile \\ud83d\\ude42"}\n'))
    assert tokenized.samples[TRAIN].hashes.tolist() == [list(hash_text("smile 🙂"))]


def test_the_hash_of_a_text_stays_what_it_was():
    assert hash_text("the same in every release, or stores would mix splits") == (
        12092018751567356314,
        11666207165299528426,
    )
