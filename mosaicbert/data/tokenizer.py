"""WordPiece tokenizer: training on the corpus, or loading from a file or the Hub."""

import hashlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from mosaicbert.config.validators import must_be

# Special tokens of BERT. A trained tokenizer assigns them the first ids, in this order.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# A trained tokenizer replaces rarer letters with [UNK], because each letter needs two vocabulary entries.
_MAX_LETTERS = 1000  # number of different letters in the vocabulary, the most frequent ones
_MIN_LETTER_FREQUENCY = 1e-6  # fraction of all characters
_SOURCE_REMEDY = "Set a BERT tokenizer, or tokenizer.source=train."


@dataclass(frozen=True)
class Vocabulary:
    """Token ids that masking and padding need.

    Attributes:
        cls_id: Id of [CLS], the first token of every sequence.
        sep_id: Id of [SEP], the last token of every sequence.
        mask_id: Id of [MASK].
        pad_id: Id of [PAD], used for padding.
        ordinary_ids: (N,) int64, ids of all entries that are not special; random replacements are drawn from them.
        is_special: (max id + 1,) bool, True for [PAD], [UNK], [CLS], [SEP], [MASK] and for ids without an entry.
    """

    cls_id: int
    sep_id: int
    mask_id: int
    pad_id: int
    ordinary_ids: NDArray[np.int64]
    is_special: NDArray[np.bool_]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train an uncased WordPiece tokenizer with BERT's normalization and special tokens.

    The result is deterministic for the same texts in the same order.

    Args:
        texts: Training texts, which are kept in memory.
        vocab_size: Maximum number of entries, including special tokens.
    """
    texts = list(texts)
    tokenizer = _bert_tokenizer(models.WordPiece(unk_token="[UNK]"))
    normalize = take_normalizer(tokenizer)
    alphabet = _alphabet(map(normalize, texts))
    # The trainer numbers new letters in the order of a hash table, which differs between processes, and breaks ties by
    # these numbers. For a deterministic result, it gets all letters in advance: continuation letters ("##x") as special
    # tokens, and the others as the initial alphabet.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *(f"##{letter}" for letter in alphabet)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(normalize, texts), trainer)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return _with_template(_bert_tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")))


def take_normalizer(tokenizer: Tokenizer) -> Callable[[str], str]:
    """Remove the BERT normalizer of a tokenizer, and return a function that normalizes texts in the same way.

    The function is some ten times as fast for ASCII texts. BERT normalizes each ASCII character separately unless a
    character outside ASCII follows, so a table of characters is sufficient.

    Args:
        tokenizer: Tokenizer with a `BertNormalizer`. Afterwards it expects normalized texts.
    """
    normalizer = tokenizer.normalizer
    assert isinstance(normalizer, normalizers.BertNormalizer)
    table = {code: normalizer.normalize_str(chr(code)) or None for code in range(128)}  # None removes the character
    tokenizer.normalizer = None  # pyright: ignore[reportAttributeAccessIssue]
    return lambda text: text.translate(table) if text.isascii() else normalizer.normalize_str(text)


def load_tokenizer(source: str) -> Tokenizer:
    """Load a tokenizer.

    Args:
        source: Path of a vocab.txt, a tokenizer.json or a folder with one of them, or a name on the Hub.

    Raises:
        ConfigError: If the tokenizer does not exist, cannot be read, or does not have all special tokens of BERT.
    """
    path = Path(source)
    if path.is_dir():
        candidates = [path / name for name in ("tokenizer.json", "vocab.txt") if (path / name).is_file()]
        if not candidates:
            raise must_be("tokenizer.source", "a folder with tokenizer.json or vocab.txt", source)
        path = candidates[0]
    if not path.is_file() and path.suffix in (".json", ".txt"):
        raise must_be("tokenizer.source", "an existing file, folder or Hub tokenizer", source, "Correct the path.")
    try:
        if path.suffix == ".txt":
            wordpiece = models.WordPiece.from_file(str(path), unk_token="[UNK]")
            tokenizer = _with_template(_bert_tokenizer(wordpiece))
        elif path.is_file():
            tokenizer = Tokenizer.from_file(str(path))
        else:
            tokenizer = Tokenizer.from_pretrained(source)
    except Exception as error:  # tokenizers raises bare Exception
        raise must_be("tokenizer.source", f"a readable tokenizer ({error})", source, _SOURCE_REMEDY) from error
    missing = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
    if missing:
        raise must_be("tokenizer.source", f"a tokenizer with {', '.join(missing)}", source, _SOURCE_REMEDY)
    # A saved file may have truncation and padding settings, which would change the samples.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def hash_tokenizer(tokenizer: Tokenizer) -> str:
    """Compute the SHA-256 of the tokenizer, including its normalization and pre-tokenization."""
    return hashlib.sha256(tokenizer.to_str(pretty=False).encode()).hexdigest()


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """Collect the token ids that masking and padding need."""
    optional_ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    # `load_tokenizer` has checked that all of them exist.
    special_ids = {token: token_id for token, token_id in optional_ids.items() if token_id is not None}
    ids = np.array(sorted(tokenizer.get_vocab(with_added_tokens=True).values()))
    is_special = np.ones(ids[-1] + 1, dtype=np.bool_)
    is_special[ids] = False
    is_special[[number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special]] = True
    is_special[list(special_ids.values())] = True
    return Vocabulary(
        cls_id=special_ids["[CLS]"],
        sep_id=special_ids["[SEP]"],
        mask_id=special_ids["[MASK]"],
        pad_id=special_ids["[PAD]"],
        ordinary_ids=(~is_special).nonzero()[0],
        is_special=is_special,
    )


def _alphabet(texts: Iterable[str]) -> list[str]:
    """Return the most frequent letters of normalized texts, in the order of their code points."""
    counts = np.zeros(sys.maxunicode + 1, dtype=np.int64)
    for text in texts:
        counts_of_text = np.bincount(np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32))
        counts[: len(counts_of_text)] += counts_of_text
    min_count = _MIN_LETTER_FREQUENCY * counts.sum()
    codes = [code for code in np.flatnonzero(counts).tolist() if counts[code] >= min_count and not chr(code).isspace()]
    return [chr(code) for code in sorted(sorted(codes, key=lambda code: (-counts[code], code))[:_MAX_LETTERS])]


def _bert_tokenizer(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.WordPiece()  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer


def _with_template(tokenizer: Tokenizer) -> Tokenizer:
    missing = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
    if not missing:
        tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
        )
        tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer
