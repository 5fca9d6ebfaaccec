"""The WordPiece tokenizer: trained on the corpus, or loaded from a file or the Hub."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from mosaicbert.config import ConfigError
from mosaicbert.data.masking import Vocabulary

# BERT's special tokens; a trained tokenizer gives them the first ids, in this order.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a lower-casing WordPiece tokenizer with BERT's normalisation and special tokens.

    Args:
        texts: the corpus, or a part of it.
        vocab_size: entries at most, special tokens included.
    """
    tokenizer = _bert_tokenizer(models.WordPiece(unk_token="[UNK]"))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _with_template(tokenizer)


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
    return tokenizer


def hash_tokenizer(tokenizer: Tokenizer) -> str:
    """SHA-256 of everything that decides which ids a text becomes."""
    return hashlib.sha256(tokenizer.to_str(pretty=False).encode()).hexdigest()


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """The ids that masking needs."""
    specials = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    is_special = np.zeros(tokenizer.get_vocab_size(), dtype=np.bool_)
    is_special[specials] = True
    return Vocabulary(
        mask_id=tokenizer.token_to_id("[MASK]"), ordinary_ids=(~is_special).nonzero()[0], is_special=is_special
    )


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
