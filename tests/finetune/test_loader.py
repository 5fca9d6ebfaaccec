"""Order of the examples over epochs."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.finetune.collator import ClassificationCollator, encode
from mosaicbert.finetune.loader import _batch_order, build_classification_loader
from mosaicbert.finetune.model import load_pretrained_tokenizer
from tests.finetune.encoders import make_examples


@given(
    number=st.integers(1, 50), size=st.integers(1, 20), epochs=st.integers(1, 3), seed=st.integers(0, 99) | st.none()
)
def test_an_epoch_has_every_example_once(number, size, epochs, seed):
    batches = list(_batch_order(number, size, epochs, seed))
    order = np.concatenate(batches).reshape(epochs, number)
    assert all(sorted(epoch) == list(range(number)) for epoch in order)
    assert len(batches) == epochs * -(-number // size)
    if seed is None:
        assert (order == np.arange(number)).all()


def test_orders_differ_by_seed_and_epoch_and_come_again():
    def order(seed):
        return np.concatenate(list(_batch_order(100, 7, 2, seed))).reshape(2, 100).tolist()

    assert order(1) == order(1)
    assert len({tuple(epoch) for seed in (1, 2) for epoch in order(seed)}) == 4


def test_a_loader_has_all_epochs_behind_each_other(mosaicbert_folder):
    examples = encode(load_pretrained_tokenizer(mosaicbert_folder), make_examples(10), 32)
    loader = build_classification_loader(
        examples, ClassificationCollator(is_unpadded=True, pad_token_id=0), 4, epochs=3, seed=1
    )
    assert [len(batch["labels"]) for batch in loader] == [4, 4, 2] * 3
