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
from mosaicbert.train.optimizers import build_optimizer, orthogonalise, update_unless
from tests.recipes import TINY_MODEL

OPTIMIZERS = ["decoupled_adamw", "stable_adamw", "muon"]
ARCHITECTURES = ["mosaicbert", "bert"]
SHARES = [0.25, 1.0, 0.6, 0.1, 0.5, 0.9]  # of the peak learning rate, step by step
GRADIENT_SIZES = [1e-3, 3e-2, 1.0, 0.5, 30.0, 2.0]  # jumps, which StableAdamW damps; the first are about eps
EPS = torch.finfo(torch.float32).eps

# What Muon takes of a layer, and how many matrices each of them holds.
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
    """Parameters' names begin with "model.", as in Composer's."""

    def __init__(self, architecture: str) -> None:
        super().__init__()
        torch.manual_seed(17)
        self.model = build_model(ModelConfig(architecture=architecture, **TINY_MODEL))


def matrices_of(architecture):
    return {f"{PREFIXES[architecture]}.{layer}.{end}": count for layer in range(2) for end, count in MATRICES.items()}


def config_of(name):
    return OptimizerConfig(name=name, peak_lr=1e-2, eps=1e-2, weight_decay=0.1)


def start(name, architecture="mosaicbert"):
    model = Wrapper(architecture)
    return model, build_optimizer(model, config_of(name), "cpu")


def gradients(model, step):
    """Random ones; the embeddings' are zero in most rows, as after a real batch."""
    generator = torch.Generator().manual_seed(step)
    grads = {}
    for name, parameter in model.named_parameters():
        grads[name] = GRADIENT_SIZES[step] * torch.randn(parameter.shape, generator=generator)
        if "word_embeddings" in name:
            grads[name][20:] = 0.0
    return grads


def run(model, optimizer, steps):
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * SHARES[step]
        grads = gradients(model, step)
        for name, parameter in model.named_parameters():
            parameter.grad = grads[name].to(parameter.device)
        optimizer.step()


def adamw_reference(config, share, step, weight, grad, state):
    beta1, beta2 = config.betas
    state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * grad
    state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * grad**2
    debiased_m, debiased_v = state["m"] / (1 - beta1**step), state["v"] / (1 - beta2**step)
    decayed = weight * (1 - config.weight_decay * share)
    return decayed - config.peak_lr * share * debiased_m / (debiased_v.sqrt() + config.eps)


def stable_adamw_reference(config, share, step, weight, grad, state):
    beta1, beta2 = (beta * (1 - beta ** (step - 1)) / (1 - beta**step) for beta in config.betas)
    state["v"] = beta1 * state.get("v", 0.0) + (1 - beta1) * grad
    state["u"] = beta2 * state.get("u", 0.0) + (1 - beta2) * grad**2
    rms = float((grad**2 / state["u"].clamp(min=config.eps**2)).mean().sqrt())
    state["largest_rms"] = max(rms, state.get("largest_rms", 0.0))
    share = share / max(1.0, rms)
    decayed = weight * (1 - config.weight_decay * share)
    return decayed - config.peak_lr * share * state["v"] / (state["u"].sqrt() + config.eps)


def quintic(value):
    return 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5


def muon_reference(config, share, weight, grad, state):
    """On one matrix, by its singular values: Newton-Schulz applies the quintic to each of them."""
    state["momentum"] = config.momentum * state.get("momentum", 0.0) + grad
    update = grad + config.momentum * state["momentum"]
    left, values, right = torch.linalg.svd(update / update.norm(), full_matrices=False)
    for _ in range(5):
        values = quintic(values)
    direction = left @ torch.diag(values) @ right
    decayed = weight * (1 - config.weight_decay * share)
    return decayed - config.peak_lr * share * 0.2 * math.sqrt(max(weight.shape)) * direction


def run_reference(name, model, architecture, num_steps):
    """The same steps in fp64, one tensor after the other. Returns the weights and what was remembered."""
    config = config_of(name)
    weights = {key: parameter.detach().double() for key, parameter in model.named_parameters()}
    states = {}
    for step in range(num_steps):
        for key, grad in gradients(model, step).items():
            weight, grad, share = weights[key], grad.double(), SHARES[step]
            if name == "muon" and key in matrices_of(architecture):
                parts = []
                count = matrices_of(architecture)[key]
                height = len(weight) // count
                for part in range(count):
                    rows = slice(part * height, (part + 1) * height)
                    state = states.setdefault((key, part), {})
                    parts.append(muon_reference(config, share, weight[rows], grad[rows], state))
                weights[key] = torch.cat(parts)
            else:
                reference = stable_adamw_reference if name == "stable_adamw" else adamw_reference
                weights[key] = reference(config, share, step + 1, weight, grad, states.setdefault(key, {}))
    return weights, states


def largest_rounding(num_steps, weight, is_matrix=False):
    """How far fp32 may be from the truth after some steps.

    A step rounds the weight twice: decay, subtraction. AdamW's update is about 1, of some ten roundings. Newton-Schulz
    multiplies the rounding of its input by the quintic's slope, 3.4445, in each of five iterations.
    """
    update = 0.2 * math.sqrt(max(weight.shape)) * 3.4445**5 if is_matrix else 10.0
    return num_steps * EPS * (float(weight.abs().max()) + 1e-2 * update)


def assert_equal_runs(first, second):
    (first_model, first_optimizer), (second_model, second_optimizer) = first, second
    for (name, ours), theirs in zip(first_model.named_parameters(), second_model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        ours, theirs = first_optimizer.state[ours], second_optimizer.state[theirs]
        assert ours.keys() == theirs.keys(), name
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


@pytest.mark.parametrize("num_steps", [1, len(SHARES)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_a_plain_loop(name, architecture, num_steps):
    model, optimizer = start(name, architecture)
    truth, states = run_reference(name, model, architecture, num_steps)
    run(model, optimizer, range(num_steps))
    if name == "stable_adamw" and num_steps > 1:
        assert max(state["largest_rms"] for state in states.values()) > 1.5  # or this test would not see the damping
    for key, parameter in model.named_parameters():
        error = float((parameter.double() - truth[key]).abs().max())
        is_matrix = name == "muon" and key in matrices_of(architecture)
        assert error <= largest_rounding(num_steps, truth[key], is_matrix), key


@pytest.mark.parametrize("num_steps", [1, len(SHARES)])
def test_decoupled_adamw_is_composers(num_steps):
    from composer.optim import DecoupledAdamW  # takes seconds to import

    model, optimizer = start("decoupled_adamw")
    config = config_of("decoupled_adamw")
    theirs = Wrapper("mosaicbert")
    composers = DecoupledAdamW(
        theirs.parameters(), config.peak_lr, config.betas, config.eps, weight_decay=config.weight_decay
    )
    for group in composers.param_groups:
        group["peak_lr"] = config.peak_lr
    run(model, optimizer, range(num_steps))
    run(theirs, composers, range(num_steps))
    for (key, ours), weight in zip(model.named_parameters(), theirs.parameters(), strict=True):
        assert float((ours - weight).abs().max()) <= 2 * largest_rounding(num_steps, weight), key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equal_runs_are_bitwise_equal(name):
    first, second = start(name), start(name)
    run(*first, range(6))
    run(*second, range(6))
    assert_equal_runs(first, second)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_continued_from_a_checkpoint_is_bitwise_the_uninterrupted_one(name, architecture):
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    straight = start(name, architecture)
    run(*straight, range(3))
    file = io.BytesIO()
    torch.save([straight[0].state_dict(), get_optimizer_state_dict(*straight, options=options)], file)
    run(*straight, range(3, 6))

    file.seek(0)
    weights, state = torch.load(file)
    continued = start(name, architecture)
    continued[0].load_state_dict(weights)
    set_optimizer_state_dict(*continued, optim_state_dict=state, options=options)
    run(*continued, range(3, 6))
    assert_equal_runs(straight, continued)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_model_learns_sixteen_sentences_by_heart(name, architecture):
    model = Wrapper(architecture).model.train()
    optimizer = build_optimizer(model, OptimizerConfig(name=name, peak_lr=1e-2), "cpu")
    input_ids = torch.randint(5, 512, (16, 6), generator=torch.Generator().manual_seed(3))
    labels = torch.full_like(input_ids, -100)
    labels[:, 2] = input_ids[:, 2]
    input_ids[:, 2] = 4

    def loss_of_step():
        optimizer.zero_grad()
        loss = model(input_ids, attention_mask=torch.ones_like(input_ids), labels=labels).loss
        loss.backward()
        return loss

    losses = [float(optimizer.step(loss_of_step)) for _ in range(100)]  # a closure, as Composer gives one
    assert losses[0] == pytest.approx(math.log(512), rel=0.1)
    assert losses[-1] < 0.5 * math.log(16)  # log(16): 16 equally likely answers, without a look at the context


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_without_gradients_changes_nothing(name):
    model, optimizer = start(name)
    untouched = start(name)
    run(model, optimizer, range(2))
    run(*untouched, range(2))
    for parameter in model.parameters():
        parameter.grad = None
    optimizer.step()
    assert_equal_runs((model, optimizer), untouched)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_parameter_without_gradient_is_left_alone(name):
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
    late = model.model.decoder.bias  # zeros
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    late.grad = None
    optimizer.step()
    late.grad = torch.linspace(-1.0, 1.0, len(late))
    optimizer.step()
    expected = -1e-2 * late.grad / (late.grad.abs() + 1e-2)  # a first step, of debiased moments
    assert float((late - expected).abs().max()) <= largest_rounding(1, expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_parameter_is_in_one_group_with_its_peak(name, architecture):
    model, optimizer = start(name, architecture)
    grouped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(grouped) == len({*grouped})
    assert {*grouped} == {*model.parameters()}
    assert all(group["lr"] == group["peak_lr"] == 1e-2 for group in optimizer.param_groups)


@pytest.mark.parametrize("inner", [False, True], ids=["wrapped", "bare"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_muon_takes_the_matrices_of_the_layers_and_nothing_else(architecture, inner):
    model = Wrapper(architecture)
    trained = model.model if inner else model
    optimizer = build_optimizer(trained, config_of("muon"), "cpu")
    counts = {parameter: group["num_matrices"] for group in optimizer.param_groups for parameter in group["params"]}
    by_name = {name: counts[parameter] for name, parameter in model.named_parameters() if counts[parameter]}
    named = {name for name, _ in model.named_parameters()}
    assert by_name == {name: count for name, count in matrices_of(architecture).items() if name in named}
    assert len(by_name) == 2 * (4 if architecture == "mosaicbert" else 6)


def test_muon_refuses_a_model_without_layers():
    with pytest.raises(ValueError, match="Linear has no matrices in layers for muon"):
        build_optimizer(nn.Linear(2, 2), config_of("muon"), "cpu")


def with_singular_values(values, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(size, len(values), generator=generator, dtype=torch.float64)).Q
        for size in (rows, columns)
    )
    return left @ torch.diag(values) @ right.T, left, right


@pytest.mark.parametrize("rows, columns", [(24, 24), (24, 40), (40, 24)], ids=["square", "wide", "tall"])
def test_newton_schulz_applies_its_quintic_to_the_singular_values(rows, columns):
    values = torch.logspace(-3, 2, 24, dtype=torch.float64)
    matrix, left, right = with_singular_values(values, rows, columns, seed=5)
    expected = values / values.norm()
    for _ in range(5):
        expected = quintic(expected)
    difference = orthogonalise(matrix[None])[0] - left @ torch.diag(expected) @ right.T
    assert float(difference.abs().max()) <= 3.4445**5 * torch.finfo(torch.float64).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_newton_schulz_brings_singular_values_near_one(size, dtype):
    values = torch.logspace(-2, 0, 48, dtype=torch.float64)  # none below 1/500 of the Frobenius norm
    for rows, columns in [(48, 48), (48, 96), (96, 48)]:
        matrix, _, _ = with_singular_values(size * values, rows, columns, seed=5)
        found = torch.linalg.svdvals(orthogonalise(matrix[None].to(dtype))[0].double())
        slack = 4.7750 * 1.2**3 * torch.finfo(dtype).eps  # the quintic's largest term is rounded
        assert float(found.min()) > 0.68 - slack
        assert float(found.max()) < 1.21 + slack


def test_newton_schulz_leaves_zeros_as_they_are():
    assert torch.equal(orthogonalise(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


@pytest.mark.parametrize("rows, columns", [(32, 32), (48, 32), (32, 48)], ids=["square", "tall", "wide"])
def test_a_batch_of_matrices_is_orthogonalised_as_one_by_one(rows, columns):
    sizes = torch.tensor([1e-3, 1.0, 1e3, 1.0, 5.0])
    batch = torch.randn(5, rows, columns, generator=torch.Generator().manual_seed(7)) * sizes[:, None, None]
    together = orthogonalise(batch)
    apart = torch.cat([orthogonalise(matrix[None]) for matrix in batch])
    assert float((together - apart).abs().max()) <= 2 * 3.4445**5 * EPS


def _bits(model, optimizer):
    kept = [value for state in optimizer.state.values() for value in state.values()]
    return [tensor.detach().clone() for tensor in [*model.parameters(), *kept]]


@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_that_is_withheld_changes_nothing_then_or_later(name, steps_before, device):
    ours, theirs = (Wrapper("mosaicbert").to(device) for _ in range(2))
    optimizer, other = (build_optimizer(model, config_of(name), device) for model in (ours, theirs))
    run(ours, optimizer, range(steps_before))
    run(theirs, other, range(steps_before))
    before = _bits(ours, optimizer)
    for parameter in ours.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    update_unless(torch.ones((), device=device), optimizer)
    assert all(torch.equal(*pair) for pair in zip(before, _bits(ours, optimizer), strict=False))
    for model, optimizer_of in ((ours, optimizer), (theirs, other)):
        for number, parameter in enumerate(model.parameters(), start=1):
            parameter.grad = torch.full_like(parameter, 0.1 * number)
        update_unless(torch.zeros((), device=device), optimizer_of)
    after = _bits(ours, optimizer)
    assert all(torch.equal(*pair) for pair in zip(after, _bits(theirs, other), strict=True))
    num_parameters = len(list(ours.parameters()))
    assert not any(torch.equal(*pair) for pair in zip(before[:num_parameters], after[:num_parameters], strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_does_not_wait_for_the_gpu(name):
    model = Wrapper("mosaicbert")
    optimizer = build_optimizer(model, config_of(name), "cuda")
    model.cuda()
    run(model, optimizer, range(2))
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(parameter.isfinite().all() for parameter in model.parameters())
