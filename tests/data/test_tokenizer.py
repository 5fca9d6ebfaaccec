import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import BertTokenizerFast

from mosaicbert.config import ConfigError
from mosaicbert.data.tokenizer import SPECIAL_TOKENS, hash_tokenizer, load_tokenizer, train_tokenizer, vocabulary_of
from tests.data.corpus import texts


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(texts(), vocab_size=512)


def test_a_trained_tokenizer_has_the_size_asked_for_and_berts_specials_first(trained):
    assert trained.get_vocab_size() == 512
    assert [trained.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]


def test_another_process_trains_the_same_tokenizer_on_the_same_text(trained):
    code = (
        "from mosaicbert.data.tokenizer import hash_tokenizer, train_tokenizer\n"
        "from tests.data.corpus import texts\n"
        "print(hash_tokenizer(train_tokenizer(texts(), vocab_size=512)))\n"
    )
    root = Path(__file__).parents[2]
    answer = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == hash_tokenizer(trained)


def test_truncation_and_padding_that_a_file_carries_are_switched_off(trained, tmp_path):
    copy = Tokenizer.from_str(trained.to_str())
    copy.enable_truncation(3)
    copy.enable_padding(length=50)
    copy.save(str(tmp_path / "tokenizer.json"))
    assert hash_tokenizer(load_tokenizer(str(tmp_path))) == hash_tokenizer(trained)


def test_text_is_normalised_as_bert_does_and_framed(trained):
    encoding = trained.encode("Héllo, WORLD")
    assert encoding.tokens[0] == "[CLS]"
    assert encoding.tokens[-1] == "[SEP]"
    assert trained.decode(encoding.ids) == "hello, world"


def test_masking_sees_every_entry_but_the_specials_as_ordinary(trained):
    vocabulary = vocabulary_of(trained)
    assert vocabulary.mask_id == 4
    assert vocabulary.ordinary_ids.tolist() == list(range(5, 512))


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "."])
def test_the_published_vocabulary_loads_from_each_of_its_forms_and_tokenises_as_hugging_face_does(shared_folder, name):
    ours = load_tokenizer(str(shared_folder / "data" / "vocab" / name))
    theirs = BertTokenizerFast(str(shared_folder / "data" / "vocab" / "vocab.txt"))
    for text in ["The quick brown Fox's naïve café!", "antidisestablishmentarianism 12.5% [MASK] 東京"]:
        assert ours.encode(text).ids == theirs(text)["input_ids"]


def test_a_tokenizer_survives_its_file(trained, tmp_path):
    trained.save(str(tmp_path / "tokenizer.json"))
    assert hash_tokenizer(load_tokenizer(str(tmp_path))) == hash_tokenizer(trained)


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "no such file"), ("hello\nworld\n", r"lacks \[PAD\]")],
    ids=["missing", "without-specials"],
)
def test_a_vocabulary_that_cannot_serve_is_refused(tmp_path, content, expected):
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=expected):
        load_tokenizer(str(path))


def test_a_damaged_tokenizer_json_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_tokenizer(str(tmp_path))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"neither tokenizer\.json nor vocab\.txt"):
        load_tokenizer(str(tmp_path))
