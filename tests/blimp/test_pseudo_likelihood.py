"""Pseudo-log-likelihoods, compared with one forward pass of the whole model per masked token."""

import pytest
import torch

from mosaicbert.blimp.pseudo_likelihood import mask_tokens, pseudo_log_likelihoods
from tests.blimp.models import make_model, make_tokenizer

_SENTENCES = ["The cat sleeps.", "The cats sleeps now.", "The cat sleepings.", "Cats.", "The cat sleeps now"]
_MASK = 4

both_architectures = pytest.mark.parametrize("architecture", ["mosaicbert", "bert"])


def _brute_force(model, tokenizer, words):
    """Sum the log-probabilities of a sentence given as words of tokens, with a loop over words and tokens."""
    tokens = [token for word in words for token in word]
    total, start = 0.0, 0
    for word in words:
        for index in range(len(word)):
            masked = list(tokens)
            masked[start + index : start + len(word)] = ["[MASK]"] * (len(word) - index)
            ids = tokenizer.convert_tokens_to_ids(["[CLS]", *masked, "[SEP]"])
            logits = model(input_ids=torch.tensor([ids])).logits[0, 1 + start + index].double()
            total += logits.log_softmax(dim=-1)[tokenizer.convert_tokens_to_ids(word[index])].item()
        start += len(word)
    return total


@both_architectures
@torch.no_grad()
def test_the_value_is_that_of_one_forward_pass_per_token(architecture):
    model, tokenizer = make_model(architecture), make_tokenizer()
    expected = [
        _brute_force(model, tokenizer, [["the"], ["cat"], ["sleep", "##s"], ["."]]),
        _brute_force(model, tokenizer, [["the"], ["cats"], ["sleep", "##s"], ["now"], ["."]]),
        _brute_force(model, tokenizer, [["the"], ["cat"], ["sleep", "##ing", "##s"], ["."]]),
        _brute_force(model, tokenizer, [["cats"], ["."]]),
        _brute_force(model, tokenizer, [["the"], ["cat"], ["sleep", "##s"], ["now"]]),
    ]
    assert pseudo_log_likelihoods(model, tokenizer, _SENTENCES, 8192) == pytest.approx(expected, rel=1e-5)


def test_a_token_is_masked_with_the_following_tokens_of_its_word():
    sequences = list(mask_tokens([2, 5, 8, 10, 9, 12, 3], [None, 0, 1, 1, 1, 2, None], _MASK, sentence=7))
    assert [(sequence.ids, sequence.position, sequence.target) for sequence in sequences] == [
        ((2, _MASK, 8, 10, 9, 12, 3), 1, 5),
        ((2, 5, _MASK, _MASK, _MASK, 12, 3), 2, 8),
        ((2, 5, 8, _MASK, _MASK, 12, 3), 3, 10),
        ((2, 5, 8, 10, _MASK, 12, 3), 4, 9),
        ((2, 5, 8, 10, 9, _MASK, 3), 5, 12),
    ]
    assert {sequence.sentence for sequence in sequences} == {7}


@both_architectures
def test_the_value_does_not_depend_on_the_batch_size(architecture):
    model, tokenizer = make_model(architecture), make_tokenizer()
    expected = pseudo_log_likelihoods(model, tokenizer, _SENTENCES, 8192)
    for batch_tokens in (1, 13, 40):
        values = pseudo_log_likelihoods(model, tokenizer, _SENTENCES, batch_tokens)
        assert values == pytest.approx(expected, rel=1e-5)


def test_sentences_with_the_same_tokens_have_exactly_the_same_value():
    model, tokenizer = make_model("mosaicbert"), make_tokenizer()
    sentences = ["The cat sleeps.", "Cats sleep now.", "the CAT sleeps ."]
    first, _, second = pseudo_log_likelihoods(model, tokenizer, sentences, 24)
    assert first == second


def test_the_decoder_of_a_hugging_face_model_computes_only_the_masked_positions():
    model, tokenizer = make_model("bert"), make_tokenizer()
    shapes = []
    model.get_output_embeddings().register_forward_hook(lambda _module, _inputs, output: shapes.append(output.shape))
    pseudo_log_likelihoods(model, tokenizer, ["The cat sleeps."], 8192)
    assert [tuple(shape[:2]) for shape in shapes] == [(5, 1)]
    assert not model.get_output_embeddings()._forward_pre_hooks
