import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mosaicbert.bench.peers import build_bert, build_modernbert, modernbert_config, modernbert_flops
from mosaicbert.config import ModelConfig
from tests.recipes import TINY_MODEL

_SIZES = ModelConfig(**TINY_MODEL)
_NUM_MASKED = 5


def _inputs(seqlen):
    input_ids = torch.arange(1, seqlen + 1)[None]
    labels = torch.full_like(input_ids, -100)
    labels[0, :_NUM_MASKED] = 7
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels}


def test_the_flops_of_modernbert_are_those_that_pytorch_counts():
    model = build_modernbert(_SIZES, sparse_prediction=True).train()
    model.set_attn_implementation("eager")
    seqlen = 24  # within the attention window, so that the eager implementation computes no other pairs
    with FlopCounterMode(display=False) as counter:
        model(**_inputs(seqlen)).loss.backward()
    config = modernbert_config(_SIZES, sparse_prediction=True)
    assert modernbert_flops(config, torch.tensor([seqlen]), _NUM_MASKED) == counter.get_total_flops()


def test_modernbert_needs_fewer_flops_for_long_documents_in_layers_with_a_window():
    config = modernbert_config(_SIZES, sparse_prediction=True)
    one, two = (modernbert_flops(config, torch.tensor([512] * count), _NUM_MASKED) for count in (1, 2))
    joined = modernbert_flops(config, torch.tensor([1024]), _NUM_MASKED)
    assert one < two < joined < 4 * one


@pytest.mark.parametrize("build", [build_bert, build_modernbert])
def test_a_peer_has_the_width_depth_and_vocabulary_of_mosaicbert(build):
    arguments = {"max_seq_len": 1024} if build is build_bert else {"sparse_prediction": False}
    model = build(_SIZES, **arguments)
    assert model.config.hidden_size == _SIZES.hidden_size
    assert model.config.num_hidden_layers == _SIZES.num_hidden_layers
    assert model.config.max_position_embeddings >= 1024
    logits = model(**_inputs(seqlen=9)).logits
    assert logits.shape == (1, 9, _SIZES.vocab_size)
