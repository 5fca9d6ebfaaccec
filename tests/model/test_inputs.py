"""Inputs and outputs of the Hugging Face interface, for all model classes."""

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from mosaicbert.model.configuration import MosaicBertConfig
from mosaicbert.model.modeling import (
    MosaicBertForMaskedLM,
    MosaicBertForMultipleChoice,
    MosaicBertForQuestionAnswering,
    MosaicBertForSequenceClassification,
    MosaicBertForTokenClassification,
    MosaicBertModel,
)
from mosaicbert.ops import attention
from mosaicbert.ops.attention import choose_attention

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "hidden_dropout_prob": 0.0,
    "initializer_range": 0.2,  # as large as trained weights, so that attention is not nearly uniform
}
TOKEN_CLASSES = [MosaicBertModel, MosaicBertForMaskedLM, MosaicBertForTokenClassification]
CLASSES = [*TOKEN_CLASSES, MosaicBertForSequenceClassification, MosaicBertForQuestionAnswering]
ids_of_class = {"ids": lambda model_class: model_class.__name__}
all_classes = pytest.mark.parametrize("model_class", CLASSES, **ids_of_class)


def make_model(model_class, **fields):
    torch.manual_seed(5)
    return model_class(MosaicBertConfig(**(SIZES | fields))).eval()


def make_inputs(seqlens=(5, 9, 1, 7), left=False):
    generator = torch.Generator().manual_seed(3)
    length = max(seqlens)
    mask = torch.arange(length) < torch.tensor(seqlens)[:, None]
    mask = mask.flip(1) if left else mask
    return {
        "input_ids": torch.randint(5, 64, mask.shape, generator=generator),
        "attention_mask": mask.long(),
        "token_type_ids": torch.randint(2, mask.shape, generator=generator),
    }


def first_output(output):
    return output[0] if isinstance(output, tuple) else next(iter(output.values()))


@all_classes
def test_arguments_that_are_none_have_no_effect(model_class):
    model, inputs = make_model(model_class), make_inputs()
    names = ("position_ids", "head_mask", "inputs_embeds", "output_attentions", "output_hidden_states", "return_dict")
    assert torch.equal(first_output(model(**inputs, **dict.fromkeys(names))), first_output(model(**inputs)))


@all_classes
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_word_embeddings_replace_token_ids(model_class, left):
    model, inputs = make_model(model_class), make_inputs(left=left)
    expected = first_output(model(**inputs))
    words = model.get_input_embeddings()(inputs.pop("input_ids"))
    assert torch.equal(first_output(model(inputs_embeds=words, **inputs)), expected)


def test_word_embeddings_of_unpadded_documents_replace_token_ids():
    model = make_model(MosaicBertForMaskedLM)
    ids, cu_seqlens = torch.arange(5, 20), torch.tensor([0, 4, 15], dtype=torch.int32)
    words = model.get_input_embeddings()(ids)
    assert torch.equal(
        model(inputs_embeds=words, cu_seqlens=cu_seqlens).logits, model(ids, cu_seqlens=cu_seqlens).logits
    )


def test_gradients_reach_the_word_embeddings_of_the_caller():
    model, inputs = make_model(MosaicBertForSequenceClassification), make_inputs()
    words = model.get_input_embeddings()(inputs.pop("input_ids")).detach().requires_grad_()
    model(inputs_embeds=words, **inputs).logits.sum().backward()
    assert torch.equal(words.grad.abs().sum(-1) > 0, inputs["attention_mask"].bool())


@all_classes
@pytest.mark.parametrize("names", [(), ("input_ids", "inputs_embeds")], ids=["none", "both"])
def test_exactly_one_of_token_ids_and_embeddings_is_required(model_class, names):
    inputs = {"input_ids": torch.ones(1, 3, dtype=torch.int64), "inputs_embeds": torch.ones(1, 3, 32)}
    with pytest.raises(
        ValueError, match=r"Exactly one of `input_ids` and `inputs_embeds` must be given, got (none|both)"
    ):
        make_model(model_class)(**{name: inputs[name] for name in names})


@all_classes
def test_a_head_mask_is_an_error(model_class):
    with pytest.raises(ValueError, match="`head_mask` must be None, got a tensor"):
        make_model(model_class)(**make_inputs(), head_mask=torch.ones(2, 4))


@all_classes
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("kind", ["shared", "rows", "real-tokens"])
def test_positions_of_single_documents_have_no_effect(model_class, left, kind):
    model, inputs = make_model(model_class), make_inputs(left=left)
    mask = inputs["attention_mask"]
    positions = {
        "shared": torch.arange(mask.shape[1])[None],
        "rows": torch.arange(mask.shape[1]).expand(mask.shape),
        "real-tokens": (mask.cumsum(1) - 1).clamp_min(0),
    }[kind]
    assert torch.equal(first_output(model(**inputs, position_ids=positions)), first_output(model(**inputs)))


@pytest.mark.parametrize("model_class", TOKEN_CLASSES, **ids_of_class)
def test_positions_that_restart_separate_documents(model_class):
    # The batches of DataCollatorWithFlattening.
    model, seqlens = make_model(model_class), (4, 1, 6)
    ids = torch.arange(5, 16)[None]
    positions = torch.cat([torch.arange(length) for length in seqlens])[None]
    packed = first_output(model(ids, position_ids=positions))[0]
    cu_seqlens = torch.tensor([0, 4, 5, 11], dtype=torch.int32)
    assert torch.equal(packed, first_output(model(ids[0], cu_seqlens=cu_seqlens)))
    assert not torch.allclose(packed, first_output(model(ids))[0])


@pytest.mark.parametrize("positions", [[0, 2, 3, 4], [0, 1, 1, 2], [3, 2, 1, 0]])
def test_positions_with_other_distances_are_an_error(positions):
    with pytest.raises(ValueError, match="`position_ids` must count the tokens of each document from 0"):
        make_model(MosaicBertModel)(torch.ones(1, 4, dtype=torch.int64), position_ids=torch.tensor([positions]))


@all_classes
@pytest.mark.parametrize("requested_by", ["argument", "configuration"])
def test_attention_weights_are_those_of_the_formula(model_class, requested_by):
    model = make_model(model_class, output_attentions=requested_by == "configuration")
    inputs = make_inputs()
    output = model(
        **inputs, output_hidden_states=True, **{"output_attentions": True} if requested_by == "argument" else {}
    )
    assert [tuple(weights.shape) for weights in output.attentions] == [(4, 4, 9, 9)] * 2
    layers = model.layers if model_class is MosaicBertModel else model.model.layers
    mask = inputs["attention_mask"].bool()
    for layer, hidden, weights in zip(layers, output.hidden_states, output.attentions, strict=False):
        query, key, _ = layer.attention.qkv(hidden).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        distance = (torch.arange(9)[:, None] - torch.arange(9)).abs()
        slopes = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8])[:, None, None]
        scores = query @ key.mT / 8**0.5 - slopes * distance
        expected = scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)
        rows = mask[:, None].expand(4, 4, 9)
        torch.testing.assert_close(weights[rows], expected[rows])


def test_attention_weights_are_returned_if_hooks_copy_the_inputs_of_layers():
    # As the hooks of accelerate and FSDP2 do when they move inputs to a device.
    model, inputs = make_model(MosaicBertModel), make_inputs()
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _module, arguments: tree_map(lambda leaf: leaf, arguments))
    assert len(model(**inputs, output_attentions=True).attentions) == 2


def test_a_configuration_that_requests_attention_weights_can_be_saved(tmp_path):
    model = make_model(MosaicBertModel, output_attentions=True)
    model.save_pretrained(tmp_path)
    assert len(MosaicBertModel.from_pretrained(tmp_path)(**make_inputs()).attentions) == 2


@all_classes
def test_returning_attention_weights_does_not_change_the_output(model_class):
    model, inputs = make_model(model_class), make_inputs(seqlens=(5, 9, 0, 7))
    with_weights = first_output(model(**inputs, output_attentions=True))
    torch.testing.assert_close(with_weights, first_output(model(**inputs)))


@pytest.mark.parametrize("shape", [(2, 9), (4, 8), (1, 10)])
def test_positions_of_another_shape_are_an_error(shape):
    with pytest.raises(ValueError, match=r"`position_ids` must have the shape \([14], 9\), one entry per token"):
        make_model(MosaicBertModel)(**make_inputs(), position_ids=torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("argument", [{"output_attentions": True}, {"position_ids": torch.arange(15)}])
def test_unpadded_input_with_an_argument_for_padded_input_is_an_error(argument):
    (name,) = argument
    cu_seqlens = torch.tensor([0, 4, 15], dtype=torch.int32)
    with pytest.raises(ValueError, match=f"`{name}` is not supported with `cu_seqlens`"):
        make_model(MosaicBertModel)(torch.arange(15), cu_seqlens=cu_seqlens, **argument)


def loss_inputs(model_class):
    inputs = make_inputs()
    labels = torch.randint(2, inputs["input_ids"].shape, generator=torch.Generator().manual_seed(7))
    if model_class is MosaicBertForQuestionAnswering:
        return inputs | {"start_positions": torch.tensor([1, 2, 0, 3]), "end_positions": torch.tensor([2, 8, 0, 6])}
    if model_class is MosaicBertForSequenceClassification:
        return inputs | {"labels": labels[:, 0]}
    return inputs | {"labels": labels.masked_fill(torch.rand(labels.shape) < 0.3, -100)}


@pytest.mark.parametrize("model_class", CLASSES[1:], **ids_of_class)
@pytest.mark.parametrize("use_reentrant", [False, True], ids=["saved-tensors", "reentrant"])
def test_gradient_checkpointing_gives_identical_gradients(model_class, use_reentrant):
    plain, inputs = make_model(model_class, hidden_dropout_prob=0.1), loss_inputs(model_class)
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    choose_attention.cache_clear()  # the backend is chosen outside of the checkpointed layers
    for model in (checkpointed, plain):
        torch.manual_seed(1)
        model.train()(**inputs).loss.backward()
    for (name, expected), parameter in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(parameter.grad, expected.grad), name


def test_gradient_checkpointing_does_not_store_the_states_of_a_layer():
    model, inputs = make_model(MosaicBertForMaskedLM).train(), loss_inputs(MosaicBertForMaskedLM)

    def num_saved_values():
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()) or tensor, lambda x: x
        ):
            model(**inputs)
        return sum(sizes)

    plain = num_saved_values()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert num_saved_values() < 0.5 * plain


# Traced and transformed models


@all_classes
@pytest.mark.parametrize("mask", ["right", "left", "holes", "packed"])
def test_the_padded_computation_has_the_result_of_the_unpadded_one(model_class, mask, monkeypatch):
    model, inputs = make_model(model_class).double(), make_inputs(seqlens=(5, 9, 0, 7), left=mask == "left")
    if mask == "holes":
        inputs["attention_mask"][1, 3:5] = 0
        inputs["attention_mask"][3, ::2] = 0
    if mask == "packed":
        inputs["position_ids"] = torch.tensor([0, 1, 2, 0, 1, 0, 1, 2, 3])[None]
    expected = model(**inputs, output_hidden_states=True)
    monkeypatch.setattr("mosaicbert.model.encoder.is_traced", lambda *_: True)
    actual = model(**inputs, output_hidden_states=True)
    for name, values in expected.items():
        torch.testing.assert_close(actual[name], values, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("model_class", CLASSES[1:], **ids_of_class)
def test_the_padded_computation_has_the_loss_and_gradients_of_the_unpadded_one(model_class, monkeypatch):
    model, inputs = make_model(model_class).double().train(), loss_inputs(model_class)

    def loss_and_gradients():
        model.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        return [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]

    expected = loss_and_gradients()
    monkeypatch.setattr("mosaicbert.model.encoder.is_traced", lambda *_: True)
    torch.testing.assert_close(loss_and_gradients(), expected, rtol=1e-10, atol=1e-10)


@all_classes
def test_a_model_is_traced_for_other_batch_sizes_and_lengths(model_class):
    model = make_model(model_class, return_dict=False)
    inputs, other = make_inputs(), make_inputs(seqlens=(3, 17))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, tuple(inputs.values()))
    for batch in (inputs, other):
        torch.testing.assert_close(traced(*batch.values())[0], model(**batch)[0])


@pytest.mark.parametrize(
    "model_class",
    [MosaicBertForQuestionAnswering, *(pytest.param(each, marks=pytest.mark.slow) for each in CLASSES[:-1])],
    **ids_of_class,
)
def test_a_model_is_exported_for_other_batch_sizes_and_lengths(model_class):
    model, inputs = make_model(model_class), make_inputs()
    batch, length = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=2, max=512)
    exported = torch.export.export(model, (), inputs, dynamic_shapes={name: {0: batch, 1: length} for name in inputs})
    for batch_inputs in (inputs, make_inputs(seqlens=(3, 17)), make_inputs(seqlens=(6,))):
        actual = first_output(exported.module()(**batch_inputs))
        torch.testing.assert_close(actual, first_output(model(**batch_inputs)))


@pytest.mark.parametrize("dynamic", [None, False, True])
def test_a_compiled_model_is_one_graph(dynamic):
    torch.compiler.reset()
    model = make_model(MosaicBertForSequenceClassification)
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="eager")
    for inputs in (make_inputs(), make_inputs(seqlens=(3, 17))):
        torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)
        torch.testing.assert_close(compiled(**inputs, labels=inputs["input_ids"][:, 0] % 2).loss.dim(), 0)


def test_fake_tensors_give_the_shapes_of_the_outputs():
    choose_attention.cache_clear()
    model, inputs = make_model(MosaicBertForMaskedLM), make_inputs()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        output = model(**{name: mode.from_tensor(tensor) for name, tensor in inputs.items()})
        assert output.logits.shape == (4, 9, 64)
    assert model(**inputs).logits.isfinite().all()


def test_tensors_without_values_give_the_shapes_of_the_outputs():
    choose_attention.cache_clear()
    with torch.device("meta"):
        model = make_model(MosaicBertForMaskedLM)
        assert model(torch.ones(2, 5, dtype=torch.int64)).logits.shape == (2, 5, 64)


@pytest.mark.parametrize("mode", [lambda: torch.device("meta"), torch.inference_mode, torch.no_grad, FakeTensorMode])
def test_the_mode_of_the_first_call_does_not_change_the_choice_of_the_backend(mode):
    expected = choose_attention("auto", "cpu", torch.float32, 8)
    choose_attention.cache_clear()
    with mode():
        assert choose_attention("auto", "cpu", torch.float32, 8) == expected


def test_a_default_device_without_values_does_not_change_the_result():
    model, inputs = make_model(MosaicBertForMaskedLM), make_inputs()
    expected = model(**inputs).logits
    choose_attention.cache_clear()

    def logits():
        torch.set_default_device("meta")
        return model(**inputs).logits

    with ThreadPoolExecutor(1) as pool:  # the default device is that of a thread
        assert torch.equal(pool.submit(logits).result(), expected)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["cuda", "cpu", "cublas"],
)
def test_a_failure_for_lack_of_memory_is_not_remembered(error, monkeypatch):
    def without_memory(*_):
        raise error

    choose_attention.cache_clear()
    with monkeypatch.context() as patched:
        patched.setitem(attention._BACKENDS, "sdpa", without_memory)
        with pytest.raises(RuntimeError, match=r"memory|ALLOC"):
            choose_attention("sdpa", "cpu", torch.float32, 8)
    assert choose_attention("sdpa", "cpu", torch.float32, 8).name == "sdpa"


def test_models_with_stacked_weights_are_vectorized():
    models, inputs = [make_model(MosaicBertForMaskedLM).double() for _ in range(3)], make_inputs()
    for number, model in enumerate(models):
        model.model.embeddings.word_embeddings.weight.data *= 1 + number
    weights, buffers = torch.func.stack_module_state(models)
    skeleton = copy.deepcopy(models[0])

    def logits(weights, buffers):
        return torch.func.functional_call(skeleton, (weights, buffers), kwargs=inputs).logits

    with torch.no_grad():
        actual = torch.vmap(logits)(weights, buffers)
        torch.testing.assert_close(actual, torch.stack([model(**inputs).logits for model in models]))


# Heads


def test_the_pooler_is_the_hyperbolic_tangent_of_the_first_token():
    torch.manual_seed(5)
    model = MosaicBertModel(MosaicBertConfig(**SIZES), add_pooling_layer=True).eval()
    output = model(**make_inputs())
    expected = torch.tanh(F.linear(output.last_hidden_state[:, 0], model.pooler.dense.weight, model.pooler.dense.bias))
    torch.testing.assert_close(output.pooler_output, expected)
    assert make_model(MosaicBertModel)(**make_inputs()).pooler_output is None


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_the_first_real_token_is_classified(left):
    model, inputs = make_model(MosaicBertForSequenceClassification), make_inputs(left=left)
    states = model.model(**inputs).last_hidden_state
    first = states[torch.arange(4), inputs["attention_mask"].argmax(1)]
    torch.testing.assert_close(model(**inputs).logits, model.classifier(first))


def test_the_token_classification_loss_is_the_mean_cross_entropy_of_the_labeled_tokens():
    model = make_model(MosaicBertForTokenClassification, num_labels=3)
    inputs = make_inputs()
    labels = torch.randint(3, (4, 9), generator=torch.Generator().manual_seed(1))
    labels[:, ::3] = -100
    output = model(**inputs, labels=labels)
    assert output.logits.shape == (4, 9, 3)
    is_labeled = (labels != -100) & inputs["attention_mask"].bool()
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits[is_labeled], labels[is_labeled]))


def test_the_answer_loss_is_the_mean_cross_entropy_of_start_and_end():
    model, inputs = make_model(MosaicBertForQuestionAnswering), make_inputs()
    starts, ends = torch.tensor([1, 8, 0, 99]), torch.tensor([4, 8, 0, 6])  # 99 is outside and ignored
    output = model(**inputs, start_positions=starts, end_positions=ends)
    expected = F.cross_entropy(output.start_logits[:3], starts[:3]) + F.cross_entropy(output.end_logits, ends)
    torch.testing.assert_close(output.loss, expected / 2)
    padding = ~inputs["attention_mask"].bool()
    assert (output.start_logits[padding] == torch.finfo(torch.float32).min).all()


def test_each_choice_is_scored_like_a_single_sequence():
    model = make_model(MosaicBertForMultipleChoice)
    inputs = make_inputs()
    choices = {name: tensor.unflatten(0, (2, 2)) for name, tensor in inputs.items()}
    labels = torch.tensor([1, 0])
    output = model(**choices, labels=labels)
    single = model(**{name: tensor[:, None] for name, tensor in inputs.items()}).logits
    torch.testing.assert_close(output.logits, single.view(2, 2))
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels))
    words = model.get_input_embeddings()(choices.pop("input_ids"))
    assert torch.equal(model(inputs_embeds=words, **choices).logits, output.logits)


def test_logits_have_the_shape_of_the_input_in_training_mode():
    model, inputs = make_model(MosaicBertForMaskedLM), loss_inputs(MosaicBertForMaskedLM)
    in_training, in_evaluation = model.train()(**inputs), model.eval()(**inputs)
    assert torch.equal(in_training.logits, in_evaluation.logits)
    assert in_training.logits.shape == (4, 9, 64)


def test_embedding_noise_of_the_trainer_has_the_shape_of_a_padded_batch():
    # Hugging Face's Trainer adds the noise (NEFTune) in a hook of the word embeddings.
    model, shapes = make_model(MosaicBertForMaskedLM), []
    model.get_input_embeddings().register_forward_hook(lambda _module, _inputs, output: shapes.append(output.shape))
    model(**make_inputs())
    assert shapes == [(4, 9, 32)]
