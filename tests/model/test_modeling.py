import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from mosaicbert.batch import MicroBatch
from mosaicbert.config import ConfigError
from mosaicbert.data.prepare.pipeline import prepare
from mosaicbert.model.configuration import MosaicBertConfig
from mosaicbert.model.modeling import (
    MosaicBertForMaskedLM,
    MosaicBertForSequenceClassification,
    MosaicBertModel,
)
from mosaicbert.train.compile import compile_model
from tests.accuracy import assert_as_accurate
from tests.data.loaders import train_loader_of
from tests.recipes import tiny_recipe

SEQLENS = [5, 11, 1, 8]
SHAPE = {
    "vocab_size": 128,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
    "initializer_range": 0.2,  # as large as trained weights, so that attention is not nearly uniform
}


def make_model(model_class, device, **fields):
    torch.manual_seed(11)
    return model_class(MosaicBertConfig(**(SHAPE | fields))).to(device).eval()


def make_inputs(device, padding=0):
    """Create right-padded documents with some labeled tokens and arbitrary values at padding."""
    generator = torch.Generator().manual_seed(13)
    num_tokens = sum(SEQLENS)
    length = max(SEQLENS) + padding
    mask = torch.arange(length) < torch.tensor(SEQLENS)[:, None]
    inputs = {"attention_mask": mask.long()}
    for name, max_value, padding_value in (("input_ids", 128, 99), ("token_type_ids", 2, 1), ("labels", 128, -100)):
        tokens = torch.randint(max_value, (num_tokens,), generator=generator)
        if name == "labels":
            tokens[torch.rand(num_tokens, generator=generator) > 0.4] = -100
        inputs[name] = torch.full(mask.shape, padding_value + padding if name == "input_ids" else padding_value)
        inputs[name][mask] = tokens
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def unpad_inputs(inputs):
    real = inputs["attention_mask"].bool()
    unpadded = {name: tensor[real] for name, tensor in inputs.items() if name != "attention_mask"}
    return unpadded | {"cu_seqlens": F.pad(real.sum(1).cumsum(0), (1, 0)).int()}


def make_batch(inputs):
    unpadded = unpad_inputs(inputs)
    masked = (unpadded["labels"] != -100).nonzero(as_tuple=True)[0]
    return MicroBatch(
        input_ids=unpadded["input_ids"],
        cu_seqlens=unpadded["cu_seqlens"],
        max_seqlen=max(SEQLENS),
        masked_indices=masked,
        labels=unpadded["labels"][masked],
        num_tokens=len(unpadded["input_ids"]),
        num_sequences=len(SEQLENS),
        num_masked=len(masked),
    )


def with_padding(batch):
    """Append padding to a micro-batch: documents of padding tokens, empty documents and ignored labels."""
    num_padding, num_tokens, num_padded_labels = [11, 11, 4], batch.num_tokens, 5
    ends = torch.tensor([*num_padding, 0, 0, 0]).cumsum(0).to(batch.cu_seqlens) + num_tokens
    return replace(
        batch,
        input_ids=F.pad(batch.input_ids, (0, sum(num_padding)), value=0),
        cu_seqlens=torch.cat([batch.cu_seqlens, ends.int()]),
        masked_indices=F.pad(batch.masked_indices, (0, num_padded_labels), value=0),
        labels=F.pad(batch.labels, (0, num_padded_labels), value=-100),
    )


def split_documents(batch):
    """Yield each document as a separate micro-batch."""
    for first, end in zip(batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist(), strict=True):
        in_document = (batch.masked_indices >= first) & (batch.masked_indices < end)
        yield MicroBatch(
            input_ids=batch.input_ids[first:end],
            cu_seqlens=torch.tensor([0, end - first], dtype=torch.int32, device=batch.input_ids.device),
            max_seqlen=end - first,
            masked_indices=batch.masked_indices[in_document] - first,
            labels=batch.labels[in_document],
            num_tokens=end - first,
            num_sequences=1,
            num_masked=int(in_document.sum()),
        )


def summed_loss(model, batch):
    return model.masked_lm_loss(batch)[0]


def logits_and_gradients(model, batch):
    """Compute the logits at the real masked tokens and all gradients of the summed loss."""
    actual = gradients(model, summed_loss(model, batch))
    return {"logits": model.predict(batch)[: batch.num_masked].detach()} | actual


def max_relative_error(actual, expected):
    """Return the largest error of all tensors, each relative to the largest value of the tensor."""
    errors = {
        name: (actual[name].double() - values).abs().max() / values.abs().max() for name, values in expected.items()
    }
    return float(max(errors.values()))


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.fixture
def masked_lm(device):
    return make_model(MosaicBertForMaskedLM, device)


@pytest.fixture
def inputs(device):
    return make_inputs(device)


def test_padding_does_not_change_the_output_of_real_tokens(masked_lm, inputs, device):
    padded_inputs = make_inputs(device, padding=20)
    logits = masked_lm(**inputs).logits[inputs["attention_mask"].bool()]
    assert torch.equal(masked_lm(**padded_inputs).logits[padded_inputs["attention_mask"].bool()], logits)


def test_padding_does_not_change_gradients(masked_lm, inputs, device):
    expected_gradients = gradients(masked_lm, masked_lm(**inputs).loss)
    padded_gradients = gradients(masked_lm, masked_lm(**make_inputs(device, padding=20)).loss)
    for name, gradient in expected_gradients.items():
        assert torch.equal(padded_gradients[name], gradient), name


def test_left_and_right_padding_give_equal_outputs(masked_lm, inputs):
    num_padding = (inputs["attention_mask"] == 0).sum(1).tolist()
    left = {
        name: torch.stack([row.roll(shift) for row, shift in zip(tensor, num_padding, strict=True)])
        for name, tensor in inputs.items()
    }
    logits = masked_lm(**inputs).logits[inputs["attention_mask"].bool()]
    assert torch.equal(masked_lm(**left).logits[left["attention_mask"].bool()], logits)


def test_output_at_padding_is_zero(masked_lm, inputs):
    assert not masked_lm(**inputs).logits[~inputs["attention_mask"].bool()].any()


@pytest.mark.parametrize("max_seqlen", [None, max(SEQLENS)], ids=["computed", "given"])
def test_padded_and_unpadded_input_give_equal_outputs(masked_lm, inputs, max_seqlen):
    padded = masked_lm(**inputs)
    unpadded = masked_lm(**unpad_inputs(inputs), max_seqlen=max_seqlen)
    assert torch.equal(unpadded.logits, padded.logits[inputs["attention_mask"].bool()])
    assert torch.equal(unpadded.loss, padded.loss)


def test_documents_do_not_attend_to_each_other(masked_lm, inputs):
    before = masked_lm(**inputs).logits
    inputs["input_ids"][1] = inputs["input_ids"][1].flip(0)
    after = masked_lm(**inputs).logits
    assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]])
    assert not torch.equal(after[1], before[1])


def test_all_tokens_are_real_without_an_attention_mask(masked_lm, inputs):
    ids = inputs["input_ids"]
    assert torch.equal(masked_lm(ids).logits, masked_lm(ids, torch.ones_like(ids)).logits)


def test_token_types_default_to_zero(masked_lm, inputs):
    ids = inputs["input_ids"]
    zeros = masked_lm(ids, token_type_ids=torch.zeros_like(ids)).logits
    torch.testing.assert_close(masked_lm(ids).logits, zeros)


def test_masked_lm_loss_is_the_mean_cross_entropy_of_the_labeled_tokens(masked_lm, inputs):
    output = masked_lm(**inputs)
    labeled = inputs["labels"] != -100
    log_probabilities = output.logits[labeled].log_softmax(-1)
    expected = -log_probabilities.gather(1, inputs["labels"][labeled][:, None]).mean()
    torch.testing.assert_close(output.loss, expected)


def test_computing_only_labeled_tokens_does_not_change_loss_and_gradients(masked_lm, inputs):
    in_eval = masked_lm(**inputs)
    expected = gradients(masked_lm, in_eval.loss)
    in_training = masked_lm.train()(**inputs)
    torch.testing.assert_close(in_training.loss, in_eval.loss)
    for name, gradient in gradients(masked_lm, in_training.loss).items():
        torch.testing.assert_close(gradient, expected[name], msg=lambda text, name=name: f"{name}: {text}")


def test_predict_gives_the_logits_of_the_masked_tokens(masked_lm, inputs):
    batch = make_batch(inputs)
    all_logits = masked_lm(batch.input_ids, cu_seqlens=batch.cu_seqlens).logits
    torch.testing.assert_close(masked_lm.predict(batch), all_logits[batch.masked_indices])


def test_the_pretraining_loss_is_the_cross_entropy_of_the_predictions(masked_lm, inputs):
    batch = with_padding(make_batch(inputs))
    logits = masked_lm.predict(batch)
    loss, num_correct = masked_lm.masked_lm_loss(batch)
    torch.testing.assert_close(loss, F.cross_entropy(logits, batch.labels, reduction="sum"))
    assert num_correct == (logits.argmax(dim=1) == batch.labels).sum()


def test_a_padded_batch_gives_the_loss_of_the_unpadded_batch(masked_lm, inputs):
    batch = make_batch(inputs)
    loss = F.cross_entropy(masked_lm.predict(batch), batch.labels)
    torch.testing.assert_close(masked_lm(**batch.padded(pad_token_id=0)).loss, loss)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_the_logits_of_a_packed_document_equal_those_of_the_document_alone(backend, masked_lm, inputs):
    masked_lm.set_attn_implementation(backend)
    masked_lm.double()
    batch = make_batch(inputs)
    single_document = torch.cat([masked_lm.predict(document) for document in split_documents(batch)])
    torch.testing.assert_close(masked_lm.predict(batch), single_document, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_gradients_of_packed_documents_are_the_sum_over_documents(backend, masked_lm, inputs):
    masked_lm.set_attn_implementation(backend)
    masked_lm.double()
    batch = make_batch(inputs)
    packed = gradients(masked_lm, summed_loss(masked_lm, batch))
    single_document = gradients(masked_lm, sum(summed_loss(masked_lm, document) for document in split_documents(batch)))
    for name, gradient in packed.items():
        torch.testing.assert_close(gradient, single_document[name], rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_padding_of_a_micro_batch_does_not_change_logits_and_gradients(backend, masked_lm, inputs):
    masked_lm.set_attn_implementation(backend)
    masked_lm.double()
    batch = make_batch(inputs)
    plain, with_extra_padding = (logits_and_gradients(masked_lm, each) for each in (batch, with_padding(batch)))
    for name, values in plain.items():
        torch.testing.assert_close(with_extra_padding[name], values, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_fp32_with_padding_is_as_accurate_as_without(backend, masked_lm, inputs):
    masked_lm.set_attn_implementation(backend)
    batch = make_batch(inputs)
    plain, with_extra_padding = (logits_and_gradients(masked_lm, each) for each in (batch, with_padding(batch)))
    expected = logits_and_gradients(copy.deepcopy(masked_lm).double(), batch)
    for name in plain:
        assert_as_accurate(name, with_extra_padding[name], plain[name], expected[name])


def test_with_triton_logits_and_gradients_are_as_accurate_as_with_eager(device, inputs):
    model, batch = make_model(MosaicBertForMaskedLM, device, hidden_size=64, num_attention_heads=2), make_batch(inputs)
    results = {}
    for backend in ("triton", "eager"):
        model.set_attn_implementation(backend)
        results[backend] = logits_and_gradients(model, batch)
    expected = logits_and_gradients(copy.deepcopy(model).double(), batch)
    # The distribution of errors over the tensors is random, so the largest errors are compared.
    assert max_relative_error(results["triton"], expected) <= 2 * max_relative_error(results["eager"], expected)


def test_with_triton_the_step_after_the_embeddings_is_one_graph(device, inputs):
    model, batch = make_model(MosaicBertForMaskedLM, device, hidden_size=64, num_attention_heads=2), make_batch(inputs)
    model.set_attn_implementation("triton")
    plain = gradients(model, summed_loss(model, batch))
    fp64_model = copy.deepcopy(model).double()
    fp64_model.set_attn_implementation("eager")
    expected = gradients(fp64_model, summed_loss(fp64_model, batch))
    model.embedded_loss = torch.compile(model.embedded_loss, fullgraph=True, dynamic=False, backend="aot_eager")
    # On a GPU, the compiled step uses the PyTorch references and the eager step the kernels.
    assert max_relative_error(gradients(model, summed_loss(model, batch)), expected) <= 2 * max_relative_error(
        plain, expected
    )


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_repeated_step_on_a_gpu_is_bit_identical(compiled, device, inputs):
    model = make_model(MosaicBertForMaskedLM, device, hidden_size=128, num_attention_heads=2, hidden_dropout_prob=0.1)
    model.set_attn_implementation("triton")
    batch = make_batch(inputs)
    if compiled:
        compile_model(model)

    def step():
        torch.manual_seed(5)
        with torch.autocast("cuda", torch.bfloat16):
            loss = summed_loss(model.train(), batch)
        return {"loss": loss.detach()} | gradients(model, loss)

    first = step()
    for _ in range(5):
        for name, values in step().items():
            assert torch.equal(values, first[name]), name


@pytest.mark.gpu
def test_cuda_graphs_give_the_gradients_of_eager_execution(device, inputs):
    plain = make_model(MosaicBertForMaskedLM, device, hidden_size=128, num_attention_heads=2)
    plain.set_attn_implementation("triton")
    captured = copy.deepcopy(plain)
    captured.set_attn_implementation("triton")
    compile_model(captured, cuda_graphs=True)
    batches = [make_batch(inputs), with_padding(make_batch(inputs))]
    for model in (plain, captured):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
    for _ in range(4):  # warmup, capture and replay
        for batch in batches:
            losses = [model.masked_lm_loss(batch)[0] for model in (plain, captured)]
            torch.testing.assert_close(losses[1].detach(), losses[0].detach(), rtol=1e-4, atol=1e-4)
            for loss in losses:
                loss.backward()
    expected = {name: parameter.grad.double() for name, parameter in plain.named_parameters()}
    assert (
        max_relative_error({name: parameter.grad for name, parameter in captured.named_parameters()}, expected) < 1e-4
    )


def test_a_batch_of_padding_gives_zero_loss_and_gradients(masked_lm, inputs):
    batch = replace(make_batch(inputs), masked_indices=torch.tensor([], dtype=torch.int64).to(inputs["labels"]))
    batch = with_padding(replace(batch, labels=batch.masked_indices, num_masked=0))
    loss = summed_loss(masked_lm, batch)
    assert loss == 0
    for name, gradient in gradients(masked_lm, loss).items():
        assert not gradient.any(), name


@pytest.fixture(scope="module")
def prepared_recipe(source, tmp_path_factory):
    """Recipe with a prepared token store and steps of 16 samples in several micro-batches."""
    recipe = tiny_recipe(tmp_path_factory.mktemp("prepared"), source)
    prepare(recipe)
    return recipe


def global_loss_and_gradients(model, recipe, world_size, micro_batch_tokens):
    """Compute loss and gradients of the first step as the sum over the micro-batches of all ranks."""
    divided_recipe = replace(recipe, train=replace(recipe.train, micro_batch_tokens=micro_batch_tokens))
    steps = [next(iter(train_loader_of(divided_recipe, rank, world_size))) for rank in range(world_size)]
    weighted_losses = [
        summed_loss(model, batch) / step.global_num_masked for step in steps for batch in step.micro_batches
    ]
    return {"loss": sum(weighted_losses).detach()} | gradients(model, sum(weighted_losses))


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("world_size, micro_batch_tokens", [(1, 32), (1, 100), (2, 256), (3, 64), (8, 256), (16, 4096)])
def test_loss_and_gradients_do_not_depend_on_the_division_of_a_global_batch(
    world_size, micro_batch_tokens, backend, prepared_recipe
):
    model = make_model(MosaicBertForMaskedLM, "cpu", vocab_size=512).double()
    model.set_attn_implementation(backend)
    undivided = global_loss_and_gradients(model, prepared_recipe, 1, 4096)
    divided = global_loss_and_gradients(model, prepared_recipe, world_size, micro_batch_tokens)
    for name, values in undivided.items():
        torch.testing.assert_close(divided[name], values, rtol=1e-10, atol=1e-10, msg=name)


def test_dropout_changes_outputs_only_in_training_mode(device, inputs):
    model = make_model(MosaicBertForMaskedLM, device, hidden_dropout_prob=0.5)
    assert torch.equal(model(**inputs).loss, model(**inputs).loss)
    model.train()
    assert not torch.equal(model(**inputs).loss, model(**inputs).loss)


def test_a_model_can_be_trained_after_inference(masked_lm, inputs):
    with torch.inference_mode():
        loss = masked_lm(**inputs).loss
    assert all(gradient.any() for gradient in gradients(masked_lm, masked_lm(**inputs).loss).values())
    assert torch.equal(masked_lm(**inputs).loss, loss)


@pytest.mark.parametrize("model_class", [MosaicBertModel, MosaicBertForMaskedLM, MosaicBertForSequenceClassification])
def test_hidden_states_are_the_embeddings_and_the_output_of_each_layer(model_class, device, inputs):
    del inputs["labels"]
    model = make_model(model_class, device)
    states = model(**inputs, output_hidden_states=True).hidden_states
    encoder = model if model_class is MosaicBertModel else model.model
    assert [tuple(state.shape) for state in states] == [(4, 11, 48)] * 4
    assert torch.equal(states[-1], encoder(**inputs).last_hidden_state)


def test_hidden_states_are_not_returned_by_default(masked_lm, inputs):
    assert masked_lm(**inputs).hidden_states is None


def test_the_configuration_can_request_hidden_states(device, inputs):
    model = make_model(MosaicBertForMaskedLM, device, output_hidden_states=True)
    assert len(model(**inputs).hidden_states) == 4


def test_returning_hidden_states_does_not_change_the_logits_of_a_classifier(device, inputs):
    del inputs["labels"]
    model = make_model(MosaicBertForSequenceClassification, device)
    torch.testing.assert_close(model(**inputs, output_hidden_states=True).logits, model(**inputs).logits)


def test_return_dict_false_returns_loss_then_logits(masked_lm, inputs):
    output = masked_lm(**inputs)
    loss, logits = masked_lm(**inputs, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)


def test_the_classifier_uses_the_first_token_of_each_document(device, inputs):
    del inputs["labels"]
    model = make_model(MosaicBertForSequenceClassification, device, num_labels=3)
    first = model.model(**inputs).last_hidden_state[:, 0]
    torch.testing.assert_close(
        model(**inputs).logits, model.classifier.out_proj(torch.tanh(model.classifier.dense(first)))
    )


def test_the_classifier_gives_equal_logits_for_padded_and_unpadded_input(device, inputs):
    model = make_model(MosaicBertForSequenceClassification, device, num_labels=3)
    del inputs["labels"]
    assert torch.equal(model(**unpad_inputs(inputs)).logits, model(**inputs).logits)


def log_softmax_of_the_class(logits, labels):
    return -torch.stack([row.log_softmax(0)[label] for row, label in zip(logits, labels, strict=True)]).mean()


def mean_squared_error(logits, labels):
    return (logits.flatten() - labels.flatten()).square().mean()


def binary_cross_entropy(logits, labels):
    return -(labels * logits.sigmoid().log() + (1 - labels) * (1 - logits.sigmoid()).log()).mean()


CLASSES, NUMBERS = torch.tensor([2, 0, 1, 2]), torch.tensor([0.5, -1.0, 3.0, 0.0])
PAIRS = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]])


@pytest.mark.parametrize(
    "num_labels, problem_type, labels, formula",
    [
        (3, None, CLASSES, log_softmax_of_the_class),
        (3, None, CLASSES.int(), log_softmax_of_the_class),
        (3, "single_label_classification", CLASSES[:, None], log_softmax_of_the_class),
        (1, None, NUMBERS, mean_squared_error),
        (1, None, NUMBERS[:, None], mean_squared_error),
        (1, None, CLASSES, mean_squared_error),
        (2, "regression", PAIRS, mean_squared_error),
        (2, None, PAIRS, binary_cross_entropy),
        (2, "multi_label_classification", PAIRS.long(), binary_cross_entropy),
    ],
    ids=["classes", "int32", "column", "regression", "regression-column", "whole-numbers", "two-numbers", "multi",
         "multi-of-integers"],
)  # fmt: skip
def test_the_classification_loss_equals_the_formula(num_labels, problem_type, labels, formula, device, inputs):
    model = make_model(MosaicBertForSequenceClassification, device, num_labels=num_labels, problem_type=problem_type)
    labels = labels.to(device)
    output = model(**(inputs | {"labels": labels}))
    torch.testing.assert_close(output.loss, formula(output.logits, labels))


def test_the_model_does_not_accept_loss_arguments_of_the_trainer(masked_lm):
    # Hugging Face's Trainer divides an accumulated loss only if the model does not accept loss arguments.
    assert masked_lm.accepts_loss_kwargs is False


def test_a_row_without_tokens_does_not_change_other_rows(masked_lm, inputs):
    expected = masked_lm(**inputs).logits
    inputs["attention_mask"][2] = 0
    logits = masked_lm(**inputs).logits
    assert torch.equal(logits[[0, 1, 3]], expected[[0, 1, 3]])
    assert logits[2, 0].isfinite().all() and not logits[2, 1:].any()


@pytest.mark.parametrize("name", ["attention_mask", "token_type_ids", "labels"])
def test_an_input_with_another_shape_than_input_ids_is_an_error(masked_lm, inputs, name):
    inputs[name] = F.pad(inputs[name], (0, 1), value=1)
    with pytest.raises(
        ValueError, match=rf"`{name}` must have the shape \(4, 11\), one entry per token, got \(4, 12\)"
    ):
        masked_lm(**inputs)


@pytest.mark.parametrize("name", ["token_type_ids", "labels"])
def test_an_unpadded_input_with_another_length_than_input_ids_is_an_error(masked_lm, inputs, name):
    unpadded = unpad_inputs(inputs)
    unpadded[name] = F.pad(unpadded[name], (0, 1))
    with pytest.raises(ValueError, match=rf"`{name}` must have the shape \(25,\), one entry per token, got \(26,\)"):
        masked_lm(**unpadded)


def test_unpadded_input_without_cu_seqlens_is_an_error(masked_lm, inputs):
    with pytest.raises(ValueError, match=r"`input_ids` must be \(B, S\) if `cu_seqlens` is not given, got \(11,\)"):
        masked_lm(inputs["input_ids"][0])


def test_padded_input_with_cu_seqlens_is_an_error(masked_lm, inputs):
    with pytest.raises(ValueError, match=r"`input_ids` must be \(T,\) if `cu_seqlens` is given, got \(4, 11\)"):
        masked_lm(inputs["input_ids"], cu_seqlens=unpad_inputs(inputs)["cu_seqlens"])


def test_cu_seqlens_with_an_attention_mask_is_an_error(masked_lm, inputs):
    unpadded = unpad_inputs(inputs)
    with pytest.raises(ValueError, match="`attention_mask` is not supported with `cu_seqlens`"):
        masked_lm(**unpadded, attention_mask=torch.ones_like(unpadded["input_ids"]))


def test_an_invalid_configuration_is_an_error():
    with pytest.raises(ConfigError, match=r"model\.num_attention_heads=7"):
        MosaicBertConfig(hidden_size=768, num_attention_heads=7)


def test_the_default_attention_implementation_is_auto(device):
    assert make_model(MosaicBertModel, device).config._attn_implementation == "auto"


def test_set_attn_implementation_changes_every_layer(masked_lm, inputs):
    before = masked_lm(**inputs).logits
    masked_lm.set_attn_implementation("eager")
    assert masked_lm.model.config._attn_implementation == "eager"
    torch.testing.assert_close(masked_lm(**inputs).logits, before)


def test_an_unsupported_attention_backend_is_an_error_on_the_first_batch(inputs):
    model = make_model(MosaicBertForMaskedLM, "cpu")
    model.set_attn_implementation("flash_attention_2")
    with pytest.raises(
        RuntimeError, match="`attn_implementation='flash_attention_2'` is not supported on this machine"
    ):
        model(**{name: tensor.cpu() for name, tensor in inputs.items()})


def test_an_unknown_attention_backend_is_an_error_that_lists_the_known_ones(masked_lm):
    with pytest.raises(ValueError, match=r"`attn_implementation` must be one of auto, .*, got 'flex_attention'"):
        masked_lm.set_attn_implementation("flex_attention")


def test_the_residual_stream_under_autocast_is_bf16(masked_lm, inputs, device):
    with torch.autocast(device, torch.bfloat16):
        output = masked_lm(**inputs, output_hidden_states=True)
    assert {state.dtype for state in output.hidden_states} == {torch.bfloat16}


def test_the_loss_and_gradients_under_autocast_are_fp32(masked_lm, inputs, device):
    with torch.autocast(device, torch.bfloat16):
        loss = masked_lm.train()(**inputs).loss
    assert loss.dtype == torch.float32
    assert {gradient.dtype for gradient in gradients(masked_lm, loss).values()} == {torch.float32}


def test_a_bf16_model_returns_bf16_logits(masked_lm, inputs):
    assert masked_lm.bfloat16()(**inputs).logits.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "fields, num_parameters",
    [
        ({}, 137_400_384),
        (
            {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
            435_221_312,
        ),
    ],
    ids=["base", "large"],
)
def test_the_number_of_parameters_equals_the_original(fields, num_parameters):
    with torch.device("meta"):
        model = MosaicBertForMaskedLM(MosaicBertConfig(**fields))
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


def test_weights_are_initialized_normal_biases_zero_and_norms_one(device):
    model = make_model(MosaicBertForMaskedLM, device, initializer_range=0.02, hidden_size=96)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.numel() > 1000:
            assert float(parameter.std()) == pytest.approx(0.02, rel=0.05), name


def test_the_decoder_is_tied_to_the_word_embeddings(masked_lm):
    assert masked_lm.decoder.weight is masked_lm.model.embeddings.word_embeddings.weight


def test_resizing_the_embeddings_keeps_logits_and_weight_tying(masked_lm, inputs):
    before = masked_lm(**inputs).logits
    masked_lm.resize_token_embeddings(192)
    after = masked_lm(**inputs).logits
    assert after.shape[-1] == masked_lm.config.vocab_size == 192
    torch.testing.assert_close(after[..., :128], before)
    assert masked_lm.decoder.weight is masked_lm.model.embeddings.word_embeddings.weight


def test_saving_and_loading_reproduces_all_tensors(masked_lm, tmp_path):
    masked_lm.save_pretrained(tmp_path)
    loaded = MosaicBertForMaskedLM.from_pretrained(tmp_path)
    saved = masked_lm.state_dict()
    assert loaded.state_dict().keys() == saved.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, saved[name].cpu()), name


def test_a_loaded_model_has_tied_weights(masked_lm, tmp_path):
    masked_lm.save_pretrained(tmp_path)
    loaded = MosaicBertForMaskedLM.from_pretrained(tmp_path)
    assert loaded.decoder.weight is loaded.model.embeddings.word_embeddings.weight


def test_a_saved_folder_contains_the_tied_weight_once(masked_lm, tmp_path):
    masked_lm.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert {"decoder.weight", "model.embeddings.word_embeddings.weight"} & names == {
        "model.embeddings.word_embeddings.weight"
    }


def test_saving_a_loaded_model_gives_equal_weights(masked_lm, tmp_path):
    masked_lm.save_pretrained(tmp_path / "once")
    MosaicBertForMaskedLM.from_pretrained(tmp_path / "once").save_pretrained(tmp_path / "twice")
    once, twice = (load_file(tmp_path / name / "model.safetensors") for name in ("once", "twice"))
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_saving_and_loading_reproduces_the_configuration(masked_lm, tmp_path):
    masked_lm.save_pretrained(tmp_path)
    loaded = MosaicBertConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in SHAPE} == SHAPE


def test_a_classifier_loads_the_encoder_of_a_masked_lm_with_a_new_head(masked_lm, tmp_path):
    masked_lm.save_pretrained(tmp_path)
    classifier = MosaicBertForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    assert classifier.classifier.out_proj.weight.shape == (5, 48)
    for name, tensor in classifier.model.state_dict().items():
        assert torch.equal(tensor, masked_lm.model.state_dict()[name].cpu()), name


@pytest.mark.parametrize("model_class", [MosaicBertForMaskedLM, MosaicBertForSequenceClassification, MosaicBertModel])
def test_a_missing_encoder_weight_is_an_error_that_names_it(model_class, masked_lm, tmp_path):
    masked_lm.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.down.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing weights \(.*layers\.1\.mlp\.down\.weight\)"):
        model_class.from_pretrained(tmp_path)


@pytest.mark.parametrize("model_class", [MosaicBertForMaskedLM, MosaicBertForSequenceClassification, MosaicBertModel])
def test_an_unexpected_encoder_weight_is_an_error_that_names_it(model_class, masked_lm, tmp_path):
    masked_lm.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.7.mlp.down.weight"] = torch.zeros(48, 64)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 unexpected weights \(.*layers\.7\.mlp\.down\.weight\)"):
        model_class.from_pretrained(tmp_path)


def test_loading_a_classifier_folder_as_a_masked_lm_is_an_error(device, tmp_path):
    make_model(MosaicBertForSequenceClassification, device).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"missing weights \(decoder\.bias, .*Load it with the class that saved it"):
        MosaicBertForMaskedLM.from_pretrained(tmp_path)


def test_a_copied_model_gives_equal_logits(masked_lm, inputs):
    assert torch.equal(copy.deepcopy(masked_lm)(**inputs).logits, masked_lm(**inputs).logits)
