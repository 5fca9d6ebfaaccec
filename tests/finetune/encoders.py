"""Classifiers and examples for the fine-tuning tests."""

from mosaicbert.finetune.metrics import SINGLE_LABEL
from mosaicbert.finetune.model import load_classifier
from mosaicbert.finetune.tables import Examples

_WORDS = ("returns", "raises")


def load_test_classifier(name, num_labels=2, problem_type=SINGLE_LABEL, seed=19):
    return load_classifier(name, num_labels=num_labels, problem_type=problem_type, seed=seed)


def make_examples(num_examples=32):
    texts = [f"{_WORDS[index % 2]} the value of item {index} of the list" for index in range(num_examples)]
    return Examples(texts=(texts,), labels=[index % 2 for index in range(num_examples)])
