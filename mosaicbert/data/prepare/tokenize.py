"""Blocks to samples: what a worker process does with the documents of a block."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from mosaicbert.data.prepare.readers import Block, FilePosition, InvalidDocument, clean, decode
from mosaicbert.data.prepare.sources import InputFile
from mosaicbert.data.store import TRAIN, VALIDATION

# A text's first characters are enough to find its first tokens; if this many per token are not, all of it is read.
_CHARACTERS_PER_TOKEN = 6
_MAX_CHARACTERS = 2**19
Hashes = NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class SampleRules:
    """How documents become samples.

    Attributes:
        tokenizer: as JSON.
        max_tokens: of a sample, without [CLS] and [SEP].
        sampling: "truncate" or "chunk", see `DataConfig`.
        min_characters: shorter texts are left out.
        validation_fraction: of the texts that belong to no split.
        dtype: of token ids.
    """

    tokenizer: str
    max_tokens: int
    sampling: Literal["truncate", "chunk"]
    min_characters: int
    validation_fraction: float
    dtype: np.dtype[Any]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The samples of some documents, for one split.

    Attributes:
        ids: (T,) tokens of all samples, one behind the other.
        seqlens: (samples,) int32, tokens of each.
        hashes: (documents, 2) uint64, the 128 bits that tell texts apart.
        samples_per_document: (documents,) int32.
    """

    ids: NDArray[Any]
    seqlens: NDArray[np.int32]
    hashes: Hashes
    samples_per_document: NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class TokenizedBlock:
    """What a block became.

    Attributes:
        part: that it comes from.
        end: where the next block begins.
        fraction: of the part that has been read, 0 if that is not known.
        damage: why the part cannot be read any further.
        samples: by split.
        documents: that were read.
        text_bytes: of them, in UTF-8.
        skipped_documents: documents left out, by reason.
        first_bad: the first that could not be read.
    """

    input_file: InputFile
    end: FilePosition
    fraction: float
    corruption: str | None
    samples: dict[str, Samples]
    documents: int
    text_bytes: int
    skipped_documents: dict[str, int]
    first_invalid: InvalidDocument | None


def hash_text(text: str) -> tuple[int, int]:
    """128 bits of a text, as two numbers; the first also decides on its split (XXH3)."""
    digest = xxhash.xxh3_128_intdigest(text.encode())
    return digest >> 64, digest & 0xFFFFFFFFFFFFFFFF


def split_of(input_file: InputFile, high_bits: int, validation_fraction: float) -> str:
    """The split of a text: its part's, or what the first of its `hash_text` says."""
    if input_file.split is not None:
        return input_file.split
    return VALIDATION if high_bits < validation_fraction * 2**64 else TRAIN


class BlockTokenizer:
    """Turns blocks into samples by some rules."""

    def __init__(self, rules: SampleRules) -> None:
        self.rules = rules
        self.tokenizer = Tokenizer.from_str(rules.tokenizer)
        self.tokenizer.encode_special_tokens = True  # a text about BERT may say "[MASK]", and means the word
        self._is_local = _is_local(self.tokenizer)

    def __call__(self, block: Block) -> TokenizedBlock:
        skipped_documents: Counter[str] = Counter()
        texts: dict[str, list[str]] = {TRAIN: [], VALIDATION: []}
        hashes: dict[str, list[tuple[int, int]]] = {TRAIN: [], VALIDATION: []}
        first_invalid = None
        documents = text_bytes = 0
        for document in decode(block):
            documents += 1
            if isinstance(document, InvalidDocument):
                skipped_documents[document.kind] += 1
                first_invalid = first_invalid or document
                continue
            text = clean(document)
            text_bytes += len(text.encode())
            if len(text) < self.rules.min_characters:
                skipped_documents["too short"] += 1
                continue
            bits = hash_text(text)
            split = split_of(block.input_file, bits[0], self.rules.validation_fraction)
            texts[split].append(text)
            hashes[split].append(bits)
        samples: dict[str, Samples] = {}
        for split in texts:
            samples[split], blank = self._sample(texts[split], hashes[split])
            skipped_documents["without a token"] += blank
        return TokenizedBlock(
            input_file=block.input_file,
            end=block.end,
            fraction=block.fraction,
            corruption=block.corruption,
            samples=samples,
            documents=documents,
            text_bytes=text_bytes,
            skipped_documents={reason: count for reason, count in skipped_documents.items() if count},
            first_invalid=first_invalid,
        )

    def encode(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        """The token ids of each text, without special tokens; in mode "truncate" as many as a sample can hold."""
        if self.rules.sampling == "chunk" or not self._is_local:
            return self._encode_whole(texts)
        max_tokens = self.rules.max_tokens
        prefixes = [_prefix(text, max_tokens * _CHARACTERS_PER_TOKEN) for text in texts]
        encoded = self._encode_whole(prefixes)
        # A prefix that ends between two words has the tokens that the text begins with.
        short = [
            index
            for index, (text, prefix, ids) in enumerate(zip(texts, prefixes, encoded, strict=True))
            if len(ids) < max_tokens and len(prefix) < len(text)
        ]
        for index, ids in zip(short, self._encode_whole([texts[index] for index in short]), strict=True):
            encoded[index] = ids
        return encoded

    def _encode_whole(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        end = self.rules.max_tokens if self.rules.sampling == "truncate" else None
        encoded: list[NDArray[Any]] = []
        # A few at a time, and long ones in pieces: the library takes some hundred bytes for each token.
        for some in _batches(texts):
            pieces = [_pieces(text) if self._is_local else [text] for text in some]
            encodings = iter(
                self.tokenizer.encode_batch_fast([piece for text in pieces for piece in text], add_special_tokens=False)
            )
            for text in pieces:
                ids = [np.array(next(encodings).ids, dtype=self.rules.dtype) for _ in text]
                encoded.append(np.concatenate(ids)[:end])
        return encoded

    def _sample(self, texts: list[str], hashes: list[tuple[int, int]]) -> tuple[Samples, int]:
        encoded = self.encode(texts)
        kept = [index for index, ids in enumerate(encoded) if len(ids)]
        seqlens = [cut_evenly(len(encoded[index]), self.rules.max_tokens) for index in kept]
        samples = Samples(
            ids=np.concatenate([np.empty(0, dtype=self.rules.dtype), *(encoded[index] for index in kept)]),
            seqlens=np.array([length for pieces in seqlens for length in pieces], dtype=np.int32),
            hashes=np.array([hashes[index] for index in kept], dtype=np.uint64).reshape(-1, 2),
            samples_per_document=np.array([len(pieces) for pieces in seqlens], dtype=np.int32),
        )
        return samples, len(texts) - len(kept)


def cut_evenly(num_tokens: int, max_tokens: int) -> list[int]:
    """Cuts a document into as few pieces as fit, as equal in length as can be: no piece is a mere remainder."""
    pieces = -(-num_tokens // max_tokens)
    return [num_tokens * (piece + 1) // pieces - num_tokens * piece // pieces for piece in range(pieces)]


def initialize_worker(rules: SampleRules) -> None:
    """Makes this process ready for `tokenize_block`."""
    global _block_tokenizer
    _block_tokenizer = BlockTokenizer(rules)


def tokenize_block(block: Block) -> TokenizedBlock:
    """What `BlockTokenizer` makes of a block, by the rules that this process was started with."""
    assert _block_tokenizer is not None
    return _block_tokenizer(block)


_block_tokenizer: BlockTokenizer | None = None


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    first = characters = 0
    for number, text in enumerate(texts):
        characters += len(text)
        if characters >= _MAX_CHARACTERS:
            yield texts[first : number + 1]
            first, characters = number + 1, 0
    if first < len(texts):
        yield texts[first:]


def _pieces(text: str) -> list[str]:
    """A text cut before spaces."""
    pieces: list[str] = []
    first = 0
    while len(text) - first > _MAX_CHARACTERS and (end := text.find(" ", first + _MAX_CHARACTERS)) > 0:
        pieces.append(text[first:end])
        first = end
    return [*pieces, text[first:]]


def _prefix(text: str, characters: int) -> str:
    if len(text) <= characters:
        return text
    end = text.rfind(" ", 0, characters)
    return text if end < 0 else text[:end]


def _is_local(tokenizer: Tokenizer) -> bool:
    """Whether no token depends on what stands beyond a space, as in BERT's own kind of tokenizer."""
    return (
        isinstance(tokenizer.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        and isinstance(tokenizer.normalizer, normalizers.BertNormalizer)
        and not any(" " in token.content for token in tokenizer.get_added_tokens_decoder().values())
    )
