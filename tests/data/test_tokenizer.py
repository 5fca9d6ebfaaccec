import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers
from transformers import BertTokenizerFast

from mosaicbert.config import ConfigError
from mosaicbert.data.tokenizer import (
    SPECIAL_TOKENS,
    hash_tokenizer,
    load_tokenizer,
    take_normalizer,
    train_tokenizer,
    vocabulary_of,
)
from tests.data.corpus import texts


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(texts(), vocab_size=512)


def test_a_trained_tokenizer_has_the_requested_size_and_the_special_tokens_first(trained):
    assert trained.get_vocab_size() == 512
    assert [trained.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]


def test_training_is_deterministic_across_processes(trained):
    code = (
        "from mosaicbert.data.tokenizer import hash_tokenizer, train_tokenizer\n"
        "from tests.data.corpus import texts\n"
        "print(hash_tokenizer(train_tokenizer(texts(), vocab_size=512)))\n"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == hash_tokenizer(trained)


_NORMALIZERS = {
    "uncased": normalizers.BertNormalizer(),
    "cased": normalizers.BertNormalizer(lowercase=False),
    "accents": normalizers.BertNormalizer(strip_accents=False),
    "control-characters": normalizers.BertNormalizer(clean_text=False),
}


@pytest.mark.parametrize("name", _NORMALIZERS)
@given(text=st.one_of(st.text(), st.text(st.characters(max_codepoint=127))))
@example(text="".join(map(chr, range(128))))
@example(text="e\u0301 \u4e2d\u6587 \u0130I")
def test_the_normalizer_of_a_tokenizer_is_replaced_by_an_equal_function(name, text):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = _NORMALIZERS[name]
    assert take_normalizer(tokenizer)(text) == _NORMALIZERS[name].normalize_str(text)
    assert tokenizer.normalizer is None


def test_a_trained_vocabulary_has_the_letters_that_are_frequent_enough():
    tokenizer = train_tokenizer(["a " * 600_000, "\u00df\u00df \U0001f642 \u03c0\u03b2", "\u03c0"], vocab_size=11)
    letters = ["a", "\u00df", "\u03c0"]  # twice in 1.2 million characters; the other two occur once
    assert set(tokenizer.get_vocab()) == {*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters)}


def test_truncation_and_padding_of_a_saved_file_are_disabled(trained, tmp_path):
    copy = Tokenizer.from_str(trained.to_str())
    copy.enable_truncation(3)
    copy.enable_padding(length=50)
    copy.save(str(tmp_path / "tokenizer.json"))
    assert hash_tokenizer(load_tokenizer(str(tmp_path))) == hash_tokenizer(trained)


def test_text_is_normalized_as_in_bert_and_enclosed_in_special_tokens(trained):
    encoding = trained.encode("Héllo, WORLD")
    assert encoding.tokens[0] == "[CLS]"
    assert encoding.tokens[-1] == "[SEP]"
    assert trained.decode(encoding.ids) == "hello, world"


def test_all_entries_except_special_tokens_are_ordinary(trained):
    vocabulary = vocabulary_of(trained)
    assert vocabulary.mask_id == 4
    assert vocabulary.ordinary_ids.tolist() == list(range(5, 512))


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "."])
def test_each_form_of_the_published_vocabulary_tokenizes_like_hugging_face(shared_folder, name):
    tokenizer = load_tokenizer(str(shared_folder / "data" / "vocab" / name))
    reference = BertTokenizerFast(str(shared_folder / "data" / "vocab" / "vocab.txt"))
    for text in ["The quick brown Fox's naïve café!", "antidisestablishmentarianism 12.5% [MASK] 東京"]:
        assert tokenizer.encode(text).ids == reference(text)["input_ids"]


def test_a_tokenizer_is_equal_after_saving_and_loading(trained, tmp_path):
    trained.save(str(tmp_path / "tokenizer.json"))
    assert hash_tokenizer(load_tokenizer(str(tmp_path))) == hash_tokenizer(trained)


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "must be an existing file"), ("hello\nworld\n", r"must be a tokenizer with \[PAD\]")],
    ids=["missing", "without-special-tokens"],
)
def test_a_missing_or_incomplete_vocabulary_raises_an_error(tmp_path, content, expected):
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=expected):
        load_tokenizer(str(path))


def test_a_corrupted_tokenizer_json_raises_an_error(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="must be a readable tokenizer"):
        load_tokenizer(str(tmp_path))


def test_a_folder_without_a_tokenizer_raises_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"must be a folder with tokenizer\.json or vocab\.txt"):
        load_tokenizer(str(tmp_path))
