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
    "initializer_range": 0.2,  # weights as large as after training, so that attention is not nearly uniform
}


def make_model(model_class, device, **fields):
    torch.manual_seed(11)
    return model_class(MosaicBertConfig(**(SHAPE | fields))).to(device).eval()


def make_inputs(device, padding=0):
    """Right-padded documents with labels at some tokens; padding holds ids that must not matter."""
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
    """The same documents, with documents of pads, empty ones and masked positions that are none behind them."""
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
    """Each document as a batch of its own."""
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
    """Logits at the real masked tokens, and every gradient of the summed loss."""
    actual = gradients(model, summed_loss(model, batch))
    return {"logits": model.predict(batch)[: batch.num_masked].detach()} | actual


def max_relative_error(actual, expected):
    """The largest error of any tensor, relative to the tensor's largest value."""
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


def test_padding_never_changes_a_real_tokens_output(masked_lm, inputs, device):
    padded_inputs = make_inputs(device, padding=20)
    logits = masked_lm(**inputs).logits[inputs["attention_mask"].bool()]
    assert torch.equal(masked_lm(**padded_inputs).logits[padded_inputs["attention_mask"].bool()], logits)


def test_padding_never_changes_a_gradient(masked_lm, inputs, device):
    expected_gradients = gradients(masked_lm, masked_lm(**inputs).loss)
    padded_gradients = gradients(masked_lm, masked_lm(**make_inputs(device, padding=20)).loss)
    for name, gradient in expected_gradients.items():
        assert torch.equal(padded_gradients[name], gradient), name


def test_padding_on_the_left_gives_what_padding_on_the_right_gives(masked_lm, inputs):
    num_padding = (inputs["attention_mask"] == 0).sum(1).tolist()
    left = {
        name: torch.stack([row.roll(shift) for row, shift in zip(tensor, num_padding, strict=True)])
        for name, tensor in inputs.items()
    }
    logits = masked_lm(**inputs).logits[inputs["attention_mask"].bool()]
    assert torch.equal(masked_lm(**left).logits[left["attention_mask"].bool()], logits)


def test_output_at_padding_is_zero(masked_lm, inputs):
    assert not masked_lm(**inputs).logits[~inputs["attention_mask"].bool()].any()


@pytest.mark.parametrize("max_seqlen", [None, max(SEQLENS)], ids=["found", "given"])
def test_padded_and_unpadded_input_agree(masked_lm, inputs, max_seqlen):
    padded = masked_lm(**inputs)
    unpadded = masked_lm(**unpad_inputs(inputs), max_seqlen=max_seqlen)
    assert torch.equal(unpadded.logits, padded.logits[inputs["attention_mask"].bool()])
    assert torch.equal(unpadded.loss, padded.loss)


def test_no_document_sees_another(masked_lm, inputs):
    before = masked_lm(**inputs).logits
    inputs["input_ids"][1] = inputs["input_ids"][1].flip(0)
    after = masked_lm(**inputs).logits
    assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]])
    assert not torch.equal(after[1], before[1])


def test_without_a_mask_every_token_is_real(masked_lm, inputs):
    ids = inputs["input_ids"]
    assert torch.equal(masked_lm(ids).logits, masked_lm(ids, torch.ones_like(ids)).logits)


def test_without_token_types_all_are_zero(masked_lm, inputs):
    ids = inputs["input_ids"]
    zeros = masked_lm(ids, token_type_ids=torch.zeros_like(ids)).logits
    torch.testing.assert_close(masked_lm(ids).logits, zeros)


def test_masked_lm_loss_is_the_mean_cross_entropy_of_the_labeled_tokens(masked_lm, inputs):
    output = masked_lm(**inputs)
    labeled = inputs["labels"] != -100
    log_probabilities = output.logits[labeled].log_softmax(-1)
    expected = -log_probabilities.gather(1, inputs["labels"][labeled][:, None]).mean()
    torch.testing.assert_close(output.loss, expected)


def test_training_on_labeled_tokens_only_gives_the_loss_and_gradients_of_all_tokens(masked_lm, inputs):
    in_eval = masked_lm(**inputs)
    expected = gradients(masked_lm, in_eval.loss)
    in_training = masked_lm.train()(**inputs)
    torch.testing.assert_close(in_training.loss, in_eval.loss)
    for name, gradient in gradients(masked_lm, in_training.loss).items():
        torch.testing.assert_close(gradient, expected[name], msg=lambda text, name=name: f"{name}: {text}")


def test_training_returns_logits_at_labeled_tokens_only(masked_lm, inputs):
    labeled = inputs["labels"] != -100
    all_logits = masked_lm(**inputs).logits
    torch.testing.assert_close(masked_lm.train()(**inputs).logits, all_logits[labeled])


def test_predict_gives_the_full_models_logits_at_the_masked_tokens(masked_lm, inputs):
    batch = make_batch(inputs)
    all_logits = masked_lm(batch.input_ids, cu_seqlens=batch.cu_seqlens).logits
    torch.testing.assert_close(masked_lm.predict(batch), all_logits[batch.masked_indices])


def test_the_loss_of_pretraining_is_the_cross_entropy_of_the_predictions(masked_lm, inputs):
    batch = with_padding(make_batch(inputs))
    logits = masked_lm.predict(batch)
    loss, num_right = masked_lm.masked_lm_loss(batch)
    torch.testing.assert_close(loss, F.cross_entropy(logits, batch.labels, reduction="sum"))
    assert num_right == (logits.argmax(dim=1) == batch.labels).sum()


def test_a_padded_batch_gives_the_loss_of_its_unpadded_self(masked_lm, inputs):
    batch = make_batch(inputs)
    loss = F.cross_entropy(masked_lm.predict(batch), batch.labels)
    torch.testing.assert_close(masked_lm(**batch.padded(pad_token_id=0)).loss, loss)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_a_packed_document_has_the_logits_it_has_alone(backend, masked_lm, inputs):
    masked_lm.set_attn_implementation(backend)
    masked_lm.double()
    batch = make_batch(inputs)
    single_document = torch.cat([masked_lm.predict(document) for document in split_documents(batch)])
    torch.testing.assert_close(masked_lm.predict(batch), single_document, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_packed_documents_have_the_gradients_that_they_add_up_to_alone(backend, masked_lm, inputs):
    masked_lm.set_attn_implementation(backend)
    masked_lm.double()
    batch = make_batch(inputs)
    packed = gradients(masked_lm, summed_loss(masked_lm, batch))
    single_document = gradients(masked_lm, sum(summed_loss(masked_lm, document) for document in split_documents(batch)))
    for name, gradient in packed.items():
        torch.testing.assert_close(gradient, single_document[name], rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_filler_changes_neither_logits_nor_gradients(backend, masked_lm, inputs):
    masked_lm.set_attn_implementation(backend)
    masked_lm.double()
    batch = make_batch(inputs)
    plain, with_extra_padding = (logits_and_gradients(masked_lm, each) for each in (batch, with_padding(batch)))
    for name, values in plain.items():
        torch.testing.assert_close(with_extra_padding[name], values, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_fp32_with_filler_is_as_accurate_as_without(backend, masked_lm, inputs):
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
    # Three layers share their errors out among the tensors by chance, so the worst one of each rung is judged.
    assert max_relative_error(results["triton"], expected) <= 2 * max_relative_error(results["eager"], expected)


def test_with_triton_everything_behind_the_embeddings_is_one_graph(device, inputs):
    model, batch = make_model(MosaicBertForMaskedLM, device, hidden_size=64, num_attention_heads=2), make_batch(inputs)
    model.set_attn_implementation("triton")
    plain = gradients(model, summed_loss(model, batch))
    fp64_model = copy.deepcopy(model).double()
    fp64_model.set_attn_implementation("eager")
    expected = gradients(fp64_model, summed_loss(fp64_model, batch))
    model.embedded_loss = torch.compile(model.embedded_loss, fullgraph=True, dynamic=False, backend="aot_eager")
    # On a GPU the compiled step takes the definitions where the plain one takes kernels.
    assert max_relative_error(gradients(model, summed_loss(model, batch)), expected) <= 2 * max_relative_error(
        plain, expected
    )


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_step_on_a_gpu_has_the_same_bits_again(compiled, device, inputs):
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
def test_cuda_graphs_give_the_gradients_that_they_give_uncaptured(device, inputs):
    plain = make_model(MosaicBertForMaskedLM, device, hidden_size=128, num_attention_heads=2)
    plain.set_attn_implementation("triton")
    captured = copy.deepcopy(plain)
    captured.set_attn_implementation("triton")
    compile_model(captured, graphs=True)
    batches = [make_batch(inputs), with_padding(make_batch(inputs))]
    for model in (plain, captured):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
    for _ in range(4):  # warms up, captures, replays
        for batch in batches:
            losses = [model.masked_lm_loss(batch)[0] for model in (plain, captured)]
            torch.testing.assert_close(losses[1].detach(), losses[0].detach(), rtol=1e-4, atol=1e-4)
            for loss in losses:
                loss.backward()
    expected = {name: parameter.grad.double() for name, parameter in plain.named_parameters()}
    assert (
        max_relative_error({name: parameter.grad for name, parameter in captured.named_parameters()}, expected) < 1e-4
    )


def test_filler_alone_teaches_nothing(masked_lm, inputs):
    batch = replace(make_batch(inputs), masked_indices=torch.tensor([], dtype=torch.int64).to(inputs["labels"]))
    batch = with_padding(replace(batch, labels=batch.masked_indices, num_masked=0))
    loss = summed_loss(masked_lm, batch)
    assert loss == 0
    for name, gradient in gradients(masked_lm, loss).items():
        assert not gradient.any(), name


@pytest.fixture(scope="module")
def prepared_recipe(source, tmp_path_factory):
    """A recipe whose store is prepared, with steps of 16 samples in several micro-batches."""
    recipe = tiny_recipe(tmp_path_factory.mktemp("prepared"), source)
    prepare(recipe)
    return recipe


def global_loss_and_gradients(model, recipe, world_size, micro_batch_tokens):
    """Of the first step, as all ranks together compute it: the sum of their micro-batches' shares."""
    divided_recipe = replace(recipe, train=replace(recipe.train, micro_batch_tokens=micro_batch_tokens))
    steps = [next(iter(train_loader_of(divided_recipe, rank, world_size))) for rank in range(world_size)]
    weighted_losses = [summed_loss(model, batch) / step.global_masked for step in steps for batch in step.micro_batches]
    return {"loss": sum(weighted_losses).detach()} | gradients(model, sum(weighted_losses))


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("world_size, micro_batch_tokens", [(1, 32), (1, 100), (2, 256), (3, 64), (8, 256), (16, 4096)])
def test_a_global_batch_has_one_loss_and_one_gradient_however_it_is_divided(
    world_size, micro_batch_tokens, backend, prepared_recipe
):
    model = make_model(MosaicBertForMaskedLM, "cpu", vocab_size=512).double()
    model.set_attn_implementation(backend)
    undivided = global_loss_and_gradients(model, prepared_recipe, 1, 4096)
    divided = global_loss_and_gradients(model, prepared_recipe, world_size, micro_batch_tokens)
    for name, values in undivided.items():
        torch.testing.assert_close(divided[name], values, rtol=1e-10, atol=1e-10, msg=name)


def test_dropout_changes_outputs_in_training_only(device, inputs):
    model = make_model(MosaicBertForMaskedLM, device, hidden_dropout_prob=0.5)
    assert torch.equal(model(**inputs).loss, model(**inputs).loss)
    model.train()
    assert not torch.equal(model(**inputs).loss, model(**inputs).loss)


def test_a_model_first_used_for_inference_later_trains(masked_lm, inputs):
    with torch.inference_mode():
        loss = masked_lm(**inputs).loss
    assert all(gradient.any() for gradient in gradients(masked_lm, masked_lm(**inputs).loss).values())
    assert torch.equal(masked_lm(**inputs).loss, loss)


@pytest.mark.parametrize("model_class", [MosaicBertModel, MosaicBertForMaskedLM, MosaicBertForSequenceClassification])
def test_hidden_states_are_the_embeddings_and_each_layers_output(model_class, device, inputs):
    del inputs["labels"]
    model = make_model(model_class, device)
    states = model(**inputs, output_hidden_states=True).hidden_states
    encoder = model if model_class is MosaicBertModel else model.model
    assert [tuple(state.shape) for state in states] == [(4, 11, 48)] * 4
    assert torch.equal(states[-1], encoder(**inputs).last_hidden_state)


def test_hidden_states_are_not_returned_unasked(masked_lm, inputs):
    assert masked_lm(**inputs).hidden_states is None


def test_the_configuration_may_ask_for_hidden_states(device, inputs):
    model = make_model(MosaicBertForMaskedLM, device, output_hidden_states=True)
    assert len(model(**inputs).hidden_states) == 4


@pytest.mark.parametrize("requested_by", ["argument", "configuration"])
def test_hidden_states_in_training_with_labels_are_refused(requested_by, device, inputs):
    model = make_model(MosaicBertForMaskedLM, device, output_hidden_states=requested_by == "configuration").train()
    with pytest.raises(ValueError, match=r"output_hidden_states needs model\.eval\(\)"):
        model(**inputs, output_hidden_states=True if requested_by == "argument" else None)


def test_hidden_states_do_not_change_a_classifiers_logits(device, inputs):
    del inputs["labels"]
    model = make_model(MosaicBertForSequenceClassification, device)
    torch.testing.assert_close(model(**inputs, output_hidden_states=True).logits, model(**inputs).logits)


def test_return_dict_false_returns_loss_then_logits(masked_lm, inputs):
    output = masked_lm(**inputs)
    loss, logits = masked_lm(**inputs, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)


def test_classifier_reads_the_first_token_of_each_document(device, inputs):
    del inputs["labels"]
    model = make_model(MosaicBertForSequenceClassification, device, num_labels=3)
    first = model.model(**inputs).last_hidden_state[:, 0]
    torch.testing.assert_close(model(**inputs).logits, model.classifier(torch.tanh(model.pooler.dense(first))))


def test_classifier_gives_padded_and_unpadded_input_the_same_logits(device, inputs):
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
def test_classification_loss_is_the_plain_formula(num_labels, problem_type, labels, formula, device, inputs):
    model = make_model(MosaicBertForSequenceClassification, device, num_labels=num_labels, problem_type=problem_type)
    labels = labels.to(device)
    output = model(**(inputs | {"labels": labels}))
    torch.testing.assert_close(output.loss, formula(output.logits, labels))


def test_a_gradient_accumulating_trainer_divides_the_loss_itself(masked_lm):
    # Hugging Face's Trainer leaves the division to models that take **kwargs, unless they say otherwise.
    assert masked_lm.accepts_loss_kwargs is False


def test_an_empty_row_is_refused(masked_lm, inputs):
    inputs["attention_mask"][2] = 0
    with pytest.raises(ValueError, match="row 2 of attention_mask holds no token"):
        masked_lm(**inputs)


@pytest.mark.parametrize("name", ["attention_mask", "token_type_ids", "labels"])
def test_a_tensor_of_another_shape_than_the_ids_is_refused_by_name(masked_lm, inputs, name):
    inputs[name] = F.pad(inputs[name], (0, 1), value=1)
    with pytest.raises(ValueError, match=rf"{name} has shape \(4, 12\), input_ids \(4, 11\)"):
        masked_lm(**inputs)


@pytest.mark.parametrize("name", ["token_type_ids", "labels"])
def test_an_unpadded_tensor_of_another_length_than_the_ids_is_refused_by_name(masked_lm, inputs, name):
    unpadded = unpad_inputs(inputs)
    unpadded[name] = F.pad(unpadded[name], (0, 1))
    with pytest.raises(ValueError, match=rf"{name} has shape \(26,\), input_ids \(25,\)"):
        masked_lm(**unpadded)


def test_flat_ids_without_bounds_are_refused(masked_lm, inputs):
    with pytest.raises(ValueError, match=r"input_ids has shape \(11,\); give \(B, S\), or \(T,\) and cu_seqlens"):
        masked_lm(inputs["input_ids"][0])


def test_bounds_for_padded_ids_are_refused(masked_lm, inputs):
    with pytest.raises(ValueError, match=r"input_ids has shape \(4, 11\); with cu_seqlens give \(T,\)"):
        masked_lm(inputs["input_ids"], cu_seqlens=unpad_inputs(inputs)["cu_seqlens"])


def test_bounds_and_a_mask_together_are_refused(masked_lm, inputs):
    unpadded = unpad_inputs(inputs)
    with pytest.raises(ValueError, match="no attention_mask"):
        masked_lm(**unpadded, attention_mask=torch.ones_like(unpadded["input_ids"]))


def test_a_configuration_of_an_impossible_shape_is_refused():
    with pytest.raises(ConfigError, match=r"model\.num_attention_heads=7"):
        MosaicBertConfig(hidden_size=768, num_attention_heads=7)


def test_attention_implementation_is_auto_unless_asked(device):
    assert make_model(MosaicBertModel, device).config._attn_implementation == "auto"


def test_set_attn_implementation_reaches_every_layer(masked_lm, inputs):
    before = masked_lm(**inputs).logits
    masked_lm.set_attn_implementation("eager")
    assert {layer.attention.config._attn_implementation for layer in masked_lm.model.layers} == {"eager"}
    torch.testing.assert_close(masked_lm(**inputs).logits, before)


def test_an_attention_that_does_not_work_here_is_refused_at_the_first_batch(inputs):
    model = make_model(MosaicBertForMaskedLM, "cpu")
    model.set_attn_implementation("flash_attention_2")
    with pytest.raises(RuntimeError, match="attn_implementation='flash_attention_2' does not work here: "):
        model(**{name: tensor.cpu() for name, tensor in inputs.items()})


def test_an_unknown_attention_is_refused_with_the_known_ones(masked_lm):
    with pytest.raises(ValueError, match="'flex_attention' is unknown; choose one of auto, "):
        masked_lm.set_attn_implementation("flex_attention")


def test_under_autocast_the_residual_stream_is_bf16(masked_lm, inputs, device):
    with torch.autocast(device, torch.bfloat16):
        output = masked_lm(**inputs, output_hidden_states=True)
    assert {state.dtype for state in output.hidden_states} == {torch.bfloat16}


def test_under_autocast_the_loss_and_the_gradients_are_fp32(masked_lm, inputs, device):
    with torch.autocast(device, torch.bfloat16):
        loss = masked_lm.train()(**inputs).loss
    assert loss.dtype == torch.float32
    assert {gradient.dtype for gradient in gradients(masked_lm, loss).values()} == {torch.float32}


def test_a_model_cast_to_bf16_answers_in_bf16(masked_lm, inputs):
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
def test_number_of_parameters_is_the_originals(fields, num_parameters):
    with torch.device("meta"):
        model = MosaicBertForMaskedLM(MosaicBertConfig(**fields))
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


def test_weights_begin_normal_biases_zero_and_norms_as_the_identity(device):
    model = make_model(MosaicBertForMaskedLM, device, initializer_range=0.02, hidden_size=96)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.numel() > 1000:
            assert float(parameter.std()) == pytest.approx(0.02, rel=0.05), name


def test_the_decoder_shares_the_word_embeddings(masked_lm):
    assert masked_lm.decoder.weight is masked_lm.model.embeddings.word_embeddings.weight


def test_resized_embeddings_keep_old_logits_and_stay_tied(masked_lm, inputs):
    before = masked_lm(**inputs).logits
    masked_lm.resize_token_embeddings(192)
    after = masked_lm(**inputs).logits
    assert after.shape[-1] == masked_lm.config.vocab_size == 192
    torch.testing.assert_close(after[..., :128], before)
    assert masked_lm.decoder.weight is masked_lm.model.embeddings.word_embeddings.weight


def test_a_saved_model_is_loaded_back_tensor_for_tensor(masked_lm, tmp_path):
    masked_lm.save_pretrained(tmp_path)
    loaded = MosaicBertForMaskedLM.from_pretrained(tmp_path)
    saved = masked_lm.state_dict()
    assert loaded.state_dict().keys() == saved.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, saved[name].cpu()), name


def test_a_loaded_model_is_tied(masked_lm, tmp_path):
    masked_lm.save_pretrained(tmp_path)
    loaded = MosaicBertForMaskedLM.from_pretrained(tmp_path)
    assert loaded.decoder.weight is loaded.model.embeddings.word_embeddings.weight


def test_a_saved_folder_holds_the_tied_weight_once(masked_lm, tmp_path):
    masked_lm.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert {"decoder.weight", "model.embeddings.word_embeddings.weight"} & names == {
        "model.embeddings.word_embeddings.weight"
    }


def test_a_loaded_model_saves_the_same_folder_again(masked_lm, tmp_path):
    masked_lm.save_pretrained(tmp_path / "once")
    MosaicBertForMaskedLM.from_pretrained(tmp_path / "once").save_pretrained(tmp_path / "twice")
    once, twice = (load_file(tmp_path / name / "model.safetensors") for name in ("once", "twice"))
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_a_saved_configuration_is_loaded_back(masked_lm, tmp_path):
    masked_lm.save_pretrained(tmp_path)
    loaded = MosaicBertConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in SHAPE} == SHAPE


def test_a_classifier_takes_the_encoder_of_a_masked_lm_and_begins_a_new_head(masked_lm, tmp_path):
    masked_lm.save_pretrained(tmp_path)
    classifier = MosaicBertForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    assert classifier.classifier.weight.shape == (5, 48)
    for name, tensor in classifier.model.state_dict().items():
        assert torch.equal(tensor, masked_lm.model.state_dict()[name].cpu()), name


@pytest.mark.parametrize("model_class", [MosaicBertForMaskedLM, MosaicBertForSequenceClassification, MosaicBertModel])
def test_a_missing_weight_of_the_encoder_is_an_error_that_names_it(model_class, masked_lm, tmp_path):
    masked_lm.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.down.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights missing \(.*layers\.1\.mlp\.down\.weight\)"):
        model_class.from_pretrained(tmp_path)


@pytest.mark.parametrize("model_class", [MosaicBertForMaskedLM, MosaicBertForSequenceClassification, MosaicBertModel])
def test_an_unexpected_weight_of_the_encoder_is_an_error_that_names_it(model_class, masked_lm, tmp_path):
    masked_lm.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.7.mlp.down.weight"] = torch.zeros(48, 64)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights unexpected \(.*layers\.7\.mlp\.down\.weight\)"):
        model_class.from_pretrained(tmp_path)


def test_a_classifiers_folder_is_no_masked_lm(device, tmp_path):
    make_model(MosaicBertForSequenceClassification, device).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"weights missing \(decoder\.bias, .*load it with the class it was saved from"
    ):
        MosaicBertForMaskedLM.from_pretrained(tmp_path)


def test_a_copied_model_gives_the_same_logits(masked_lm, inputs):
    assert torch.equal(copy.deepcopy(masked_lm)(**inputs).logits, masked_lm(**inputs).logits)
