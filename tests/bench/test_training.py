import pytest
import torch

from mosaicbert.bench.documents import cut_in_order, sort_by_length
from mosaicbert.bench.peers import build_bert
from mosaicbert.bench.profile import profile_call
from mosaicbert.bench.timing import PhaseClock
from mosaicbert.bench.training import HuggingFaceStep, MosaicBertStep, training_versions
from mosaicbert.report.metrics import read_metrics
from mosaicbert.train.compile import CompileChoice

_EAGER = CompileChoice(False, False, "for a test")


def _bert_step(recipe, max_tokens):
    torch.manual_seed(0)
    model = build_bert(recipe.model, recipe.data.max_seq_len).train()
    return HuggingFaceStep(model, torch.float32, lambda *_: 1.0, max_tokens)


def _gradients(step, workload):
    step.run(step.load(workload), PhaseClock("cpu"))
    return [weight.grad for weight in step.model.parameters()]


def test_the_step_has_the_loss_of_the_first_step_of_the_run(finished, workloads):
    recipe, folder, _ = finished
    step = MosaicBertStep(recipe, torch.float32, "cpu", _EAGER)
    (micro_batches,) = step.load(workloads[0])
    loss = sum(float(step.loss(batch)) for batch in micro_batches)
    assert loss == pytest.approx(read_metrics(folder.metrics)[0]["loss"], rel=1e-5)


def test_sorted_micro_batches_have_the_gradients_of_unsorted_ones(finished, workloads):
    recipe, _, _ = finished
    expected = _gradients(_bert_step(recipe, max_tokens=None), workloads[0])
    actual = _gradients(_bert_step(recipe, max_tokens=64), workloads[0])
    for gradient, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


def test_sorted_micro_batches_have_less_padding(finished, workloads):
    recipe, _, _ = finished
    unsorted, in_order = (_bert_step(recipe, max_tokens) for max_tokens in (None, 128))
    num_padded = [step.num_padded_tokens(step.load(workloads[0])) for step in (unsorted, in_order)]
    assert num_padded[0] > num_padded[1] >= workloads[0].num_tokens


def test_steps_sorted_together_have_less_padding_than_steps_sorted_alone(finished, workloads):
    recipe, _, _ = finished
    step, workload = _bert_step(recipe, max_tokens=256), workloads[-1]
    alone = cut_in_order(workload.documents, len(workload.steps))
    num_padded = sum(len(batch) * len(sort_by_length(batch)[0].input_ids) for batch in alone)
    batches = step.load(workload)
    assert len(batches) == len(workload.steps) > 1
    assert workload.num_tokens <= step.num_padded_tokens(batches) < num_padded


class _SmallDevice(HuggingFaceStep):
    """Step on a device whose memory holds four documents."""

    def loss(self, batch):
        if len(batch[0]["input_ids"]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().loss(batch)


def test_micro_batches_are_halved_until_they_fit_into_memory(finished, workloads):
    recipe, _, _ = finished
    model = build_bert(recipe.model, recipe.data.max_seq_len).train()
    step = _SmallDevice(model, torch.float32, lambda *_: 1.0, None)
    clock = PhaseClock("cpu")
    step.call(workloads[0], clock)
    (micro_batches,) = step.load(workloads[0])
    assert max(len(inputs["input_ids"]) for inputs, _ in micro_batches) <= 4
    assert set(clock.seconds()) == {"forward", "backward", "optimizer"}


def test_the_first_version_is_that_of_the_recipe(finished):
    recipe, _, _ = finished
    versions = training_versions(recipe, torch.float32, _EAGER, "cpu")
    assert versions[0].name == "MosaicBERT, eager, fp32"
    names = {version.name for version in versions}
    assert len(names) == len(versions) == 10
    assert "ModernBERT, sorted, compiled, bf16" in names


def test_the_share_of_matrix_products_is_a_part_of_the_step(finished, workloads):
    step = MosaicBertStep(finished[0], torch.float32, "cpu", _EAGER)
    step.run(step.load(workloads[0]), PhaseClock("cpu"))
    profile = profile_call(step, workloads[0])
    assert 0.05 < profile.matrix_fraction < 1
    assert profile.padded_tokens == step.num_padded_tokens(step.load(workloads[0]))
    assert sum(profile.operations.values()) < 1
    assert profile.operations["mm"] == max(profile.operations.values()) < profile.matrix_fraction
