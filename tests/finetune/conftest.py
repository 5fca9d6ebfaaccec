import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from mosaicbert.model.pretrained import load_pretrained_tokenizer


@pytest.fixture(scope="module")
def mosaicbert_folder(finished):
    return str(finished[1].hugging_face)


@pytest.fixture(scope="module")
def bert_folder(mosaicbert_folder, tmp_path_factory):
    """A Hugging Face BERT with the tokenizer of the MosaicBERT."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    BertForMaskedLM(BertConfig(vocab_size=512, max_position_embeddings=48, **sizes)).save_pretrained(folder)
    load_pretrained_tokenizer(mosaicbert_folder).save_pretrained(folder)
    return str(folder)
