import pytest
import torch
import torch.nn.functional as F

from mosaicbert.ops.layer_norm import layer_norm
from tests.accuracy import assert_as_accurate

EPS = 1e-12


def formula(hidden, weight, bias):
    centred = hidden - hidden.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return centred * torch.rsqrt(variance + EPS) * weight + bias


def in_fp32(hidden, weight, bias):
    return F.layer_norm(hidden.float(), weight.shape, weight.float(), bias.float(), EPS).to(hidden.dtype)


def with_gradients(function, inputs, grad_out):
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    out = function(*inputs)
    return out.detach(), *torch.autograd.grad(out, inputs, grad_out.to(out.dtype))


def random_inputs(tokens, width, mean, device, dtype):
    generator = torch.Generator().manual_seed(7)
    shapes = ((tokens, width), (width,), (width,), (tokens, width))
    hidden, weight, bias, grad_out = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
    return [tensor.to(dtype) for tensor in (hidden + mean, 1 + 0.1 * weight, bias)], grad_out.to(dtype)


@pytest.mark.parametrize("tokens, width", [(1, 8), (7, 300)], ids=["one-token", "ragged"])
def test_layer_norm_equals_its_formula(tokens, width, device):
    inputs, grad_out = random_inputs(tokens, width, 1.0, device, torch.float64)
    truth = with_gradients(formula, inputs, grad_out)
    ours = with_gradients(lambda *tensors: layer_norm(*tensors, EPS), inputs, grad_out)
    torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("mean", [0.0, 100.0], ids=["centred", "large-mean"])
@pytest.mark.parametrize("tokens, width", [(1, 8), (7, 300), (3000, 64)], ids=["one-token", "ragged", "many-tokens"])
def test_layer_norm_is_as_accurate_as_one_computed_in_fp32(tokens, width, mean, dtype, device):
    inputs, grad_out = random_inputs(tokens, width, mean, device, dtype)
    truth = with_gradients(formula, [tensor.double() for tensor in inputs], grad_out.double())
    eager = with_gradients(in_fp32, inputs, grad_out)
    ours = with_gradients(lambda *tensors: layer_norm(*tensors, EPS), inputs, grad_out)
    for name, *values in zip(("out", "grad_hidden", "grad_weight", "grad_bias"), ours, eager, truth, strict=True):
        assert_as_accurate(name, *values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_under_autocast_the_output_is_in_the_autocasts_dtype(dtype, device):
    (hidden, weight, bias), _ = random_inputs(5, 64, 0.0, device, torch.float32)
    with torch.autocast(device, torch.bfloat16):
        assert layer_norm(hidden.to(dtype), weight, bias, EPS).dtype == torch.bfloat16


def test_under_autocast_the_gradients_of_fp32_parameters_are_fp32(device):
    (hidden, weight, bias), _ = random_inputs(5, 64, 0.0, device, torch.float32)
    weight.requires_grad_()
    with torch.autocast(device, torch.bfloat16):
        layer_norm(hidden, weight, bias, EPS).sum().backward()
    assert weight.grad.dtype == torch.float32


def test_on_a_cpu_the_gradients_of_fp32_parameters_are_summed_in_fp32():
    (hidden, weight, bias), grad_out = random_inputs(3000, 64, 1.0, "cpu", torch.bfloat16)
    inputs = [hidden, weight.float(), bias.float()]
    truth = with_gradients(formula, [tensor.double() for tensor in inputs], grad_out.double())
    eager = with_gradients(in_fp32, inputs, grad_out)
    with torch.autocast("cpu", torch.bfloat16):
        ours = with_gradients(lambda *tensors: layer_norm(*tensors, EPS), inputs, grad_out)
    for name, *values in zip(("grad_weight", "grad_bias"), ours[2:], eager[2:], truth[2:], strict=True):
        assert_as_accurate(name, *values)


def test_hidden_states_of_any_shape_are_normalised_along_the_last_dimension(device):
    (hidden, weight, bias), _ = random_inputs(12, 64, 0.0, device, torch.bfloat16)
    together = layer_norm(hidden.unflatten(0, (3, 4)), weight, bias, EPS)
    assert torch.equal(together.flatten(0, 1), layer_norm(hidden, weight, bias, EPS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_without_autocast_the_output_has_the_inputs_dtype(dtype, device):
    (hidden, weight, bias), _ = random_inputs(5, 64, 0.0, device, torch.float32)
    assert layer_norm(hidden.to(dtype), weight, bias, EPS).dtype == dtype
