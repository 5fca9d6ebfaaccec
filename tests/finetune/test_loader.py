"""Tests of the example order over epochs."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.finetune.collator import ClassificationCollator, encode
from mosaicbert.finetune.loader import _batch_order, build_classification_loader
from mosaicbert.model.pretrained import load_pretrained_tokenizer
from tests.finetune.encoders import make_examples


@given(
    num_examples=st.integers(1, 50),
    batch_size=st.integers(1, 20),
    num_epochs=st.integers(1, 3),
    seed=st.integers(0, 99) | st.none(),
)
def test_each_epoch_contains_every_example_once(num_examples, batch_size, num_epochs, seed):
    batches = list(_batch_order(num_examples, batch_size, num_epochs, seed))
    order = np.concatenate(batches).reshape(num_epochs, num_examples)
    assert all(sorted(epoch) == list(range(num_examples)) for epoch in order)
    assert len(batches) == num_epochs * -(-num_examples // batch_size)
    if seed is None:
        assert (order == np.arange(num_examples)).all()


def test_the_order_is_reproducible_and_differs_by_seed_and_epoch():
    def order(seed):
        return np.concatenate(list(_batch_order(100, 7, 2, seed))).reshape(2, 100).tolist()

    assert order(1) == order(1)
    assert len({tuple(epoch) for seed in (1, 2) for epoch in order(seed)}) == 4


def test_the_loader_iterates_over_all_epochs(mosaicbert_folder):
    examples = encode(load_pretrained_tokenizer(mosaicbert_folder), make_examples(10), 32)
    loader = build_classification_loader(
        examples, ClassificationCollator(is_unpadded=True, pad_token_id=0), 4, num_epochs=3, seed=1
    )
    assert [len(batch["labels"]) for batch in loader] == [4, 4, 2] * 3
