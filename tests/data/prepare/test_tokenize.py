import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, pre_tokenizers

from mosaicbert.data.prepare.readers import Block, FilePosition, replace_lone_surrogates
from mosaicbert.data.prepare.sources import InputFile
from mosaicbert.data.prepare.tokenize import BlockTokenizer, SampleRules, cut_evenly, hash_text, split_of
from mosaicbert.data.store import TRAIN, VALIDATION
from tests.data.corpus import jsonl, short_texts, texts, trained

_INPUT_FILE = InputFile(source="text", path="a.jsonl", kind=".jsonl", text_column="text")


def _make_tokenizer(tokenizer=None, **changes):
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
    """Make a block. A list of texts is encoded as JSON lines."""
    if isinstance(content, list) and input_file.kind == ".jsonl":
        content = jsonl(content)
    return Block(input_file=input_file, start=FilePosition(), end=FilePosition(), fraction=1.0, content=content)


def _split_samples(samples):
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
_SPECIAL_CASES = ["[MASK]", "[MASK", "[SEP] ", "##ing", "\x00", "\x07", "\u200b"]
_FRAGMENTS = st.sampled_from([*_SPACES, *_WORDS, *_SPECIAL_CASES])
_TEXTS = st.lists(st.one_of(_FRAGMENTS, st.text(max_size=20)), max_size=40).map("".join)


def _with_token(token):
    tokenizer = Tokenizer.from_str(trained().to_str())
    tokenizer.add_tokens([token])
    tokenizer.encode_special_tokens = True
    return tokenizer


def _with_metaspace():
    tokenizer = Tokenizer.from_str(trained().to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.encode_special_tokens = True
    return tokenizer


_TOKENIZERS = {
    "trained": trained(),
    "token-with-space": _with_token(AddedToken("return the value of", normalized=False)),
    "token-that-strips-spaces": _with_token(AddedToken("word", lstrip=True, rstrip=True)),
    "single-word": _with_token(AddedToken("wo", single_word=True)),
    "other-pre-tokenizer": _with_metaspace(),
}


@pytest.mark.parametrize("name", _TOKENIZERS)
@settings(max_examples=150)
@given(documents=st.lists(_TEXTS, min_size=1, max_size=4), max_tokens=st.integers(1, 12))
@example(documents=["return the value of it"], max_tokens=2)
@example(documents=["return the " * 3 + "value of it all " * 9], max_tokens=12)
@example(documents=["word " * 100], max_tokens=3)
@example(documents=["\u0301 " * 300 + "the end"], max_tokens=3)
@example(documents=["x" * 45 + " " + "y" * 45], max_tokens=12)
def test_truncation_returns_the_first_tokens_of_the_whole_text(name, documents, max_tokens):
    documents = [replace_lone_surrogates(text) for text in documents]
    encoded = _make_tokenizer(_TOKENIZERS[name], max_tokens=max_tokens).encode(documents)
    whole = [_TOKENIZERS[name].encode(text, add_special_tokens=False).ids for text in documents]
    assert [ids.tolist() for ids in encoded] == [ids[:max_tokens] for ids in whole]


@pytest.mark.parametrize("name", _TOKENIZERS)
@given(documents=st.lists(_TEXTS, min_size=1, max_size=4), max_characters=st.integers(1, 40))
def test_tokenization_does_not_depend_on_the_size_of_the_pieces(name, documents, max_characters):
    documents = [replace_lone_surrogates(text) for text in documents]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mosaicbert.data.prepare.tokenize._MAX_CHARACTERS", max_characters)
        encoded = _make_tokenizer(_TOKENIZERS[name], sampling="chunk").encode(documents)
    assert [ids.tolist() for ids in encoded] == [
        _TOKENIZERS[name].encode(text, add_special_tokens=False).ids for text in documents
    ]


def test_names_of_special_tokens_in_a_text_are_ordinary_text():
    (ids,) = _make_tokenizer(max_tokens=99).encode(["[MASK] and [SEP], [PAD] or [CLS]"])
    assert min(ids) >= 5
    assert trained().decode(ids.tolist()) == "[ mask ] and [ sep ], [ pad ] or [ cls ]"


def test_truncation_tokenizes_only_a_prefix_of_a_long_text(monkeypatch):
    block_tokenizer = _make_tokenizer()
    encoded = []
    encode_whole = block_tokenizer._encode_whole
    monkeypatch.setattr(block_tokenizer, "_encode_whole", lambda texts: encoded.extend(texts) or encode_whole(texts))
    block_tokenizer.encode(["the value of the object " * 1000])
    assert sum(map(len, encoded)) < 100


@given(documents=st.lists(_TEXTS, min_size=1, max_size=4), max_tokens=st.integers(1, 12))
def test_the_chunks_of_a_text_are_its_whole_encoding(documents, max_tokens):
    documents = [replace_lone_surrogates(text) for text in documents]
    tokenized = _make_tokenizer(max_tokens=max_tokens, sampling="chunk", validation_fraction=1e-9)(_block(documents))
    whole = [trained().encode(text, add_special_tokens=False).ids for text in documents]
    assert tokenized.samples[TRAIN].ids.tolist() == [token for ids in whole for token in ids]
    first = 0
    for ids, num_chunks in zip(filter(None, whole), tokenized.samples[TRAIN].samples_per_document, strict=True):
        assert sum(tokenized.samples[TRAIN].seqlens[first : first + num_chunks]) == len(ids)
        first += num_chunks


@given(num_tokens=st.integers(1, 5000), max_tokens=st.integers(1, 600))
def test_chunks_are_few_and_nearly_equal(num_tokens, max_tokens):
    chunks = cut_evenly(num_tokens, max_tokens)
    assert sum(chunks) == num_tokens
    assert max(chunks) <= max_tokens
    assert len(chunks) == -(-num_tokens // max_tokens)
    assert max(chunks) - min(chunks) <= 1


@pytest.mark.parametrize("sampling", ["truncate", "chunk"])
def test_the_number_of_samples_per_document_is_correct(sampling):
    documents = texts()[:40]
    tokenized = _make_tokenizer(sampling=sampling)(_block(documents))
    for samples in tokenized.samples.values():
        assert samples.samples_per_document.sum() == len(samples.seqlens)
        assert samples.seqlens.sum() == len(samples.ids)
        assert len(samples.hashes) == len(samples.samples_per_document)
        assert samples.ids.dtype == np.uint16


def test_documents_of_both_splits_keep_their_order():
    documents = short_texts(100)
    tokenized = _make_tokenizer()(_block(documents))
    for split, samples in tokenized.samples.items():
        expected = [text for text in documents if split_of(_INPUT_FILE, hash_text(text)[0], 0.2) == split]
        assert [ids.tolist() for ids in _split_samples(samples)] == [
            trained().encode(text, add_special_tokens=False).ids[:8] for text in expected
        ]
        assert samples.hashes.tolist() == [list(hash_text(text)) for text in expected]


def test_the_validation_fraction_is_as_requested():
    num_validation = sum(split_of(_INPUT_FILE, hash_text(text)[0], 0.05) == VALIDATION for text in short_texts(20_000))
    assert 0.045 < num_validation / 20_000 < 0.055


def test_a_larger_validation_fraction_adds_texts_to_the_validation_split():
    validation_texts = [
        {t for t in short_texts(2000) if split_of(_INPUT_FILE, hash_text(t)[0], fraction) == VALIDATION}
        for fraction in (0.1, 0.3)
    ]
    assert validation_texts[0] < validation_texts[1]


@pytest.mark.parametrize("split", [TRAIN, VALIDATION])
def test_the_split_of_an_input_file_applies_to_all_its_texts(split):
    input_file = InputFile(source="text", path="owner/name", kind="hub", text_column="text", split=split)
    tokenized = _make_tokenizer()(_block([text.encode() for text in short_texts(50)], input_file))
    assert {name: len(samples.seqlens) for name, samples in tokenized.samples.items() if len(samples.seqlens)} == {
        split: 50
    }


def test_skipped_documents_are_counted_by_reason():
    content = (
        jsonl(["long enough", "short", "\x00\u200b" * 10])
        + b'{\n[]\n{"text": 3}\n{"text": "\xff"}\n\n'
        + jsonl(["tiny"])
    )
    tokenized = _make_tokenizer(min_characters=6)(_block(content))
    assert tokenized.skipped_documents == {
        "too short": 2,
        "no tokens": 1,
        "not JSON": 1,
        "not a JSON object": 1,
        "no text": 1,
        "not UTF-8": 1,
    }
    assert tokenized.num_documents == 8
    assert str(tokenized.first_invalid).startswith("a.jsonl, line 4: not JSON")


def test_the_minimum_length_is_in_characters_and_the_size_in_bytes():
    tokenized = _make_tokenizer(min_characters=4)(_block(["äöü", "äöüß"]))
    assert tokenized.skipped_documents == {"too short": 1}
    assert tokenized.text_bytes == 14


def test_a_lone_surrogate_is_replaced():
    tokenized = _make_tokenizer(validation_fraction=1e-9)(_block(b'{"text": "lone surrogate \\ud800 in text"}\n'))
    assert tokenized.samples[TRAIN].hashes.tolist() == [list(hash_text("lone surrogate ? in text"))]


def test_a_surrogate_pair_is_one_character():
    tokenized = _make_tokenizer(validation_fraction=1e-9)(_block(b'{"text": "smile \\ud83d\\ude42"}\n'))
    assert tokenized.samples[TRAIN].hashes.tolist() == [list(hash_text("smile 🙂"))]


def test_the_hash_of_a_text_is_stable():
    assert hash_text("the same in every release, or stores would mix splits") == (
        12092018751567356314,
        11666207165299528426,
    )
