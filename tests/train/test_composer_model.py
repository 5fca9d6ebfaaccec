"""Composer model wrapper: loss, gradients and predictions of micro-batches, and the device of their tensors."""

from dataclasses import replace

import pytest
import torch

from mosaicbert.batch import MicroBatch
from mosaicbert.config import ModelConfig
from mosaicbert.model.factory import build_model
from mosaicbert.train.composer_model import MaskedLmComposerModel, data_spec
from tests.data.loaders import train_loader_of
from tests.recipes import TINY_MODEL


def test_micro_batches_are_moved_to_the_device():
    batch = MicroBatch(
        input_ids=torch.zeros(3, dtype=torch.int64),
        cu_seqlens=torch.tensor([0, 3], dtype=torch.int32),
        max_seqlen=3,
        masked_indices=torch.tensor([1]),
        labels=torch.tensor([2]),
        num_tokens=3,
        num_sequences=1,
        num_masked=1,
    )
    moved = data_spec([], "meta").microbatch_transforms(batch)
    assert {tensor.device.type for tensor in vars(moved).values() if isinstance(tensor, torch.Tensor)} == {"meta"}


def _build(architecture):
    torch.manual_seed(5)
    model = build_model(ModelConfig(**(TINY_MODEL | {"architecture": architecture, "initializer_range": 0.2})))
    return MaskedLmComposerModel(model.double().eval(), cpu_autocast=torch.float32)


def _without_padding(batch):
    return replace(
        batch,
        input_ids=batch.input_ids[: batch.num_tokens],
        cu_seqlens=batch.cu_seqlens[: batch.num_sequences + 1],
        masked_indices=batch.masked_indices[: batch.num_masked],
        labels=batch.labels[: batch.num_masked],
    )


def _loss_and_gradients(composer_model, losses):
    composer_model.zero_grad()
    loss = sum(compute() for compute in losses)
    loss.backward()
    gradients = {name: weight.grad for name, weight in composer_model.named_parameters() if weight.grad is not None}
    return {"loss": loss.detach()} | {name: gradient.clone() for name, gradient in gradients.items()}


def _assert_close(actual, expected, num_terms):
    # The loss is a sum of `num_terms` numbers in fp32 for any dtype of the model. Some gradients sum to zero.
    rtol = num_terms * torch.finfo(torch.float32).eps
    max_value = max(float(values.abs().max()) for values in expected.values())
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(actual[name], values, rtol=rtol, atol=rtol * max_value, msg=name)


@pytest.mark.parametrize("architecture", ["mosaicbert", "bert"])
def test_padding_changes_neither_loss_nor_gradients(architecture, finished):
    recipe, _, _ = finished
    composer_model = _build(architecture)
    padded, unpadded = next(
        (batch, unpadded)
        for step in train_loader_of(recipe, 0, 1)
        for batch in step.micro_batches
        for unpadded in [_without_padding(batch)]
        if all(size > unpadded_size for size, unpadded_size in zip(batch.shape, unpadded.shape, strict=True))
    )
    actual, expected = (
        _loss_and_gradients(composer_model, [lambda batch=batch: composer_model.loss(composer_model(batch), batch)])
        for batch in (padded, unpadded)
    )
    _assert_close(actual, expected, padded.num_masked)


@pytest.mark.parametrize("architecture", ["mosaicbert", "bert"])
def test_loss_and_number_of_correct_predictions_are_sums_over_the_masked_tokens_without_padding(architecture, finished):
    recipe, _, _ = finished
    composer_model = _build(architecture)
    batch = next(iter(train_loader_of(recipe, 0, 1))).micro_batches[-1]
    logits, labels = composer_model.eval_forward(_without_padding(batch)).detach(), batch.labels[: batch.num_masked]
    expected = -logits.log_softmax(-1)[torch.arange(batch.num_masked), labels].sum()
    loss, num_correct = composer_model(batch)
    assert float(composer_model.loss((loss, num_correct), batch)) == pytest.approx(float(expected), rel=1e-5)
    assert num_correct == (logits.argmax(dim=-1) == labels).sum()


@pytest.mark.parametrize("architecture", ["mosaicbert", "bert"])
@pytest.mark.parametrize("world_size, micro_batch_tokens", [(1, 64), (2, 256), (3, 100), (8, 4096)])
def test_loss_and_gradients_of_a_global_batch_do_not_depend_on_its_micro_batches_and_ranks(
    world_size, micro_batch_tokens, architecture, finished
):
    recipe, _, _ = finished
    composer_model = _build(architecture)

    def compute(world_size, micro_batch_tokens):
        divided = replace(recipe, train=replace(recipe.train, micro_batch_tokens=micro_batch_tokens))
        steps = [next(iter(train_loader_of(divided, rank, world_size))) for rank in range(world_size)]
        num_masked = steps[0].global_num_masked
        losses = [
            lambda batch=batch: composer_model.loss(composer_model(batch), batch) / num_masked
            for step in steps
            for batch in step.micro_batches
        ]
        return _loss_and_gradients(composer_model, losses), num_masked

    actual, num_masked = compute(world_size, micro_batch_tokens)
    expected, _ = compute(1, 4096)
    _assert_close(actual, expected, num_masked)


@pytest.mark.parametrize("architecture", ["mosaicbert", "bert"])
def test_a_micro_batch_without_a_masked_token_has_zero_loss_and_gradients(architecture, finished):
    recipe, _, _ = finished
    composer_model = _build(architecture)
    batch = next(iter(train_loader_of(recipe, 0, 1))).micro_batches[0]
    unmasked = replace(
        batch,
        masked_indices=torch.zeros_like(batch.masked_indices),
        labels=torch.full_like(batch.labels, -100),
        num_masked=0,
    )
    results = _loss_and_gradients(composer_model, [lambda: composer_model.loss(composer_model(unmasked), unmasked)])
    assert all(not values.any() for values in results.values())
