"""Adapters of PEFT: training, and loading on another copy of the encoder."""

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from mosaicbert import MosaicBertConfig, MosaicBertForMaskedLM
from tests.model.test_inputs import SIZES, make_inputs

AUTO_CLASSES = {
    "FEATURE_EXTRACTION": AutoModel,
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
}
LAYERS = {"target_modules": ["qkv", "down"]}
ADAPTERS = {
    "lora": lambda task: LoraConfig(task_type=task, **LAYERS),
    "dora": lambda task: LoraConfig(task_type=task, use_dora=True, **LAYERS),
    "ia3": lambda task: IA3Config(task_type=task, feedforward_modules=["down"], **LAYERS),
    "prompt": lambda task: PromptTuningConfig(task_type=task, num_virtual_tokens=3),
    "p-tuning": lambda task: PromptEncoderConfig(task_type=task, num_virtual_tokens=3, encoder_hidden_size=8),
    "prefix": lambda task: PrefixTuningConfig(task_type=task, num_virtual_tokens=3),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder")
    MosaicBertForMaskedLM(MosaicBertConfig(**SIZES)).save_pretrained(path)
    return path


def load(task, folder, seed):
    torch.manual_seed(seed)  # of the new head, which the saved adapter replaces
    return AUTO_CLASSES[task].from_pretrained(folder)


def first_output(output):
    return next(value for name, value in output.items() if name != "loss")


def loss_of(task, output):
    return output.last_hidden_state[..., 0].mean() if task == "FEATURE_EXTRACTION" else output.loss


def labels_of(task):
    if task == "QUESTION_ANS":
        return {"start_positions": torch.tensor([0, 1, 0, 1]), "end_positions": torch.tensor([1, 2, 0, 3])}
    labels = {"SEQ_CLS": torch.tensor([0, 1, 0, 1]), "TOKEN_CLS": make_inputs()["input_ids"] % 2}
    return {"labels": labels[task]} if task in labels else {}


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("task", AUTO_CLASSES)
def test_a_trained_adapter_is_reproduced_on_another_copy_of_the_encoder(task, adapter, folder, tmp_path):
    if task == "TOKEN_CLS" and adapter in ("prompt", "p-tuning"):
        pytest.skip("PEFT does not add labels for the virtual tokens, so no encoder can compute the loss")
    inputs = make_inputs()
    del inputs["token_type_ids"]  # PEFT does not extend them by virtual tokens
    model = get_peft_model(load(task, folder, seed=1), ADAPTERS[adapter](task)).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in trained]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    for _ in range(2):
        loss_of(task, model(**inputs, **labels_of(task))).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert any(not torch.equal(*pair) for pair in zip(before, trained, strict=True))
    model.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(load(task, folder, seed=2), tmp_path).eval()
    with torch.no_grad():
        expected, actual = (first_output(each(**inputs)) for each in (model.eval(), reloaded))
    assert torch.equal(actual, expected)


def test_a_prefix_has_no_position(folder):
    # With keys of zero and P of them, every token has P additional scores of 0.
    model = AutoModel.from_pretrained(folder).double()
    inputs, num_prefix = make_inputs(), 3
    keys = torch.zeros(4, 4, num_prefix, 8, dtype=torch.float64)
    mask = torch.cat([torch.ones(4, num_prefix, dtype=torch.int64), inputs["attention_mask"]], dim=1)
    prefixes = [(keys, keys)] * 2
    output = model(**(inputs | {"attention_mask": mask}), past_key_values=prefixes, output_attentions=True)
    plain = model(**inputs, output_attentions=True)
    weights, expected = output.attentions[0], plain.attentions[0]
    assert weights.shape == (4, 4, 9, 9 + num_prefix)
    # The weights of the tokens keep their ratios, and those of the prefix are equal.
    total = weights[..., num_prefix:].sum(-1, keepdim=True)
    torch.testing.assert_close(weights[..., num_prefix:] / total, expected)
    torch.testing.assert_close(weights[..., :1].expand(-1, -1, -1, num_prefix), weights[..., :num_prefix])


def test_a_prefix_of_another_number_of_layers_is_an_error(folder):
    keys = torch.zeros(4, 4, 3, 8)
    with pytest.raises(ValueError, match="`past_key_values` must have the keys and values of 2 layers, got 1"):
        AutoModel.from_pretrained(folder)(make_inputs()["input_ids"], past_key_values=[(keys, keys)])
