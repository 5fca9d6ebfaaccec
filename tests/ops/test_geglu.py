import math

import pytest
import torch

from mosaicbert.ops.geglu import geglu
from tests.accuracy import assert_as_accurate


def formula(gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    return 0.5 * gate * (1 + torch.erf(gate / math.sqrt(2))) * up


def with_gradient(function, gate_up, grad_out):
    gate_up = gate_up.detach().requires_grad_()
    out = function(gate_up)
    (gradient,) = torch.autograd.grad(out, gate_up, grad_out.to(out.dtype))
    return out.detach(), gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("tokens, width", [(1, 1), (7, 300), (4, 1025)], ids=["smallest", "ragged", "wide"])
def test_geglu_is_as_accurate_as_its_formula(tokens, width, dtype, device):
    generator = torch.Generator().manual_seed(5)
    gate_up = 3 * torch.randn(tokens, 2 * width, generator=generator).to(device, dtype)
    grad_out = torch.randn(tokens, width, generator=generator).to(device, dtype)
    truth = with_gradient(formula, gate_up.double(), grad_out)
    eager = with_gradient(formula, gate_up, grad_out)
    ours = with_gradient(geglu, gate_up, grad_out)
    for name, *values in zip(("out", "grad_gate_up"), ours, eager, truth, strict=True):
        assert_as_accurate(name, *values)


def test_the_first_half_is_the_gate(device):
    # gelu(0) = 0, while up = 0 leaves the gradient of up at gelu(gate).
    gate_up = torch.tensor([[0.0, 2.0, 5.0, 1.0]], device=device)
    assert geglu(gate_up).tolist() == [[0.0, pytest.approx(1.9544997)]]


@pytest.mark.parametrize("shape", [(8,), (2, 3, 8), (3, 7)], ids=["flat", "padded", "odd"])
def test_a_shape_that_is_not_tokens_by_pairs_is_an_error_that_says_so(shape, device):
    with pytest.raises(ValueError, match=r"geglu needs a \(T, 2F\) tensor, got \(.*\); flatten"):
        geglu(torch.zeros(shape, device=device))
