"""Conversion of text blocks to samples, which runs in worker processes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from mosaicbert.data.prepare.readers import (
    Block,
    FilePosition,
    InvalidDocument,
    decode,
    replace_lone_surrogates,
)
from mosaicbert.data.prepare.sources import InputFile
from mosaicbert.data.store import TRAIN, VALIDATION
from mosaicbert.data.tokenizer import take_normalizer

# A prefix of this many characters per token usually has enough tokens. Otherwise the whole text is tokenized.
_CHARACTERS_PER_TOKEN = 6
_MAX_CHARACTERS = 2**19  # maximum per call of the tokenizer, to limit the memory
Hashes = NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class SampleRules:
    """Rules for the conversion of documents to samples.

    Attributes:
        tokenizer: Tokenizer as JSON.
        max_tokens: Maximum number of tokens of a sample, without [CLS] and [SEP].
        sampling: "truncate" or "chunk", see `DataConfig`.
        min_characters: Minimum length of a text in characters; shorter texts are skipped.
        validation_fraction: Fraction of the texts in the validation split, for input files without a split.
        dtype: Data type of token ids.
    """

    tokenizer: str
    max_tokens: int
    sampling: Literal["truncate", "chunk"]
    min_characters: int
    validation_fraction: float
    dtype: np.dtype[Any]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Samples of some documents in one split.

    Attributes:
        ids: (T,) token ids of all samples, concatenated.
        seqlens: (samples,) int32, number of tokens of each sample.
        hashes: (documents, 2) uint64, 128-bit hash of each text.
        samples_per_document: (documents,) int32.
    """

    ids: NDArray[Any]
    seqlens: NDArray[np.int32]
    hashes: Hashes
    samples_per_document: NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class TokenizedBlock:
    """Samples and counts of a block.

    Attributes:
        input_file: Input file of the block.
        end: Position at which the next block starts.
        fraction: Fraction of the input file read at the end of the block; 0 if unknown.
        corruption: Reason why the input file cannot be read any further, or None.
        samples: Samples by split.
        num_documents: Number of documents in the block.
        text_bytes: Size of their texts in UTF-8, in bytes.
        skipped_documents: Number of skipped documents by reason.
        first_invalid: First document that cannot be read, or None.
    """

    input_file: InputFile
    end: FilePosition
    fraction: float
    corruption: str | None
    samples: dict[str, Samples]
    num_documents: int
    text_bytes: int
    skipped_documents: dict[str, int]
    first_invalid: InvalidDocument | None


def hash_text(text: str) -> tuple[int, int]:
    """Compute the 128-bit XXH3 hash of a text.

    Returns:
        The high 64 bits, which also select the split of the text, and the low 64 bits.
    """
    digest = xxhash.xxh3_128_intdigest(text.encode())
    return digest >> 64, digest & 0xFFFFFFFFFFFFFFFF


def split_of(input_file: InputFile, high_bits: int, validation_fraction: float) -> str:
    """Return the split of a text.

    Args:
        input_file: Input file of the text. Its split, if any, applies to all its texts.
        high_bits: First number of `hash_text`.
        validation_fraction: Fraction of the texts in the validation split, for an input file without a split.
    """
    if input_file.split is not None:
        return input_file.split
    return VALIDATION if high_bits < validation_fraction * 2**64 else TRAIN


class BlockTokenizer:
    """Callable that converts a block to samples.

    Args:
        rules: Rules for the samples.
    """

    def __init__(self, rules: SampleRules) -> None:
        self.rules = rules
        self.tokenizer = Tokenizer.from_str(rules.tokenizer)
        self.tokenizer.encode_special_tokens = True  # the string "[MASK]" in a text is ordinary text
        self._is_local = _is_local(self.tokenizer)
        # Added tokens that are not special may be matched before or after normalization.
        has_only_special_tokens = all(token.special for token in self.tokenizer.get_added_tokens_decoder().values())
        self._normalize = take_normalizer(self.tokenizer) if self._is_local and has_only_special_tokens else str

    def __call__(self, block: Block) -> TokenizedBlock:
        skipped_documents: Counter[str] = Counter()
        texts: dict[str, list[str]] = {TRAIN: [], VALIDATION: []}
        hashes: dict[str, list[tuple[int, int]]] = {TRAIN: [], VALIDATION: []}
        first_invalid = None
        num_documents = text_bytes = 0
        for document in decode(block):
            num_documents += 1
            if isinstance(document, InvalidDocument):
                skipped_documents[document.reason] += 1
                first_invalid = first_invalid or document
                continue
            text = replace_lone_surrogates(document)
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
            samples[split], num_empty = self._sample(texts[split], hashes[split])
            skipped_documents["no tokens"] += num_empty
        return TokenizedBlock(
            input_file=block.input_file,
            end=block.end,
            fraction=block.fraction,
            corruption=block.corruption,
            samples=samples,
            num_documents=num_documents,
            text_bytes=text_bytes,
            skipped_documents={reason: count for reason, count in skipped_documents.items() if count},
            first_invalid=first_invalid,
        )

    def encode(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        """Tokenize texts, without special tokens.

        Args:
            texts: Texts without lone surrogates.

        Returns:
            Token ids of each text; at most `max_tokens` of them in mode "truncate".
        """
        if self.rules.sampling == "chunk" or not self._is_local:
            return self._encode_whole(texts)
        max_tokens = self.rules.max_tokens
        prefixes = [_prefix(text, max_tokens * _CHARACTERS_PER_TOKEN) for text in texts]
        encoded = self._encode_whole(prefixes)
        # A prefix that ends between two words has the same tokens as the start of its text.
        too_short = [
            index
            for index, (text, prefix, ids) in enumerate(zip(texts, prefixes, encoded, strict=True))
            if len(ids) < max_tokens and len(prefix) < len(text)
        ]
        for index, ids in zip(too_short, self._encode_whole([texts[index] for index in too_short]), strict=True):
            encoded[index] = ids
        return encoded

    def _encode_whole(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        end = self.rules.max_tokens if self.rules.sampling == "truncate" else None
        encoded: list[NDArray[Any]] = []
        # Small batches, and long texts in pieces: the library allocates some hundred bytes per token.
        for batch in _batches(texts):
            pieces = [_pieces(text) if self._is_local else [text] for text in batch]
            normalized = [self._normalize(piece) for text in pieces for piece in text]
            encodings = iter(self.tokenizer.encode_batch_fast(normalized, add_special_tokens=False))
            for text in pieces:
                ids = [np.array(next(encodings).ids, dtype=self.rules.dtype) for _ in text]
                encoded.append(np.concatenate(ids)[:end])
        return encoded

    def _sample(self, texts: list[str], hashes: list[tuple[int, int]]) -> tuple[Samples, int]:
        encoded = self.encode(texts)
        indices = [index for index, ids in enumerate(encoded) if len(ids)]
        seqlens = [cut_evenly(len(encoded[index]), self.rules.max_tokens) for index in indices]
        samples = Samples(
            ids=np.concatenate([np.empty(0, dtype=self.rules.dtype), *(encoded[index] for index in indices)]),
            seqlens=np.array([length for pieces in seqlens for length in pieces], dtype=np.int32),
            hashes=np.array([hashes[index] for index in indices], dtype=np.uint64).reshape(-1, 2),
            samples_per_document=np.array([len(pieces) for pieces in seqlens], dtype=np.int32),
        )
        return samples, len(texts) - len(indices)


def cut_evenly(num_tokens: int, max_tokens: int) -> list[int]:
    """Divide a document into the minimum number of chunks, whose lengths differ by at most one token.

    Equal lengths avoid a short last chunk.

    Args:
        num_tokens: Number of tokens of the document.
        max_tokens: Maximum number of tokens of a chunk.

    Returns:
        Number of tokens of each chunk.
    """
    num_chunks = -(-num_tokens // max_tokens)
    return [num_tokens * (chunk + 1) // num_chunks - num_tokens * chunk // num_chunks for chunk in range(num_chunks)]


def initialize_worker(rules: SampleRules) -> None:
    """Create the tokenizer of this process, which `tokenize_block` uses.

    Args:
        rules: Rules for the samples.
    """
    global _block_tokenizer
    _block_tokenizer = BlockTokenizer(rules)


def tokenize_block(block: Block) -> TokenizedBlock:
    """Convert a block to samples with the tokenizer of this process.

    Args:
        block: Block of documents.
    """
    assert _block_tokenizer is not None
    return _block_tokenizer(block)


_block_tokenizer: BlockTokenizer | None = None


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    first = num_characters = 0
    for index, text in enumerate(texts):
        num_characters += len(text)
        if num_characters >= _MAX_CHARACTERS:
            yield texts[first : index + 1]
            first, num_characters = index + 1, 0
    if first < len(texts):
        yield texts[first:]


def _pieces(text: str) -> list[str]:
    """Split a long text before spaces."""
    pieces: list[str] = []
    first = 0
    while len(text) - first > _MAX_CHARACTERS and (end := text.find(" ", first + _MAX_CHARACTERS)) > 0:
        pieces.append(text[first:end])
        first = end
    return [*pieces, text[first:]]


def _prefix(text: str, num_characters: int) -> str:
    if len(text) <= num_characters:
        return text
    end = text.rfind(" ", 0, num_characters)
    return text if end < 0 else text[:end]


def _is_local(tokenizer: Tokenizer) -> bool:
    """Return whether tokens never depend on text across a space, as in BERT's tokenizer."""
    return (
        isinstance(tokenizer.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        and isinstance(tokenizer.normalizer, normalizers.BertNormalizer)
        and not any(" " in token.content for token in tokenizer.get_added_tokens_decoder().values())
    )
