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
    return model, build_optimizer(model, OptimizerConfig(name=name, peak_lr=1e-2, weight_decay=0.1), "cpu")


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


def _assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if isinstance(value, dict):
            _assert_same(ours[name], value)
        else:
            assert (ours[name].dtype, ours[name].shape) == (value.dtype, value.shape), name
            assert torch.equal(ours[name], value), name


@pytest.mark.parametrize("architecture", _ARCHITECTURES)
@pytest.mark.parametrize("name", _OPTIMIZERS)
def test_training_goes_on_bit_for_bit_from_what_was_gathered_written_and_read(name, architecture, tmp_path):
    whole = _start(name, architecture, seed=1)
    _train(*whole, range(3))
    path = write_checkpoint(tmp_path, 3, Checkpoint(*gather_state(*whole), {}), keep=False)
    read = read_checkpoint(path)

    resumed = _start(name, architecture, seed=2)
    broadcast_state(*resumed, read.model, read.optimizer, has_updated=True)
    for ours, theirs in zip(gather_state(*resumed), gather_state(*whole), strict=True):
        _assert_same(ours, theirs)
    for pair in (whole, resumed):
        _train(*pair, range(3, 6))
    for ours, theirs in zip(gather_state(*resumed), gather_state(*whole), strict=True):
        _assert_same(ours, theirs)


@pytest.mark.parametrize("name", _OPTIMIZERS)
def test_a_restored_optimizer_has_the_rates_and_the_decay_of_its_recipe(name):
    trained = _start(name, "mosaicbert", seed=1)
    _train(*trained, range(2))
    resumed = _start(name, "mosaicbert", seed=2)
    before = _settings(resumed[1])
    broadcast_state(*resumed, *gather_state(*trained), has_updated=True)
    assert _settings(resumed[1]) == before


@pytest.mark.parametrize("name", _OPTIMIZERS)
def test_every_weight_is_gathered_under_its_name_with_what_the_optimizer_keeps_of_it(name):
    model, optimizer = _start(name, "mosaicbert", seed=1)
    _train(model, optimizer, range(1))
    weights, kept = gather_state(model, optimizer)
    _assert_same(weights, dict(model.state_dict()))
    assert kept.keys() == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        _assert_same(kept[name], optimizer.state[parameter])


@pytest.mark.parametrize("name", _OPTIMIZERS)
def test_an_optimizer_that_has_done_nothing_is_gathered_and_restored_as_such(name):
    fresh, restored = (_start(name, "mosaicbert", seed=seed) for seed in (1, 2))
    weights, kept = gather_state(*fresh)
    assert kept == {}
    broadcast_state(*restored, weights, kept, has_updated=False)
    assert not restored[1].state
    for pair in (fresh, restored):
        _train(*pair, range(2))
    _assert_same(gather_state(*restored)[0], gather_state(*fresh)[0])


def test_restoring_leaves_tied_weights_tied():
    trained, resumed = (_start("decoupled_adamw", "mosaicbert", seed=seed) for seed in (1, 2))
    _train(*trained, range(1))
    broadcast_state(*resumed, *gather_state(*trained), has_updated=True)
    ours, theirs = (len(list(model.parameters())) for model, _ in (resumed, trained))
    assert ours == theirs < len(resumed[0].state_dict())


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e15])
def test_the_gradient_norm_is_that_of_all_gradients_together(size):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 5))
    for parameter in model.parameters():
        parameter.grad = size * torch.randn_like(parameter)
    wanted = torch.cat([parameter.grad.flatten().double() for parameter in model.parameters()]).norm()
    found = gradient_norm(model)
    assert (found.shape, found.dtype) == ((), torch.float32)
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)
    assert torch.equal(found, torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf")))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_gradient_norm_is_not_finite_if_a_gradient_is_not(bad):
    model = nn.Linear(30, 20)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.bias.grad[7] = bad
    assert not gradient_norm(model).isfinite()


def test_weights_without_a_gradient_do_not_count():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    model[0].bias.grad = torch.tensor([3.0, 4.0])
    assert float(gradient_norm(model)) == 5.0
