"""Optimizers: steps, state, and skipped updates, compared with fp64 references."""

import io
import math

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from mosaicbert.config import ModelConfig, OptimizerConfig
from mosaicbert.model.factory import build_model
from mosaicbert.train.optimizers import build_optimizer, orthogonalize, update_unless
from tests.recipes import TINY_MODEL

OPTIMIZERS = ["decoupled_adamw", "stable_adamw", "muon"]
ARCHITECTURES = ["mosaicbert", "bert"]
LR_FRACTIONS = [0.25, 1.0, 0.6, 0.1, 0.5, 0.9]  # of the peak learning rate, by step
GRADIENT_SCALES = [1e-3, 3e-2, 1.0, 0.5, 30.0, 2.0]  # with jumps that StableAdamW reduces; the first are about eps
EPS = torch.finfo(torch.float32).eps

# Weights of a layer that Muon updates, and the number of matrices concatenated in each.
MATRICES = {
    "attention.qkv.weight": 3,
    "attention.out.weight": 1,
    "mlp.gate_up.weight": 2,
    "mlp.down.weight": 1,
    "attention.self.query.weight": 1,
    "attention.self.key.weight": 1,
    "attention.self.value.weight": 1,
    "attention.output.dense.weight": 1,
    "intermediate.dense.weight": 1,
    "output.dense.weight": 1,
}
PREFIXES = {"mosaicbert": "model.model.layers", "bert": "model.bert.encoder.layer"}


class Wrapper(nn.Module):
    """Module whose parameter names begin with "model.", like those of a Composer model."""

    def __init__(self, architecture: str) -> None:
        super().__init__()
        torch.manual_seed(17)
        self.model = build_model(ModelConfig(architecture=architecture, **TINY_MODEL))


def matrices_of(architecture):
    return {f"{PREFIXES[architecture]}.{layer}.{name}": count for layer in range(2) for name, count in MATRICES.items()}


def config_of(name):
    return OptimizerConfig(name=name, peak_lr=1e-2, eps=1e-2, weight_decay=0.1)


def start(name, architecture="mosaicbert"):
    model = Wrapper(architecture)
    return model, build_optimizer(model, config_of(name))


def gradients(model, step):
    """Return random gradients by name. Most rows of the embedding gradient are zero, as after a real batch."""
    generator = torch.Generator().manual_seed(step)
    grads = {}
    for name, parameter in model.named_parameters():
        grads[name] = GRADIENT_SCALES[step] * torch.randn(parameter.shape, generator=generator)
        if "word_embeddings" in name:
            grads[name][20:] = 0.0
    return grads


def run(model, optimizer, steps):
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * LR_FRACTIONS[step]
        grads = gradients(model, step)
        for name, parameter in model.named_parameters():
            parameter.grad = grads[name].to(parameter.device)
        optimizer.step()


def adamw_reference(config, lr_fraction, step, weight, grad, state):
    beta1, beta2 = config.betas
    state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * grad
    state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * grad**2
    debiased_m, debiased_v = state["m"] / (1 - beta1**step), state["v"] / (1 - beta2**step)
    decayed = weight * (1 - config.weight_decay * lr_fraction)
    return decayed - config.peak_lr * lr_fraction * debiased_m / (debiased_v.sqrt() + config.eps)


def stable_adamw_reference(config, lr_fraction, step, weight, grad, state):
    beta1, beta2 = (beta * (1 - beta ** (step - 1)) / (1 - beta**step) for beta in config.betas)
    state["v"] = beta1 * state.get("v", 0.0) + (1 - beta1) * grad
    state["u"] = beta2 * state.get("u", 0.0) + (1 - beta2) * grad**2
    rms = float((grad**2 / state["u"].clamp(min=config.eps**2)).mean().sqrt())
    state["max_rms"] = max(rms, state.get("max_rms", 0.0))
    lr_fraction = lr_fraction / max(1.0, rms)
    decayed = weight * (1 - config.weight_decay * lr_fraction)
    return decayed - config.peak_lr * lr_fraction * state["v"] / (state["u"].sqrt() + config.eps)


def quintic(value):
    return 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5


def muon_reference(config, lr_fraction, weight, grad, state):
    """Update one matrix by its singular values, to each of which Newton-Schulz applies the quintic."""
    state["momentum"] = config.momentum * state.get("momentum", 0.0) + grad
    update = grad + config.momentum * state["momentum"]
    left, values, right = torch.linalg.svd(update / update.norm(), full_matrices=False)
    for _ in range(5):
        values = quintic(values)
    direction = left @ torch.diag(values) @ right
    decayed = weight * (1 - config.weight_decay * lr_fraction)
    return decayed - config.peak_lr * lr_fraction * 0.2 * math.sqrt(max(weight.shape)) * direction


def run_reference(name, model, architecture, num_steps):
    """Run the same steps in fp64, one tensor after the other. Return the weights and the optimizer state."""
    config = config_of(name)
    weights = {key: parameter.detach().double() for key, parameter in model.named_parameters()}
    states = {}
    for step in range(num_steps):
        for key, grad in gradients(model, step).items():
            weight, grad, lr_fraction = weights[key], grad.double(), LR_FRACTIONS[step]
            if name == "muon" and key in matrices_of(architecture):
                matrices = []
                count = matrices_of(architecture)[key]
                height = len(weight) // count
                for index in range(count):
                    rows = slice(index * height, (index + 1) * height)
                    state = states.setdefault((key, index), {})
                    matrices.append(muon_reference(config, lr_fraction, weight[rows], grad[rows], state))
                weights[key] = torch.cat(matrices)
            else:
                reference = stable_adamw_reference if name == "stable_adamw" else adamw_reference
                weights[key] = reference(config, lr_fraction, step + 1, weight, grad, states.setdefault(key, {}))
    return weights, states


def max_rounding_error(num_steps, weight, is_matrix=False):
    """Return an upper bound of the error of fp32 after some steps.

    A step rounds the weight twice, for decay and subtraction. AdamW's update is about 1 and has about ten roundings.
    Newton-Schulz multiplies the rounding error of its input by the slope of the quintic, 3.4445, in five iterations.
    """
    update = 0.2 * math.sqrt(max(weight.shape)) * 3.4445**5 if is_matrix else 10.0
    return num_steps * EPS * (float(weight.abs().max()) + 1e-2 * update)


def assert_equal_runs(first, second):
    (first_model, first_optimizer), (second_model, second_optimizer) = first, second
    for (name, first), second in zip(first_model.named_parameters(), second_model.parameters(), strict=True):
        assert torch.equal(first, second), name
        first_state, second_state = first_optimizer.state[first], second_optimizer.state[second]
        assert first_state.keys() == second_state.keys(), name
        assert all(torch.equal(first_state[key], second_state[key]) for key in first_state), name


@pytest.mark.parametrize("num_steps", [1, len(LR_FRACTIONS)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_equal_those_of_the_fp64_reference(name, architecture, num_steps):
    model, optimizer = start(name, architecture)
    expected, states = run_reference(name, model, architecture, num_steps)
    run(model, optimizer, range(num_steps))
    if name == "stable_adamw" and num_steps > 1:
        assert max(state["max_rms"] for state in states.values()) > 1.5  # otherwise no learning rate was reduced
    for key, parameter in model.named_parameters():
        error = float((parameter.double() - expected[key]).abs().max())
        is_matrix = name == "muon" and key in matrices_of(architecture)
        assert error <= max_rounding_error(num_steps, expected[key], is_matrix), key


@pytest.mark.parametrize("num_steps", [1, len(LR_FRACTIONS)])
def test_decoupled_adamw_equals_composers_optimizer(num_steps):
    from composer.optim import DecoupledAdamW  # imported here because Composer takes seconds to import

    model, optimizer = start("decoupled_adamw")
    config = config_of("decoupled_adamw")
    reference_model = Wrapper("mosaicbert")
    reference = DecoupledAdamW(
        reference_model.parameters(), config.peak_lr, config.betas, config.eps, weight_decay=config.weight_decay
    )
    for group in reference.param_groups:
        group["peak_lr"] = config.peak_lr
    run(model, optimizer, range(num_steps))
    run(reference_model, reference, range(num_steps))
    for (key, parameter), weight in zip(model.named_parameters(), reference_model.parameters(), strict=True):
        assert float((parameter - weight).abs().max()) <= 2 * max_rounding_error(num_steps, weight), key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_equal_runs_are_bitwise_equal(name):
    first, second = start(name), start(name)
    run(*first, range(6))
    run(*second, range(6))
    assert_equal_runs(first, second)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_resumed_from_a_saved_state_is_bitwise_equal_to_an_uninterrupted_one(name, architecture):
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    uninterrupted = start(name, architecture)
    run(*uninterrupted, range(3))
    file = io.BytesIO()
    torch.save([uninterrupted[0].state_dict(), get_optimizer_state_dict(*uninterrupted, options=options)], file)
    run(*uninterrupted, range(3, 6))

    file.seek(0)
    weights, state = torch.load(file)
    resumed = start(name, architecture)
    resumed[0].load_state_dict(weights)
    set_optimizer_state_dict(*resumed, optim_state_dict=state, options=options)
    run(*resumed, range(3, 6))
    assert_equal_runs(uninterrupted, resumed)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_model_memorizes_sixteen_sentences(name, architecture):
    model = Wrapper(architecture).model.train()
    optimizer = build_optimizer(model, OptimizerConfig(name=name, peak_lr=1e-2))
    input_ids = torch.randint(5, 512, (16, 6), generator=torch.Generator().manual_seed(3))
    labels = torch.full_like(input_ids, -100)
    labels[:, 2] = input_ids[:, 2]
    input_ids[:, 2] = 4

    def loss_of_step():
        optimizer.zero_grad()
        loss = model(input_ids, attention_mask=torch.ones_like(input_ids), labels=labels).loss
        loss.backward()
        return loss

    losses = [float(optimizer.step(loss_of_step)) for _ in range(100)]  # with a closure, as Composer calls it
    assert losses[0] == pytest.approx(math.log(512), rel=0.1)
    assert losses[-1] < 0.5 * math.log(16)  # log(16) is the loss of 16 equally likely tokens, without the context


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_without_gradients_changes_nothing(name):
    model, optimizer = start(name)
    unchanged = start(name)
    run(model, optimizer, range(2))
    run(*unchanged, range(2))
    for parameter in model.parameters():
        parameter.grad = None
    optimizer.step()
    assert_equal_runs((model, optimizer), unchanged)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_parameter_without_a_gradient_does_not_change(name):
    model, optimizer = start(name)
    every_second = [*model.parameters()][::2]
    before = [parameter.detach().clone() for parameter in every_second]
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.ones_like(parameter) if number % 2 else None
    optimizer.step()
    assert all(torch.equal(parameter, old) for parameter, old in zip(every_second, before, strict=True))
    assert not any(parameter in optimizer.state for parameter in every_second)


def test_stable_adamw_counts_the_steps_of_each_parameter():
    model, optimizer = start("stable_adamw")
    late_parameter = model.model.decoder.bias  # zeros
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    late_parameter.grad = None
    optimizer.step()
    late_parameter.grad = torch.linspace(-1.0, 1.0, len(late_parameter))
    optimizer.step()
    grad = late_parameter.grad
    expected = -1e-2 * grad / (grad.abs() + 1e-2)  # a first step with bias correction
    assert float((late_parameter - expected).abs().max()) <= max_rounding_error(1, expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_parameter_is_in_one_group_with_the_peak_learning_rate(name, architecture):
    model, optimizer = start(name, architecture)
    grouped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(grouped) == len({*grouped})
    assert {*grouped} == {*model.parameters()}
    assert all(group["lr"] == group["peak_lr"] == 1e-2 for group in optimizer.param_groups)


@pytest.mark.parametrize("is_wrapped", [True, False], ids=["wrapped", "bare"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_muon_updates_only_the_matrices_of_the_layers(architecture, is_wrapped):
    model = Wrapper(architecture)
    trained = model if is_wrapped else model.model
    optimizer = build_optimizer(trained, config_of("muon"))
    counts = {parameter: group["num_matrices"] for group in optimizer.param_groups for parameter in group["params"]}
    counts_by_name = {name: counts[parameter] for name, parameter in model.named_parameters() if counts[parameter]}
    names = {name for name, _ in model.named_parameters()}
    assert counts_by_name == {name: count for name, count in matrices_of(architecture).items() if name in names}
    assert len(counts_by_name) == 2 * (4 if architecture == "mosaicbert" else 6)


def test_muon_for_a_model_without_layers_is_an_error():
    with pytest.raises(ValueError, match="must have layers with matrices for muon, got Linear"):
        build_optimizer(nn.Linear(2, 2), config_of("muon"))


def matrix_with_singular_values(values, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(size, len(values), generator=generator, dtype=torch.float64)).Q
        for size in (rows, columns)
    )
    return left @ torch.diag(values) @ right.T, left, right


@pytest.mark.parametrize("rows, columns", [(24, 24), (24, 40), (40, 24)], ids=["square", "wide", "tall"])
def test_newton_schulz_applies_the_quintic_to_the_singular_values(rows, columns):
    values = torch.logspace(-3, 2, 24, dtype=torch.float64)
    matrix, left, right = matrix_with_singular_values(values, rows, columns, seed=5)
    expected = values / values.norm()
    for _ in range(5):
        expected = quintic(expected)
    difference = orthogonalize(matrix[None])[0] - left @ torch.diag(expected) @ right.T
    assert float(difference.abs().max()) <= 3.4445**5 * torch.finfo(torch.float64).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_newton_schulz_changes_singular_values_to_about_one(scale, dtype):
    values = torch.logspace(-2, 0, 48, dtype=torch.float64)  # none below 1/500 of the Frobenius norm
    for rows, columns in [(48, 48), (48, 96), (96, 48)]:
        matrix, _, _ = matrix_with_singular_values(scale * values, rows, columns, seed=5)
        singular_values = torch.linalg.svdvals(orthogonalize(matrix[None].to(dtype))[0].double())
        tolerance = 4.7750 * 1.2**3 * torch.finfo(dtype).eps  # rounding of the largest term of the quintic
        assert float(singular_values.min()) > 0.68 - tolerance
        assert float(singular_values.max()) < 1.21 + tolerance


def test_newton_schulz_does_not_change_zeros():
    assert torch.equal(orthogonalize(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


@pytest.mark.parametrize("rows, columns", [(32, 32), (48, 32), (32, 48)], ids=["square", "tall", "wide"])
def test_a_batch_of_matrices_is_orthogonalized_like_single_matrices(rows, columns):
    scales = torch.tensor([1e-3, 1.0, 1e3, 1.0, 5.0])
    batch = torch.randn(5, rows, columns, generator=torch.Generator().manual_seed(7)) * scales[:, None, None]
    batched = orthogonalize(batch)
    single = torch.cat([orthogonalize(matrix[None]) for matrix in batch])
    assert float((batched - single).abs().max()) <= 2 * 3.4445**5 * EPS


def _copy_tensors(model, optimizer):
    state_tensors = [value for state in optimizer.state.values() for value in state.values()]
    return [tensor.detach().clone() for tensor in [*model.parameters(), *state_tensors]]


@pytest.mark.parametrize("num_steps_before", [0, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_update_changes_neither_this_step_nor_later_ones(name, num_steps_before, device):
    model, reference_model = (Wrapper("mosaicbert").to(device) for _ in range(2))
    optimizer, reference = (build_optimizer(each, config_of(name)) for each in (model, reference_model))
    run(model, optimizer, range(num_steps_before))
    run(reference_model, reference, range(num_steps_before))
    before = _copy_tensors(model, optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    update_unless(torch.ones((), device=device), optimizer)
    assert all(torch.equal(*pair) for pair in zip(before, _copy_tensors(model, optimizer), strict=False))
    for each, optimizer_of in ((model, optimizer), (reference_model, reference)):
        for number, parameter in enumerate(each.parameters(), start=1):
            parameter.grad = torch.full_like(parameter, 0.1 * number)
        update_unless(torch.zeros((), device=device), optimizer_of)
    after = _copy_tensors(model, optimizer)
    assert all(torch.equal(*pair) for pair in zip(after, _copy_tensors(reference_model, reference), strict=True))
    num_parameters = len(list(model.parameters()))
    assert not any(torch.equal(*pair) for pair in zip(before[:num_parameters], after[:num_parameters], strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_does_not_wait_for_the_gpu(name):
    model = Wrapper("mosaicbert")
    optimizer = build_optimizer(model, config_of(name), torch.bfloat16)
    model.cuda()
    run(model, optimizer, range(2))
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(parameter.isfinite().all() for parameter in model.parameters())
