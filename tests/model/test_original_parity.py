"""Parity with the outputs and losses of the original implementation for its weights, within 1e-4 in fp32."""

import numpy as np
import pytest
import torch

from mosaicbert.model.modeling import (
    MosaicBertForMaskedLM,
    MosaicBertForSequenceClassification,
    MosaicBertModel,
)

TOLERANCE = {"rtol": 0.0, "atol": 1e-4}


@pytest.fixture
def expected(original_mosaicbert, device):
    arrays = np.load(original_mosaicbert / "expected.npz")
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


@pytest.fixture(params=["padded", "unpadded"])
def inputs(request, expected):
    """Arguments of forward, and a function that selects the real tokens of its output, (T, ...)."""
    is_token = expected["attention_mask"].bool()
    names = ("input_ids", "token_type_ids", "labels")
    if request.param == "padded":
        arguments = {name: expected[name] for name in (*names, "attention_mask")}
        return arguments, lambda output: output[is_token]
    arguments = {name: expected[name][is_token] for name in names}
    arguments["cu_seqlens"] = torch.nn.functional.pad(is_token.sum(1).cumsum(0), (1, 0)).int()
    return arguments, lambda output: output


@pytest.fixture(params=["auto", "sdpa", "eager"])
def backend(request):
    return request.param


def test_the_encoder_reproduces_the_original_hidden_states(original_mosaicbert, expected, inputs, backend, device):
    arguments, select_tokens = inputs
    model = MosaicBertModel.from_pretrained(original_mosaicbert / "masked_lm", attn_implementation=backend).to(device)
    with torch.no_grad():
        hidden = model(**{name: value for name, value in arguments.items() if name != "labels"}).last_hidden_state
    torch.testing.assert_close(
        select_tokens(hidden), expected["hidden"][expected["attention_mask"].bool()], **TOLERANCE
    )


def test_the_masked_lm_reproduces_the_original_logits_and_loss(original_mosaicbert, expected, inputs, backend, device):
    arguments, select_tokens = inputs
    folder = original_mosaicbert / "masked_lm"
    model = MosaicBertForMaskedLM.from_pretrained(folder, attn_implementation=backend).to(device)
    with torch.no_grad():
        output = model(**arguments)
    expected_logits = expected["mlm_logits"][expected["attention_mask"].bool()]
    torch.testing.assert_close(select_tokens(output.logits), expected_logits, **TOLERANCE)
    torch.testing.assert_close(output.loss, expected["mlm_loss"], **TOLERANCE)


def test_the_classifier_reproduces_the_original_logits_and_loss(original_mosaicbert, expected, inputs, backend, device):
    arguments, _ = inputs
    folder = original_mosaicbert / "sequence_classification"
    model = MosaicBertForSequenceClassification.from_pretrained(folder, attn_implementation=backend).to(device)
    with torch.no_grad():
        output = model(**(arguments | {"labels": expected["class_labels"]}))
    torch.testing.assert_close(output.logits, expected["class_logits"], **TOLERANCE)
    torch.testing.assert_close(output.loss, expected["class_loss"], **TOLERANCE)
