"""Kernel dispatch for the memory-bound operations.

A fused Triton kernel reads and writes memory once, where the PyTorch reference does so several times. `torch.compile`
generates equivalent kernels from the references, so the Triton kernels are used only in eager mode on a GPU.
"""

import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mosaicbert.modes import is_out_of_memory, is_traced, run_without_modes

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # the kernels compute in fp32

_GEGLU_SHAPE = (2, 1100)  # one complete and one partial block of columns
_CROSS_ENTROPY_SHAPE = (6, 5000)  # two complete blocks and one partial block of columns
# One partial block of columns, and more rows than the programs of the backward pass compute at once.
_LAYER_NORM_SHAPES = {"cpu": (9, 768), "cuda": (4099, 768)}
_PROBE_DROPOUT, _PROBE_SEED = 0.25, 2**62 + 17


@dataclass(frozen=True)
class KernelChoice:
    """Selection between fused kernels and the PyTorch reference on a device.

    Attributes:
        name: "triton" for the fused Triton kernels, "none" for the PyTorch reference.
        reason: Reason why the kernels are not used; empty if they are.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"fused kernels: {self.name}" + (f" ({self.reason})" if self.reason else "")


@functools.cache
def choose_kernels(device_type: str) -> KernelChoice:
    """Select the kernels of the memory-bound operations for a device.

    On a CUDA GPU, the GEGLU, LayerNorm and cross-entropy kernels run forward and backward on small inputs, with and
    without dropout, and are compared with the fp64 PyTorch references. The result is cached per device type.

    Args:
        device_type: Device type as in torch.device, for example "cuda".

    Returns:
        The selection and the reason.

    Raises:
        RuntimeError: If the GPU has too little memory for the probe.
    """
    if device_type == "cpu":
        return KernelChoice("none", "the CPU uses the PyTorch reference")
    if device_type != "cuda" or not torch.cuda.is_available():
        return KernelChoice("none", "requires a CUDA GPU")
    failure = _probe(device_type)
    return KernelChoice("triton", "") if failure is None else KernelChoice("none", failure)


def uses_kernels(tensor: Tensor) -> bool:
    """Return True if an operation on a tensor uses its Triton kernel.

    The result is False in traced and transformed functions, see `modes.is_traced`. A compiler fuses the PyTorch
    reference itself.

    Args:
        tensor: Input of the operation. The kernels compute in fp32, so fp64 inputs use the PyTorch reference.
    """
    if tensor.dtype not in _DTYPES or is_traced(tensor):
        return False
    return choose_kernels(tensor.device.type).name == "triton"


def draw_seed(device: torch.device) -> Tensor:
    """Draw the dropout seed of one kernel call from PyTorch's default generator.

    Args:
        device: Device of the seed and of the generator.

    Returns:
        () int64. It stays on the device, so the host does not synchronize, and a CUDA graph draws a new seed per
        replay.
    """
    return torch.randint(2**63 - 1, (), device=device)


def _probe(device_type: str) -> str | None:
    """Return the reason why the kernels do not work, or None if they work."""
    return run_without_modes(functools.partial(_compare_with_references, device_type))


def _compare_with_references(device_type: str) -> str | None:
    probes = {"GEGLU": _probe_geglu, "LayerNorm": _probe_layer_norm, "cross-entropy": _probe_cross_entropy}
    try:
        for operation, probe in probes.items():
            if difference := _find_difference(operation, probe(device_type)):
                return difference
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except Exception as error:  # drivers, C compilers and Triton raise many types; the reference remains usable
        if is_out_of_memory(error):
            raise
        return str(error).strip().split("\n")[0] or type(error).__name__
    return None


# Names, results of a kernel and fp64 results of the PyTorch reference.
_Comparisons = Iterator[tuple[str, Tensor, Tensor]]


def _find_difference(operation: str, comparisons: _Comparisons) -> str | None:
    tolerance = 4 * torch.finfo(torch.bfloat16).eps  # the tolerance covers rounding errors only
    for name, actual, expected in comparisons:
        error = (actual.double() - expected).abs()
        # The last dimension is a row or a weight. Rows of different magnitude have different tolerances.
        if not (error.amax(-1) <= tolerance * expected.abs().amax(-1)).all():  # also if NaN
            return f"the {name} of the {operation} kernel differs from the PyTorch reference"
    return None


def _probe_geglu(device_type: str) -> _Comparisons:
    # Imported by name: transformers requires every module in an import statement of an exported file.
    kernels: Any = importlib.import_module("mosaicbert.ops.geglu_kernels")
    num_rows, width = _GEGLU_SHAPE
    gate_up, grad = _random(device_type, (num_rows, 2 * width), (num_rows, width))
    for dropout_p, seed in _dropouts(device_type):
        scale = (kernels.geglu(torch.ones_like(gate_up), dropout_p, seed) > 0).double() / (1 - dropout_p)
        yield "mean of the dropout mask", scale.mean()[None], torch.ones_like(scale[0, :1])

        def reference(gate_up: Tensor, scale: Tensor = scale) -> Tensor:
            gate, up = gate_up.chunk(2, dim=-1)
            return F.gelu(gate) * up * scale

        actual = _with_gradients(functools.partial(kernels.geglu, dropout_p=dropout_p, seed=seed), grad, gate_up)
        expected = _with_gradients(reference, grad.double(), gate_up.double())
        yield from zip(("output", "gradient"), actual, expected, strict=True)


def _probe_layer_norm(device_type: str) -> _Comparisons:
    kernels: Any = importlib.import_module("mosaicbert.ops.layer_norm_kernels")
    shape = _LAYER_NORM_SHAPES[device_type]
    *inputs, grad = _random(device_type, shape, shape, shape[1:], shape[1:], shape)
    for dropout_p, seed in _dropouts(device_type):

        def kernel(*tensors: Tensor, dropout_p: float = dropout_p, seed: Tensor | None = seed) -> Tensor:
            return kernels.dropout_add_layer_norm(*tensors, 1e-5, dropout_p, seed, True)[0]

        scale = torch.ones(shape, dtype=torch.float64, device=device_type)
        if seed is not None:
            ones, zeros = torch.ones_like(grad), torch.zeros_like(grad)
            # Kept elements are above the mean of a row, dropped elements below it.
            scale = (kernel(ones, zeros, ones[0], zeros[0]) > 0).double() / (1 - dropout_p)
            yield "mean of the dropout mask", scale.mean()[None], torch.ones_like(scale[0, :1])

        def reference(hidden: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, scale: Tensor = scale) -> Tensor:
            return F.layer_norm(hidden * scale + residual, weight.shape, weight, bias, 1e-5)

        actual = _with_gradients(kernel, grad, *inputs)
        expected = _with_gradients(reference, grad.double(), *(tensor.double() for tensor in inputs))
        names = ("output", "gradient of hidden", "gradient of residual", "gradient of weight", "gradient of bias")
        yield from zip(names, actual, expected, strict=True)


def _probe_cross_entropy(device_type: str) -> _Comparisons:
    kernels: Any = importlib.import_module("mosaicbert.ops.cross_entropy_kernels")
    vocab_size = _CROSS_ENTROPY_SHAPE[1]
    (logits,) = _random(device_type, _CROSS_ENTROPY_SHAPE)
    logits[:2, [10, -10]] = 8.0  # two equal maxima: only the first one is a correct prediction
    labels = torch.tensor([10, vocab_size - 10, 0, -100, vocab_size - 1, 10], device=device_type)
    expected_logits = logits.double().requires_grad_()
    expected_losses = F.cross_entropy(expected_logits, labels, ignore_index=-100, reduction="none")
    (expected_grad,) = torch.autograd.grad(expected_losses.sum(), expected_logits)
    losses = labels.new_empty(len(labels), dtype=torch.float32)
    is_correct = labels.new_empty(len(labels), dtype=torch.int32)
    kernels.softmax_cross_entropy_(logits, labels, losses, is_correct, -100, True)
    yield "loss", losses[:, None], expected_losses.detach()[:, None]
    yield "number of correct predictions", is_correct, (expected_logits.argmax(1) == labels).double()
    # The gradient at the label is about -1. All others are probabilities, which are much smaller.
    is_label = torch.arange(vocab_size, device=device_type) == labels[:, None]
    for entries in (is_label, ~is_label):
        yield "gradient", logits * entries, expected_grad * entries


def _dropouts(device_type: str) -> tuple[tuple[float, Tensor | None], ...]:
    return (0.0, None), (_PROBE_DROPOUT, torch.tensor(_PROBE_SEED, device=device_type))


def _random(device_type: str, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(device_type, torch.bfloat16) for shape in shapes]


def _with_gradients(function: Callable[..., Tensor], grad: Tensor, *inputs: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]
