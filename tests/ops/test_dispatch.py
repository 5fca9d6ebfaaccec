import importlib

import pytest
import torch

from mosaicbert.ops import dispatch
from mosaicbert.ops.dispatch import KernelChoice, choose_kernels, draw_seed, uses_kernels
from mosaicbert.ops.geglu import geglu, geglu_reference
from mosaicbert.ops.layer_norm import dropout_add_layer_norm, dropout_add_layer_norm_reference

pytest.importorskip("triton")

EPS = 1e-12


@pytest.fixture
def enabled_kernels(monkeypatch):
    """Enable the kernels of the public functions on any device. On a CPU, Triton's interpreter runs them."""
    monkeypatch.setattr(dispatch, "choose_kernels", lambda _: KernelChoice("triton", ""))


def raise_module_not_found(name):
    def import_module(_):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    return import_module


def raise_on_import(error):
    def import_module(_):
        raise error

    return import_module


def with_gradients(function, inputs):
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    out = function(*inputs)
    return out, *torch.autograd.grad(out.float().square().sum(), inputs)


def random_inputs(device, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = ((9, 40), (9, 40), (40,), (40,))
    hidden, residual, *affine = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
    return hidden.to(dtype), residual.to(dtype), *affine


def add_layer_norm(*tensors, dropout_p=0.0):
    return dropout_add_layer_norm(*tensors, EPS, dropout_p)


REFERENCES = {
    geglu: geglu_reference,
    add_layer_norm: lambda *tensors: dropout_add_layer_norm_reference(*tensors, EPS),
}


def make_inputs(operation, device):
    return random_inputs(device)[:1] if operation is geglu else random_inputs(device)


@pytest.mark.parametrize(
    "choice, text",
    [
        (KernelChoice("triton", ""), "fused kernels: triton"),
        (KernelChoice("none", "triton is not installed"), "fused kernels: none (triton is not installed)"),
    ],
    ids=["triton", "none"],
)
def test_a_choice_is_described_in_one_line(choice, text):
    assert str(choice) == text


def test_the_cpu_uses_the_reference():
    assert str(choose_kernels("cpu")) == "fused kernels: none (the CPU uses the PyTorch reference)"


@pytest.mark.parametrize("device_type", ["meta", "mps"])
def test_devices_other_than_cuda_use_the_reference(device_type):
    assert choose_kernels(device_type) == KernelChoice("none", "requires a CUDA GPU")


def test_cuda_without_a_gpu_uses_the_reference(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_kernels.__wrapped__("cuda") == KernelChoice("none", "requires a CUDA GPU")


@pytest.mark.gpu
def test_a_gpu_uses_the_kernels():
    assert choose_kernels("cuda") == KernelChoice("triton", "")


def test_the_kernels_pass_the_probe(device):
    assert dispatch._probe(device) is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_kernels_pass_the_probe_in_every_autograd_mode(mode, device):
    with mode():
        assert dispatch._probe(device) is None


@pytest.mark.parametrize(
    "import_module, reason",
    [
        (raise_module_not_found("triton"), "triton is not installed"),
        (raise_on_import(RuntimeError("Failed to find C compiler.\nSet CC.")), "Failed to find C compiler."),
        (raise_on_import(KeyError()), "KeyError"),
    ],
    ids=["no-triton", "no-compiler", "empty-message"],
)
def test_the_reason_is_the_error_of_the_probe(import_module, reason, monkeypatch, device):
    monkeypatch.setattr(importlib, "import_module", import_module)
    assert dispatch._probe(device) == reason


@pytest.mark.parametrize(
    "operation, operator, output_index, result",
    [
        ("GEGLU", "geglu", 0, "output"),
        ("GEGLU", "geglu_backward", 0, "gradient"),
        ("LayerNorm", "dropout_add_layer_norm", 0, "output"),
        ("LayerNorm", "dropout_add_layer_norm_backward", 1, "gradient of hidden"),
        ("LayerNorm", "dropout_add_layer_norm_backward", 2, "gradient of weight"),
    ],
)
def test_a_kernel_with_a_wrong_result_fails_the_probe(operation, operator, output_index, result, monkeypatch, device):
    module, probe = {
        "GEGLU": ("geglu_kernels", dispatch._probe_geglu),
        "LayerNorm": ("layer_norm_kernels", dispatch._probe_layer_norm),
    }[operation]
    kernels = importlib.import_module(f"mosaicbert.ops.{module}")
    original = getattr(kernels, operator)

    def wrong(*arguments, **options):
        outputs = original(*arguments, **options)
        if isinstance(outputs, torch.Tensor):
            return 1.1 * outputs
        return tuple(1.1 * output if index == output_index else output for index, output in enumerate(outputs))

    monkeypatch.setattr(kernels, operator, wrong)
    difference = dispatch._find_difference(operation, probe(device))
    assert difference == f"the {result} of the {operation} kernel differs from the PyTorch reference"


def test_a_cross_entropy_kernel_without_the_gradient_of_the_last_block_fails_the_probe(monkeypatch, device):
    kernels = importlib.import_module("mosaicbert.ops.cross_entropy_kernels")
    original = kernels.softmax_cross_entropy_

    def without_last_block(logits, *arguments):
        original(logits, *arguments)
        logits[:, 4096:] = 0

    monkeypatch.setattr(kernels, "softmax_cross_entropy_", without_last_block)
    difference = dispatch._find_difference("cross-entropy", dispatch._probe_cross_entropy(device))
    assert difference == "the gradient of the cross-entropy kernel differs from the PyTorch reference"


def test_a_driver_error_selects_the_reference(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib, "import_module", raise_on_import(OSError("libcuda.so: cannot open")))
    assert choose_kernels.__wrapped__("cuda") == KernelChoice("none", "libcuda.so: cannot open")


@pytest.mark.usefixtures("enabled_kernels")
def test_fp64_inputs_use_the_reference(device):
    assert uses_kernels(torch.zeros(1, device=device))
    assert not uses_kernels(torch.zeros(1, device=device, dtype=torch.float64))


def test_a_seed_is_drawn_from_the_default_generator(device):
    torch.manual_seed(3)
    first, second = draw_seed(torch.device(device)), draw_seed(torch.device(device))
    torch.manual_seed(3)
    assert draw_seed(torch.device(device)) == first != second


@pytest.mark.usefixtures("enabled_kernels")
@pytest.mark.parametrize("operation", [geglu, add_layer_norm], ids=["geglu", "sum"])
def test_the_public_function_equals_its_reference(operation, device):
    inputs = make_inputs(operation, device)
    with torch.no_grad():
        expected = REFERENCES[operation](*inputs)
    torch.testing.assert_close(with_gradients(operation, inputs)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("enabled_kernels")
@pytest.mark.parametrize("operation", [geglu, add_layer_norm], ids=["geglu", "sum"])
def test_dropout_is_reproducible_with_manual_seed(operation, device):
    inputs = make_inputs(operation, device)
    torch.manual_seed(5)
    first, second = operation(*inputs, dropout_p=0.5), operation(*inputs, dropout_p=0.5)
    torch.manual_seed(5)
    assert torch.equal(operation(*inputs, dropout_p=0.5), first)
    assert not torch.equal(first, second)


@pytest.mark.usefixtures("enabled_kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_under_autocast_the_output_has_the_autocast_dtype_and_gradients_those_of_the_inputs(dtype, device):
    inputs = [tensor.detach().requires_grad_() for tensor in random_inputs(device, dtype)]
    with torch.autocast(device, torch.bfloat16):
        out = dropout_add_layer_norm(*inputs, EPS, 0.1)
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert [tensor.grad.dtype for tensor in inputs] == [dtype, dtype, torch.float32, torch.float32]


@pytest.mark.usefixtures("enabled_kernels")
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_the_output_is_the_same_without_gradients(mode, device):
    inputs = [tensor.requires_grad_() for tensor in random_inputs(device)]
    with mode():
        out = dropout_add_layer_norm(*inputs, EPS)
    assert torch.equal(out, dropout_add_layer_norm(*inputs, EPS))


@pytest.mark.usefixtures("enabled_kernels")
def test_activation_checkpointing_repeats_the_dropout_mask(device):
    inputs = random_inputs(device)

    def block(hidden, *others):
        return dropout_add_layer_norm(geglu(torch.cat([hidden, hidden], 1), 0.5), *others, EPS, 0.5)

    def recomputed(*tensors):
        return torch.utils.checkpoint.checkpoint(block, *tensors, use_reentrant=False)

    results = []
    for function in (block, recomputed):
        torch.manual_seed(5)
        results.append(with_gradients(function, inputs))
    assert all(map(torch.equal, *results))


@pytest.mark.usefixtures("enabled_kernels")
def test_torch_compile_traces_the_reference(device):
    compiled = torch.compile(lambda gate_up: geglu(gate_up, 0.1), fullgraph=True, backend="eager")
    gate_up = random_inputs(device)[0]
    torch.manual_seed(5)
    actual = compiled(gate_up)
    torch.manual_seed(5)
    assert torch.equal(actual, geglu_reference(gate_up, 0.1))
