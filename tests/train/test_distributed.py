"""Gathering and loading of the training state, and the gradient norm."""

import pytest
import torch
from torch import nn

from mosaicbert.config import ModelConfig, OptimizerConfig
from mosaicbert.model.factory import build_model
from mosaicbert.train.checkpoint.format import Checkpoint, read_checkpoint, write_checkpoint
from mosaicbert.train.composer_model import MaskedLmComposerModel
from mosaicbert.train.distributed import broadcast_state, gather_state, gradient_norm
from mosaicbert.train.optimizers import build_optimizer
from tests.recipes import TINY_MODEL

_OPTIMIZERS = ["decoupled_adamw", "stable_adamw", "muon"]
_ARCHITECTURES = ["mosaicbert", "bert"]


def _start(name, architecture, seed):
    torch.manual_seed(seed)
    model = MaskedLmComposerModel(build_model(ModelConfig(architecture=architecture, **TINY_MODEL)), torch.float32)
    return model, build_optimizer(model, OptimizerConfig(name=name, peak_lr=1e-2, weight_decay=0.1))


def _train(model, optimizer, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] / (step + 1)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def _settings(optimizer):
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    return [group | {"betas": tuple(group["betas"])} for group in groups]


def _assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            _assert_same(actual[name], value)
        else:
            assert (actual[name].dtype, actual[name].shape) == (value.dtype, value.shape), name
            assert torch.equal(actual[name], value), name


@pytest.mark.parametrize("architecture", _ARCHITECTURES)
@pytest.mark.parametrize("name", _OPTIMIZERS)
def test_training_continues_bit_for_bit_from_gathered_written_and_read_state(name, architecture, tmp_path):
    uninterrupted = _start(name, architecture, seed=1)
    _train(*uninterrupted, range(3))
    path = write_checkpoint(tmp_path, 3, Checkpoint(*gather_state(*uninterrupted), {}), keep=False)
    checkpoint = read_checkpoint(path)

    resumed = _start(name, architecture, seed=2)
    broadcast_state(*resumed, checkpoint.model, checkpoint.optimizer, has_updated=True)
    for actual, expected in zip(gather_state(*resumed), gather_state(*uninterrupted), strict=True):
        _assert_same(actual, expected)
    for pair in (uninterrupted, resumed):
        _train(*pair, range(3, 6))
    for actual, expected in zip(gather_state(*resumed), gather_state(*uninterrupted), strict=True):
        _assert_same(actual, expected)


@pytest.mark.parametrize("name", _OPTIMIZERS)
def test_a_restored_optimizer_has_the_learning_rate_and_weight_decay_of_its_recipe(name):
    trained = _start(name, "mosaicbert", seed=1)
    _train(*trained, range(2))
    resumed = _start(name, "mosaicbert", seed=2)
    before = _settings(resumed[1])
    broadcast_state(*resumed, *gather_state(*trained), has_updated=True)
    assert _settings(resumed[1]) == before


@pytest.mark.parametrize("name", _OPTIMIZERS)
def test_every_weight_is_gathered_under_its_name_with_its_optimizer_state(name):
    model, optimizer = _start(name, "mosaicbert", seed=1)
    _train(model, optimizer, range(1))
    weights, optimizer_state = gather_state(model, optimizer)
    _assert_same(weights, dict(model.state_dict()))
    assert optimizer_state.keys() == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        _assert_same(optimizer_state[name], optimizer.state[parameter])


@pytest.mark.parametrize("name", _OPTIMIZERS)
def test_an_optimizer_without_steps_has_no_state_after_it_is_restored(name):
    fresh, restored = (_start(name, "mosaicbert", seed=seed) for seed in (1, 2))
    weights, optimizer_state = gather_state(*fresh)
    assert optimizer_state == {}
    broadcast_state(*restored, weights, optimizer_state, has_updated=False)
    assert not restored[1].state
    for pair in (fresh, restored):
        _train(*pair, range(2))
    _assert_same(gather_state(*restored)[0], gather_state(*fresh)[0])


def test_tied_weights_are_still_tied_after_they_are_restored():
    trained, resumed = (_start("decoupled_adamw", "mosaicbert", seed=seed) for seed in (1, 2))
    _train(*trained, range(1))
    broadcast_state(*resumed, *gather_state(*trained), has_updated=True)
    num_resumed, num_trained = (len(list(model.parameters())) for model, _ in (resumed, trained))
    assert num_resumed == num_trained < len(resumed[0].state_dict())


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_the_gradient_norm_is_the_norm_of_all_gradients_together(scale):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 5))
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn_like(parameter)
    expected = torch.cat([parameter.grad.flatten().double() for parameter in model.parameters()]).norm()
    norm = gradient_norm(model)
    assert (norm.shape, norm.dtype) == ((), torch.float32)
    assert float(norm) == pytest.approx(float(expected), rel=1e-6)
    assert torch.equal(norm, torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf")))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_gradient_norm_is_not_finite_if_a_gradient_is_not(value):
    model = nn.Linear(30, 20)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.bias.grad[7] = value
    assert not gradient_norm(model).isfinite()


def test_weights_without_a_gradient_do_not_contribute_to_the_norm():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    model[0].bias.grad = torch.tensor([3.0, 4.0])
    assert float(gradient_norm(model)) == 5.0
