"""The WordPiece tokenizer: trained on the corpus, or loaded from a file or the Hub."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from mosaicbert.config import ConfigError

# BERT's special tokens; a trained tokenizer gives them the first ids, in this order.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Letters beyond the most frequent thousand, or rarer than one in a million, become [UNK]: each takes two entries.
_MAX_LETTERS = 1000
_MIN_LETTER_FREQUENCY = 1e-6


@dataclass(frozen=True)
class Vocabulary:
    """What masking must know of a tokenizer.

    Attributes:
        cls_id: the id of [CLS], which begins every sequence.
        sep_id: the id of [SEP], which ends it.
        mask_id: the id of [MASK].
        pad_id: the id of [PAD], which filler consists of.
        ordinary_ids: (N,) ids of the tokenizer's entries that are not special: what may be masked, and drawn.
        is_special: (largest id + 1,) bool, True for [PAD], [UNK], [CLS], [SEP], [MASK] and for ids that have no entry.
    """

    cls_id: int
    sep_id: int
    mask_id: int
    pad_id: int
    ordinary_ids: NDArray[np.int64]
    is_special: NDArray[np.bool_]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a lower-casing WordPiece tokenizer with BERT's normalisation and special tokens.

    The same texts in the same order always give the same tokenizer.

    Args:
        texts: the corpus, or a part of it; held in memory.
        vocab_size: entries at most, special tokens included.
    """
    texts = list(texts)
    tokenizer = _bert_tokenizer(models.WordPiece(unk_token="[UNK]"))
    alphabet = _alphabet(tokenizer, texts)
    # The trainer numbers what it does not know yet in the order of a hash table that differs from process to process,
    # and breaks ties by these numbers. So it is told every letter beforehand, as a special token where it follows one.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *(f"##{letter}" for letter in alphabet)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return _with_template(_bert_tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")))


def load_tokenizer(source: str) -> Tokenizer:
    """Loads a vocab.txt, a tokenizer.json, a folder that holds one of them, or a tokenizer of the Hub by its name.

    Raises:
        ConfigError: nothing is there, it cannot be read, or it lacks one of BERT's special tokens.
    """
    path = Path(source)
    if path.is_dir():
        found = [path / name for name in ("tokenizer.json", "vocab.txt") if (path / name).is_file()]
        if not found:
            raise ConfigError(f"tokenizer.source={source}: the folder holds neither tokenizer.json nor vocab.txt.")
        path = found[0]
    if not path.is_file() and path.suffix in (".json", ".txt"):
        raise ConfigError(f"tokenizer.source={source}: no such file.")
    try:
        if path.suffix == ".txt":
            wordpiece = models.WordPiece.from_file(str(path), unk_token="[UNK]")
            tokenizer = _with_template(_bert_tokenizer(wordpiece))
        elif path.is_file():
            tokenizer = Tokenizer.from_file(str(path))
        else:
            tokenizer = Tokenizer.from_pretrained(source)
    except Exception as error:  # tokenizers raises bare Exception
        raise ConfigError(f"tokenizer.source={source}: cannot be read: {error}") from error
    missing = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
    if missing:
        raise ConfigError(f"tokenizer.source={source}: lacks {', '.join(missing)}; a BERT needs them.")
    # What a file may carry from its last use would cut or fill the samples.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def hash_tokenizer(tokenizer: Tokenizer) -> str:
    """SHA-256 of everything that decides which ids a text becomes."""
    return hashlib.sha256(tokenizer.to_str(pretty=False).encode()).hexdigest()


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """The ids that masking needs."""
    found = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    specials = {token: number for token, number in found.items() if number is not None}  # load_tokenizer saw them all
    ids = np.array(sorted(tokenizer.get_vocab(with_added_tokens=True).values()))
    is_special = np.ones(ids[-1] + 1, dtype=np.bool_)
    is_special[ids] = False
    is_special[[number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special]] = True
    is_special[list(specials.values())] = True
    return Vocabulary(
        cls_id=specials["[CLS]"],
        sep_id=specials["[SEP]"],
        mask_id=specials["[MASK]"],
        pad_id=specials["[PAD]"],
        ordinary_ids=(~is_special).nonzero()[0],
        is_special=is_special,
    )


def _alphabet(tokenizer: Tokenizer, texts: Iterable[str]) -> list[str]:
    """The most frequent letters of normalised texts, in the order of their code points."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(tokenizer.normalizer.normalize_str(text))  # pyright: ignore[reportOptionalMemberAccess]
    least = _MIN_LETTER_FREQUENCY * counts.total()
    letters = [letter for letter, count in counts.items() if count >= least and not letter.isspace()]
    return sorted(sorted(letters, key=lambda letter: (-counts[letter], letter))[:_MAX_LETTERS])


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
