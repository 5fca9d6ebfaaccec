"""Small masked language models with a tokenizer of few words."""

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from mosaicbert.model.configuration import MosaicBertConfig
from mosaicbert.model.modeling import MosaicBertForMaskedLM

_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "cats", "sleep", "##s", "##ing", "now", "."]
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Create a tokenizer in which "sleeps" has two tokens and "sleepings" three."""
    vocabulary = {word: index for index, word in enumerate(_WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **special)


def make_model(architecture: str, seed: int = 0):
    """Create a model with large random weights, whose probabilities differ clearly."""
    torch.manual_seed(seed)
    if architecture == "bert":
        config = BertConfig(vocab_size=len(_WORDS), max_position_embeddings=32, initializer_range=0.5, **_SIZES)
        return BertForMaskedLM(config).eval()
    config = MosaicBertConfig(vocab_size=len(_WORDS), initializer_range=0.5, **_SIZES)
    return MosaicBertForMaskedLM(config).eval()


def save_model(folder, architecture: str = "mosaicbert", seed: int = 0) -> str:
    """Save a model with its tokenizer as a Hugging Face folder."""
    make_model(architecture, seed).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)
