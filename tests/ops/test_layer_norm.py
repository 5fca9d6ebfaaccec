import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mosaicbert.ops.layer_norm import dropout_add_layer_norm, dropout_add_layer_norm_reference, layer_norm
from tests.accuracy import assert_as_accurate

pytest.importorskip("triton")
from mosaicbert.ops import layer_norm_kernels as kernels

EPS = 1e-12
RESIDUAL_RESULTS = ("out", "grad_hidden", "grad_residual", "grad_weight", "grad_bias")
RESIDUAL_SHAPES = pytest.mark.parametrize(
    "tokens, width", [(1, 8), (7, 300), (2, 1025), (150, 64)], ids=["one-token", "ragged", "wide", "many-tokens"]
)


def formula(hidden, weight, bias):
    centered = hidden - hidden.mean(dim=-1, keepdim=True)
    variance = centered.square().mean(dim=-1, keepdim=True)
    return centered * torch.rsqrt(variance + EPS) * weight + bias


def fp32_layer_norm(hidden, weight, bias):
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
def test_layer_norm_equals_the_formula(tokens, width, device):
    inputs, grad_out = random_inputs(tokens, width, 1.0, device, torch.float64)
    expected = with_gradients(formula, inputs, grad_out)
    actual = with_gradients(lambda *tensors: layer_norm(*tensors, EPS), inputs, grad_out)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("mean", [0.0, 100.0], ids=["centered", "large-mean"])
@pytest.mark.parametrize("tokens, width", [(1, 8), (7, 300), (3000, 64)], ids=["one-token", "ragged", "many-tokens"])
def test_layer_norm_is_as_accurate_as_in_fp32(tokens, width, mean, dtype, device):
    inputs, grad_out = random_inputs(tokens, width, mean, device, dtype)
    expected = with_gradients(formula, [tensor.double() for tensor in inputs], grad_out.double())
    eager = with_gradients(fp32_layer_norm, inputs, grad_out)
    actual = with_gradients(lambda *tensors: layer_norm(*tensors, EPS), inputs, grad_out)
    for name, *values in zip(("out", "grad_hidden", "grad_weight", "grad_bias"), actual, eager, expected, strict=True):
        assert_as_accurate(name, *values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_output_under_autocast_has_the_autocast_dtype(dtype, device):
    (hidden, weight, bias), _ = random_inputs(5, 64, 0.0, device, torch.float32)
    with torch.autocast(device, torch.bfloat16):
        assert layer_norm(hidden.to(dtype), weight, bias, EPS).dtype == torch.bfloat16


def test_gradients_of_fp32_parameters_under_autocast_are_fp32(device):
    (hidden, weight, bias), _ = random_inputs(5, 64, 0.0, device, torch.float32)
    weight.requires_grad_()
    with torch.autocast(device, torch.bfloat16):
        layer_norm(hidden, weight, bias, EPS).sum().backward()
    assert weight.grad.dtype == torch.float32


def test_gradients_of_fp32_parameters_on_the_cpu_are_summed_in_fp32():
    (hidden, weight, bias), grad_out = random_inputs(3000, 64, 1.0, "cpu", torch.bfloat16)
    inputs = [hidden, weight.float(), bias.float()]
    expected = with_gradients(formula, [tensor.double() for tensor in inputs], grad_out.double())
    eager = with_gradients(fp32_layer_norm, inputs, grad_out)
    with torch.autocast("cpu", torch.bfloat16):
        actual = with_gradients(lambda *tensors: layer_norm(*tensors, EPS), inputs, grad_out)
    for name, *values in zip(("grad_weight", "grad_bias"), actual[2:], eager[2:], expected[2:], strict=True):
        assert_as_accurate(name, *values)


def test_hidden_states_of_any_shape_are_normalized_along_the_last_dimension(device):
    (hidden, weight, bias), _ = random_inputs(12, 64, 0.0, device, torch.bfloat16)
    together = layer_norm(hidden.unflatten(0, (3, 4)), weight, bias, EPS)
    assert torch.equal(together.flatten(0, 1), layer_norm(hidden, weight, bias, EPS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_output_without_autocast_has_the_dtype_of_the_input(dtype, device):
    (hidden, weight, bias), _ = random_inputs(5, 64, 0.0, device, torch.float32)
    assert layer_norm(hidden.to(dtype), weight, bias, EPS).dtype == dtype


@pytest.fixture
def large_gpu():
    if torch.cuda.get_device_properties("cuda").total_memory < 40e9:
        pytest.skip("requires 40 GB of GPU memory")
    return "cuda"


def random_residual_inputs(tokens, width, mean, device, dtype):
    (hidden, weight, bias), grad_out = random_inputs(tokens, width, mean, device, dtype)
    residual = torch.randn(tokens, width, generator=torch.Generator().manual_seed(8)).to(device, dtype)
    return [hidden, residual, weight, bias], grad_out


def residual_formula(hidden, residual, weight, bias):
    return formula(hidden + residual, weight, bias)


def eager_residual_norm(hidden, residual, weight, bias):
    return fp32_layer_norm(hidden + residual, weight, bias)


def run_kernel(dropout_p=0.0, seed=None):
    return lambda *tensors: kernels.dropout_add_layer_norm(*tensors, EPS, dropout_p, seed, True)[0]


def seed_on(device, seed=2**62 + 17):
    return torch.tensor(seed, device=device)


def keep_mask_of(seed, tokens, width, dropout_p):
    """Return the dropout mask of the kernel, from rows of ones, whose kept elements are above the mean of the row."""
    ones, zeros = torch.ones(tokens, width, device=seed.device), torch.zeros(tokens, width, device=seed.device)
    affine = (torch.ones(width, device=seed.device), torch.zeros(width, device=seed.device))
    out, *_ = kernels.dropout_add_layer_norm(ones, zeros, *affine, EPS, dropout_p, seed, False)
    return out > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("mean", [0.0, 100.0], ids=["centered", "large-mean"])
@RESIDUAL_SHAPES
def test_the_kernel_is_as_accurate_as_eager(tokens, width, mean, dtype, device):
    inputs, grad_out = random_residual_inputs(tokens, width, mean, device, dtype)
    expected = with_gradients(residual_formula, [tensor.double() for tensor in inputs], grad_out.double())
    eager = with_gradients(eager_residual_norm, inputs, grad_out)
    actual = with_gradients(run_kernel(), inputs, grad_out)
    for name, *values in zip(RESIDUAL_RESULTS, actual, eager, expected, strict=True):
        assert_as_accurate(name, *values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("tokens, width", [(7, 300), (2, 1025), (150, 64)], ids=["ragged", "wide", "many-tokens"])
def test_with_dropout_the_kernel_is_as_accurate_as_eager_with_the_same_mask(tokens, width, dtype, device):
    inputs, grad_out = random_residual_inputs(tokens, width, 1.0, device, dtype)
    seed = seed_on(device)
    keep_mask = keep_mask_of(seed, tokens, width, 0.3)

    def masked(function):
        return lambda hidden, *others: function(hidden * keep_mask / 0.7, *others)

    expected = with_gradients(masked(residual_formula), [tensor.double() for tensor in inputs], grad_out.double())
    eager = with_gradients(masked(eager_residual_norm), inputs, grad_out)
    actual = with_gradients(run_kernel(0.3, seed), inputs, grad_out)
    for name, *values in zip(RESIDUAL_RESULTS, actual, eager, expected, strict=True):
        assert_as_accurate(name, *values)
    assert torch.equal(actual[1] != 0, keep_mask & (actual[2] != 0))


@pytest.mark.parametrize("dropout_p", [0.1, 0.5])
def test_the_fraction_of_dropped_elements_is_dropout_p(dropout_p, device):
    tokens, width = 100, 500
    is_dropped = ~keep_mask_of(seed_on(device), tokens, width, dropout_p)
    deviation = math.sqrt(dropout_p * (1 - dropout_p))
    assert abs(float(is_dropped.double().mean()) - dropout_p) < 4 * deviation / math.sqrt(tokens * width)
    for dim, count in ((0, tokens), (1, width)):  # in every row and column
        assert (is_dropped.double().mean(dim) - dropout_p).abs().max() < 6 * deviation / math.sqrt(count)


def test_one_seed_gives_identical_bits_and_different_seeds_independent_masks(device):
    inputs, grad_out = random_residual_inputs(50, 64, 0.0, device, torch.float32)
    first, repeated, other_seed_result = (
        with_gradients(run_kernel(0.5, seed_on(device, seed)), inputs, grad_out) for seed in (17, 17, 18)
    )
    assert all(map(torch.equal, first, repeated))
    is_equal = (first[1] != 0) == (other_seed_result[1] != 0)
    assert abs(float(is_equal.double().mean()) - 0.5) < 4 * 0.5 / math.sqrt(is_equal.numel())


def test_gradients_of_fp32_parameters_are_fp32_and_as_accurate_as_eager(device):
    inputs, grad_out = random_residual_inputs(150, 64, 1.0, device, torch.bfloat16)
    inputs[2:] = [tensor.float() for tensor in inputs[2:]]
    expected = with_gradients(residual_formula, [tensor.double() for tensor in inputs], grad_out.double())
    eager = with_gradients(eager_residual_norm, inputs, grad_out)
    actual = with_gradients(run_kernel(), inputs, grad_out)
    for name, *values in zip(RESIDUAL_RESULTS, actual, eager, expected, strict=True):
        assert_as_accurate(name, *values)


def test_non_contiguous_inputs_give_the_same_result(device):
    inputs, grad_out = random_residual_inputs(7, 300, 0.0, device, torch.float32)
    strided = [torch.stack([tensor, tensor], dim=-1)[..., 0] for tensor in inputs]
    actual = with_gradients(run_kernel(), strided, grad_out.t().contiguous().t())
    assert all(map(torch.equal, actual, with_gradients(run_kernel(), inputs, grad_out)))


def test_an_empty_batch_gives_an_empty_output_and_zero_gradients(device):
    inputs, grad_out = random_residual_inputs(0, 64, 0.0, device, torch.float32)
    out, *_, grad_bias = with_gradients(run_kernel(), inputs, grad_out)
    assert out.shape == (0, 64) and not grad_bias.any()


def test_a_hidden_size_above_the_maximum_is_an_error(device):
    inputs, _ = random_residual_inputs(1, 8193, 0.0, device, torch.float32)
    with pytest.raises(ValueError, match="`hidden_size` must be at most 8192 for the LayerNorm kernel, got 8193"):
        run_kernel()(*inputs)


def test_no_tensors_are_saved_without_a_backward_pass(device):
    inputs, _ = random_residual_inputs(7, 300, 0.0, device, torch.float32)
    out, normed, rstd = kernels.dropout_add_layer_norm(*inputs, EPS, 0.0, None, False)
    assert torch.equal(out, run_kernel()(*inputs)) and normed.numel() == rstd.numel() == 0


@pytest.mark.parametrize("seed", [None, 3], ids=["no-dropout", "dropout"])
def test_the_operators_pass_opcheck(seed, device):
    inputs, grad_out = random_residual_inputs(3, 20, 0.0, device, torch.float32)
    rest = (0.1, None if seed is None else seed_on(device, seed))
    torch.library.opcheck(kernels.dropout_add_layer_norm, (*inputs, EPS, *rest, True))
    torch.library.opcheck(
        kernels.dropout_add_layer_norm_backward, (grad_out, inputs[0], inputs[0][:, 0].clone(), inputs[2], *rest)
    )


@pytest.mark.parametrize("seed", [None, 3], ids=["no-dropout", "dropout"])
def test_torch_compile_captures_the_kernel_in_one_graph(seed, device):
    inputs, grad_out = random_residual_inputs(3, 20, 0.0, device, torch.float32)
    step = run_kernel(0.1, None if seed is None else seed_on(device, seed))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    actual, expected = with_gradients(compiled, inputs, grad_out), with_gradients(step, inputs, grad_out)
    assert all(map(torch.equal, actual, expected))


def test_torch_compile_traces_the_reference_in_one_graph(device):
    inputs, grad_out = random_residual_inputs(3, 20, 0.0, device, torch.float32)
    compiled = torch.compile(dropout_add_layer_norm, fullgraph=True, backend="aot_eager")
    actual = with_gradients(lambda *tensors: compiled(*tensors, EPS), inputs, grad_out)
    expected = with_gradients(lambda *tensors: dropout_add_layer_norm_reference(*tensors, EPS), inputs, grad_out)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_the_fused_operation_on_the_cpu_equals_three_modules(dropout_p, autocast):
    inputs, grad_out = random_residual_inputs(7, 300, 1.0, "cpu", torch.float32)
    if autocast:
        inputs[:2] = [tensor.bfloat16() for tensor in inputs[:2]]
    dropout = nn.Dropout(dropout_p)
    results = []
    for function in (
        lambda *tensors: dropout_add_layer_norm(*tensors, EPS, dropout_p),
        lambda hidden, residual, weight, bias: layer_norm(dropout(hidden) + residual, weight, bias, EPS),
    ):
        torch.manual_seed(11)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            results.append((*with_gradients(function, inputs, grad_out), torch.get_rng_state()))
    assert all(map(torch.equal, *results))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_many_rows_per_program_are_as_accurate_as_eager(dtype):
    inputs, grad_out = random_residual_inputs(100_000, 300, 1.0, "cuda", dtype)
    expected = with_gradients(residual_formula, [tensor.double() for tensor in inputs], grad_out.double())
    eager = with_gradients(eager_residual_norm, inputs, grad_out)
    actual = with_gradients(run_kernel(), inputs, grad_out)
    for name, *values in zip(RESIDUAL_RESULTS, actual, eager, expected, strict=True):
        assert_as_accurate(name, *values)


@pytest.mark.gpu
def test_tensors_of_more_than_2_to_the_31_elements_are_supported(large_gpu):
    hidden = torch.randn(3 * 2**20, 768, device=large_gpu, dtype=torch.bfloat16)
    assert hidden.numel() > 2**31
    affine = torch.randn(2, 768, device=large_gpu).unbind()
    out, normed, rstd = kernels.dropout_add_layer_norm(hidden, hidden, *affine, EPS, 0.0, None, True)
    tail = kernels.dropout_add_layer_norm(hidden[-5:], hidden[-5:], *affine, EPS, 0.0, None, True)
    assert all(map(torch.equal, (out[-5:], normed[-5:], rstd[-5:]), tail))
    gradient, *_ = kernels.dropout_add_layer_norm_backward(hidden, normed, rstd, affine[0], 0.0, None)
    expected, *_ = kernels.dropout_add_layer_norm_backward(hidden[-5:], *tail[1:], affine[0], 0.0, None)
    assert torch.equal(gradient[-5:], expected)
