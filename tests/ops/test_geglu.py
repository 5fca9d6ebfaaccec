import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mosaicbert.ops.geglu import geglu, geglu_reference
from tests.accuracy import assert_as_accurate

pytest.importorskip("triton")
from mosaicbert.ops import geglu_kernels as kernels

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
SHAPES = [(1, 1), (7, 300), (4, 1025)]
SHAPE_NAMES = ["smallest", "ragged", "two-blocks"]


def formula(gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    return 0.5 * gate * (1 + torch.erf(gate / math.sqrt(2))) * up


def with_gradient(function, gate_up, grad_out):
    gate_up = gate_up.detach().requires_grad_()
    out = function(gate_up)
    (gradient,) = torch.autograd.grad(out, gate_up, grad_out.to(out.dtype))
    return out.detach(), gradient


def random_inputs(tokens, width, device, dtype):
    generator = torch.Generator().manual_seed(5)
    gate_up = 3 * torch.randn(tokens, 2 * width, generator=generator).to(device, dtype)
    return gate_up, torch.randn(tokens, width, generator=generator).to(device, dtype)


def seed_on(device, seed=2**62 + 17):
    return torch.tensor(seed, device=device)


def keep_mask_of(seed, tokens, width, dropout_p):
    """Return the dropout mask of the kernel, from an input whose outputs are all gelu(1) before dropout."""
    return kernels.geglu(torch.ones(tokens, 2 * width, device=seed.device), dropout_p, seed) != 0


@pytest.fixture
def large_gpu():
    if torch.cuda.get_device_properties("cuda").total_memory < 40e9:
        pytest.skip("requires 40 GB of GPU memory")
    return "cuda"


@DTYPES
@pytest.mark.parametrize("tokens, width", SHAPES, ids=SHAPE_NAMES)
def test_geglu_is_as_accurate_as_the_formula(tokens, width, dtype, device):
    gate_up, grad_out = random_inputs(tokens, width, device, dtype)
    expected = with_gradient(formula, gate_up.double(), grad_out)
    eager = with_gradient(formula, gate_up, grad_out)
    actual = with_gradient(geglu, gate_up, grad_out)
    for name, *values in zip(("out", "grad_gate_up"), actual, eager, expected, strict=True):
        assert_as_accurate(name, *values)


@DTYPES
@pytest.mark.parametrize("tokens, width", SHAPES, ids=SHAPE_NAMES)
def test_the_kernel_is_as_accurate_as_eager(tokens, width, dtype, device):
    gate_up, grad_out = random_inputs(tokens, width, device, dtype)
    expected = with_gradient(geglu_reference, gate_up.double(), grad_out)
    eager = with_gradient(geglu_reference, gate_up, grad_out)
    actual = with_gradient(lambda gate_up: kernels.geglu(gate_up, 0.0, None), gate_up, grad_out)
    for name, *values in zip(("out", "grad_gate_up"), actual, eager, expected, strict=True):
        assert_as_accurate(name, *values)


@DTYPES
@pytest.mark.parametrize("tokens, width", SHAPES, ids=SHAPE_NAMES)
def test_with_dropout_the_kernel_is_as_accurate_as_eager_with_the_same_mask(tokens, width, dtype, device):
    gate_up, grad_out = random_inputs(tokens, width, device, dtype)
    seed = seed_on(device)
    keep_mask = keep_mask_of(seed, tokens, width, 0.3)

    def masked(gate_up):
        return geglu_reference(gate_up) * keep_mask / 0.7

    expected = with_gradient(masked, gate_up.double(), grad_out)
    eager = with_gradient(masked, gate_up, grad_out)
    actual = with_gradient(lambda gate_up: kernels.geglu(gate_up, 0.3, seed), gate_up, grad_out)
    for name, *values in zip(("out", "grad_gate_up"), actual, eager, expected, strict=True):
        assert_as_accurate(name, *values)


def test_non_contiguous_inputs_give_the_same_result(device):
    gate_up, grad_out = random_inputs(6, 20, device, torch.float32)
    strided = torch.stack([gate_up, gate_up], dim=-1)[..., 0]
    grad_strided = grad_out.t().contiguous().t()
    actual = with_gradient(lambda gate_up: kernels.geglu(gate_up, 0.0, None), gate_up, grad_out)
    for result, expected in zip(
        with_gradient(lambda gate_up: kernels.geglu(gate_up, 0.0, None), strided, grad_strided), actual, strict=True
    ):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("dropout_p", [0.1, 0.5, 0.9])
def test_the_fraction_of_dropped_elements_is_dropout_p(dropout_p, device):
    tokens, width = 40, 1000
    is_dropped = ~keep_mask_of(seed_on(device), tokens, width, dropout_p)
    deviation = math.sqrt(dropout_p * (1 - dropout_p))
    assert abs(float(is_dropped.double().mean()) - dropout_p) < 4 * deviation / math.sqrt(tokens * width)
    for dim, count in ((0, tokens), (1, width)):  # in every row and column
        assert (is_dropped.double().mean(dim) - dropout_p).abs().max() < 6 * deviation / math.sqrt(count)


def test_elements_are_dropped_independently(device):
    is_dropped = ~keep_mask_of(seed_on(device), 20, 2048, 0.5)
    row_matches = [is_dropped[:, lag:] == is_dropped[:, :-lag] for lag in (1, 2, 3, 4, 1024)]  # 1024 is the block size
    for is_equal in (*row_matches, is_dropped[1:] == is_dropped[:-1]):
        assert abs(float(is_equal.double().mean()) - 0.5) < 4 * 0.5 / math.sqrt(is_equal.numel())


def test_calls_with_one_seed_are_bit_identical(device):
    gate_up, grad_out = random_inputs(7, 300, device, torch.float32)
    first, second = (
        with_gradient(lambda gate_up: kernels.geglu(gate_up, 0.1, seed_on(device)), gate_up, grad_out) for _ in range(2)
    )
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("other_seed", [18, 17 + 2**32], ids=["low-bits", "high-bits"])
def test_different_seeds_give_independent_masks(other_seed, device):
    is_equal = keep_mask_of(seed_on(device, 17), 40, 500, 0.5) == keep_mask_of(
        seed_on(device, other_seed), 40, 500, 0.5
    )
    assert abs(float(is_equal.double().mean()) - 0.5) < 4 * 0.5 / math.sqrt(is_equal.numel())


@pytest.mark.parametrize("seed", [None, 3], ids=["no-dropout", "dropout"])
def test_the_operators_pass_opcheck(seed, device):
    gate_up, grad_out = random_inputs(3, 20, device, torch.float32)
    seed = None if seed is None else seed_on(device, seed)
    torch.library.opcheck(kernels.geglu, (gate_up.requires_grad_(), 0.1, seed))
    torch.library.opcheck(kernels.geglu_backward, (grad_out, gate_up.detach(), 0.1, seed))


@pytest.mark.parametrize("seed", [None, 3], ids=["no-dropout", "dropout"])
def test_torch_compile_captures_the_kernel_in_one_graph(seed, device):
    gate_up, grad_out = random_inputs(3, 20, device, torch.float32)
    seed = None if seed is None else seed_on(device, seed)

    def scaled_geglu(gate_up):
        return 2 * kernels.geglu(gate_up, 0.1, seed)

    compiled = torch.compile(scaled_geglu, fullgraph=True, backend="aot_eager")
    actual, expected = with_gradient(compiled, gate_up, grad_out), with_gradient(scaled_geglu, gate_up, grad_out)
    assert all(map(torch.equal, actual, expected))


def test_torch_compile_traces_the_reference_in_one_graph(device):
    gate_up, grad_out = random_inputs(3, 20, device, torch.float32)
    compiled = torch.compile(geglu, fullgraph=True, backend="aot_eager")
    actual, expected = with_gradient(compiled, gate_up, grad_out), with_gradient(geglu_reference, gate_up, grad_out)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_dropout_on_the_cpu_equals_a_separate_dropout_module(dtype):
    gate_up, grad_out = random_inputs(7, 300, "cpu", dtype)
    dropout = nn.Dropout(0.1)

    def separate_modules(gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return dropout(F.gelu(gate) * up)

    results = []
    for function in (lambda gate_up: geglu(gate_up, 0.1), separate_modules):
        torch.manual_seed(11)
        results.append((*with_gradient(function, gate_up, grad_out), torch.get_rng_state()))
    assert all(map(torch.equal, *results))


@DTYPES
@pytest.mark.parametrize("tokens, width", [(0, 20), *SHAPES], ids=["empty", *SHAPE_NAMES])
def test_on_the_cpu_outputs_and_gradients_equal_the_reference_bit_for_bit(tokens, width, dtype):
    gate_up, grad_out = random_inputs(tokens, width, "cpu", dtype)
    actual, expected = (with_gradient(function, gate_up, grad_out) for function in (geglu, geglu_reference))
    assert all(map(torch.equal, actual, expected))


def test_an_empty_batch_gives_an_empty_output(device):
    gate_up, grad_out = random_inputs(0, 20, device, torch.float32)
    out, gradient = with_gradient(lambda gate_up: kernels.geglu(gate_up, 0.0, None), gate_up, grad_out)
    assert out.shape == (0, 20) and gradient.shape == (0, 40)


def test_the_first_half_of_the_features_is_the_gate(device):
    # gelu(0) * 5 = 0 and gelu(2) * 1 = 1.9545.
    gate_up = torch.tensor([[0.0, 2.0, 5.0, 1.0]], device=device)
    assert geglu(gate_up).tolist() == [[0.0, pytest.approx(1.9544997)]]


@pytest.mark.parametrize("shape", [(8,), (2, 3, 8), (3, 7)], ids=["flat", "padded", "odd"])
def test_an_input_of_another_shape_than_t_2f_is_an_error(shape, device):
    with pytest.raises(ValueError, match=r"`geglu` input must be \(T, 2F\), got \(.*\)\. Flatten"):
        geglu(torch.zeros(shape, device=device))


@pytest.mark.gpu
def test_tensors_of_more_than_2_to_the_31_elements_are_supported(large_gpu):
    gate_up = torch.randn(3 * 2**19, 2 * 1536, device=large_gpu, dtype=torch.bfloat16)
    out = kernels.geglu(gate_up, 0.0, None)
    assert out.numel() > 2**31
    assert torch.equal(out[-5:], kernels.geglu(gate_up[-5:], 0.0, None))
    gradient = kernels.geglu_backward(out, gate_up, 0.0, None)
    assert torch.equal(gradient[-5:], kernels.geglu_backward(out[-5:], gate_up[-5:], 0.0, None))
