"""transformers' common model tests for the classes of this package, or for Hugging Face's BERT of the same sizes.

run.py copies this file into the tests of transformers' source distribution.
"""

import copy
import os
import unittest

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from ...test_configuration_common import ConfigTester
from ...test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "type_vocab_size": 16,
    "hidden_dropout_prob": 0.1,
    "initializer_range": 0.02,
}
PREFIX = os.environ["COMMON_TESTS_PREFIX"]  # "MosaicBert" or "Bert"
HEADS = (
    "Model",
    "ForMaskedLM",
    "ForMultipleChoice",
    "ForQuestionAnswering",
    "ForSequenceClassification",
    "ForTokenClassification",
)

if PREFIX == "MosaicBert":
    import mosaicbert as library

    MODEL_MAPPING_NAMES["mosaicbert"] = "MosaicBertModel"  # by which the tests recognize a model without a loss
else:
    library = transformers
CLASSES = {head: getattr(library, f"{PREFIX}{head}") for head in HEADS}
CONFIG_CLASS = getattr(library, f"{PREFIX}Config")


class Tester:
    """Small configurations and inputs, with the interface that ModelTesterMixin requires."""

    batch_size, seq_length, num_labels, num_choices = 5, 7, 3, 4
    hidden_size, num_hidden_layers, num_attention_heads = (
        SIZES[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")
    )
    is_training = True

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return CONFIG_CLASS(**SIZES)

    def prepare_config_and_inputs_for_common(self):
        shape = [self.batch_size, self.seq_length]
        inputs = {
            "input_ids": ids_tensor(shape, SIZES["vocab_size"]),
            "token_type_ids": ids_tensor(shape, SIZES["type_vocab_size"]),
            "attention_mask": random_attention_mask(shape),
        }
        return self.get_config(), inputs


class CommonTests(ModelTesterMixin, unittest.TestCase):
    all_model_classes = tuple(CLASSES.values())

    def setUp(self):
        self.model_tester = Tester(self)
        self.config_tester = ConfigTester(self, config_class=CONFIG_CLASS, hidden_size=32, num_attention_heads=4)

    def test_config(self):
        self.config_tester.run_common_tests()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        # The mixin recognizes classes by the names of transformers' own models.
        inputs = copy.deepcopy(inputs_dict)
        head = model_class.__name__.removeprefix(PREFIX)
        tester = self.model_tester
        if head == "ForMultipleChoice":
            inputs = {
                name: tensor.unsqueeze(1).expand(-1, tester.num_choices, -1).contiguous()
                if isinstance(tensor, torch.Tensor) and tensor.ndim > 1
                else tensor
                for name, tensor in inputs.items()
            }
        if not return_labels:
            return inputs
        row = torch.zeros(tester.batch_size, dtype=torch.int64)
        if head in ("ForMultipleChoice", "ForSequenceClassification"):
            inputs["labels"] = row
        elif head == "ForQuestionAnswering":
            inputs |= {"start_positions": row, "end_positions": row}
        elif head in ("ForTokenClassification", "ForMaskedLM"):
            inputs["labels"] = torch.zeros(tester.batch_size, tester.seq_length, dtype=torch.int64)
        return inputs
