"""Tests of tokenization and collation."""

import pytest
import torch

from mosaicbert.finetune.collator import ClassificationCollator, encode
from mosaicbert.finetune.tables import Examples
from mosaicbert.model.pretrained import load_pretrained_tokenizer
from tests.finetune.encoders import load_test_classifier


def test_pairs_have_token_types_and_the_longer_text_is_truncated_first(mosaicbert_folder):
    tokenizer = load_pretrained_tokenizer(mosaicbert_folder)
    pair = Examples(texts=(["the value " * 30], ["list"]), labels=None)
    (encoded,) = encode(tokenizer, pair, 20)
    ids, types = encoded.ids["input_ids"], encoded.ids["token_type_ids"]
    assert len(ids) == len(types) == 20
    second = tokenizer("list", add_special_tokens=False)["input_ids"]
    assert ids[-1 - len(second) :] == [*second, tokenizer.sep_token_id]
    assert types == [0] * (19 - len(second)) + [1] * (len(second) + 1)
    assert encoded.label is None


def test_padded_and_unpadded_batches_have_equal_logits(mosaicbert_folder):
    model, tokenizer = load_test_classifier(mosaicbert_folder).eval(), load_pretrained_tokenizer(mosaicbert_folder)
    texts = ["a", "the value of the list", "returns the number of items in it"]
    encoded = encode(tokenizer, Examples(texts=(texts,), labels=[0, 1, 1]), 256)
    collators = [
        ClassificationCollator(is_unpadded=is_unpadded, pad_token_id=tokenizer.pad_token_id)
        for is_unpadded in (True, False)
    ]
    batches = [collator(encoded) for collator in collators]
    assert [batch.pop("labels").tolist() for batch in batches] == [[0, 1, 1]] * 2
    assert batches[0]["input_ids"].ndim == 1
    assert batches[0]["max_seqlen"] == batches[1]["input_ids"].shape[1]
    with torch.no_grad():
        unpadded, padded = (model(**batch).logits for batch in batches)
    assert float((unpadded - padded).abs().max()) < 1e-5


@pytest.mark.parametrize("labels", [[0.5, 2.0], [[1, 0, 1], [0, 0, 1]]])
def test_numbers_and_multi_hot_labels_are_fp32(labels, mosaicbert_folder):
    encoded = encode(load_pretrained_tokenizer(mosaicbert_folder), Examples(texts=(["a", "b"],), labels=labels), 16)
    batch = ClassificationCollator(is_unpadded=True, pad_token_id=0)(encoded)
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == labels
