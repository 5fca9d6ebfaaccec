import pytest
import torch

from mosaicbert.ops import cross_entropy
from mosaicbert.ops.cross_entropy import linear_cross_entropy, linear_cross_entropy_reference
from mosaicbert.ops.dispatch import KernelChoice
from tests.accuracy import assert_as_accurate

pytest.importorskip("triton")
from mosaicbert.ops import cross_entropy_kernels as kernels

CHUNK = 8  # rows per chunk with the fixture small_chunks
GRAD_LOSS = 0.37
# The maximum error in fp32 has a long tail. With 8 batches and equal RMS errors, it exceeds twice that of the reference
# in 1 of 100 cases.
NUM_BATCHES = {torch.float32: 64, torch.bfloat16: 8}
SHAPES = [(1, 5, 3), (CHUNK, 64, 16), (CHUNK + 1, 301, 40), (CHUNK + 3, 2 * kernels._MAX_BLOCK + 77, 8), (23, 100, 40)]
SHAPE_NAMES = ["one-row", "one-chunk", "one-row-more", "ragged-blocks", "three-chunks"]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@pytest.fixture(params=["none", "triton"])
def implementation(request, monkeypatch):
    """Select PyTorch or the Triton kernel for the softmax of a chunk, on any device."""
    monkeypatch.setattr(cross_entropy, "choose_kernels", lambda _: KernelChoice(request.param, ""))
    return request.param


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(cross_entropy, "_rows_per_chunk", lambda *_: CHUNK)


def random_inputs(shape, device, dtype, seed=3):
    rows, vocab_size, width = shape
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (
        torch.randn(size, generator=generator) for size in ((rows, width), (vocab_size, width), (vocab_size,))
    )
    labels = torch.randint(vocab_size, (rows,), generator=generator)
    labels[1::3] = -100
    return [tensor.to(device, dtype) for tensor in (hidden, 0.3 * weight, bias)], labels.to(device)


def with_gradients(function, inputs, labels, autocast=False):
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    with torch.autocast(labels.device.type, torch.bfloat16, enabled=autocast):
        loss, num_correct = function(*inputs, labels)
    return loss.detach(), num_correct, *torch.autograd.grad(GRAD_LOSS * loss, inputs)


def reference_results(inputs, labels, autocast=False):
    """Compute the results of the reference, with the gradient of hidden from products of at most CHUNK rows.

    The order of summation in a BLAS product depends on the number of rows. With MKL, the errors of products of 11 rows
    and of 8 and 3 rows differ by a factor of up to 4, which is not a property of the tested function.
    """
    hidden, *decoder = inputs
    chunks = zip(hidden.split(CHUNK), labels.split(CHUNK), strict=True)
    gradients = [
        with_gradients(linear_cross_entropy_reference, [rows, *decoder], row_labels, autocast)[2]
        for rows, row_labels in chunks
    ]
    loss, num_correct, _, *grad_decoder = with_gradients(linear_cross_entropy_reference, inputs, labels, autocast)
    return loss, num_correct, torch.cat(gradients), *grad_decoder


def assert_as_accurate_as_reference(batches, autocast=False):
    actual, eager, expected = (
        # All batches are compared at once, because the error of a single number can be zero by chance.
        [torch.stack(tensors) for tensors in zip(*results, strict=True)]
        for results in (
            [with_gradients(linear_cross_entropy, inputs, labels, autocast) for inputs, labels in batches],
            [reference_results(inputs, labels, autocast) for inputs, labels in batches],
            [
                with_gradients(linear_cross_entropy_reference, [tensor.double() for tensor in inputs], labels)
                for inputs, labels in batches
            ],
        )
    )
    for index, name in ((0, "loss"), (2, "grad_hidden"), (3, "grad_weight"), (4, "grad_bias")):
        assert_as_accurate(name, actual[index], eager[index], expected[index])


@pytest.mark.parametrize(
    "shape, dtype",
    [
        *((shape, torch.float32) for shape in SHAPES[:-2]),
        # The default suite has these two in bf16.
        *(pytest.param(shape, torch.float32, marks=pytest.mark.slow) for shape in SHAPES[-2:]),
        *((shape, torch.bfloat16) for shape in SHAPES),
    ],
    ids=[f"{name}-{dtype}" for dtype in ("fp32", "bf16") for name in SHAPE_NAMES],
)
@pytest.mark.usefixtures("implementation", "small_chunks")
def test_loss_and_gradients_are_as_accurate_as_the_reference(shape, dtype, device):
    batches = [random_inputs(shape, device, dtype, seed) for seed in range(NUM_BATCHES[dtype])]
    assert_as_accurate_as_reference(batches)


@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_NAMES)
@pytest.mark.usefixtures("implementation", "small_chunks")
def test_loss_and_gradients_under_autocast_are_as_accurate_as_the_reference(shape, device):
    batches = [random_inputs(shape, device, torch.float32, seed) for seed in range(NUM_BATCHES[torch.bfloat16])]
    assert_as_accurate_as_reference(batches, autocast=True)


@pytest.mark.parametrize(
    "scale, shift, dtype",
    [
        # The default suite has these three in bf16.
        pytest.param(1.0, 1e4, torch.float32, marks=pytest.mark.slow),
        pytest.param(1e4, 0.0, torch.float32, marks=pytest.mark.slow),
        pytest.param(1.0, -1e4, torch.float32, marks=pytest.mark.slow),
        (1.0, 1e4, torch.bfloat16),
        (1e4, 0.0, torch.bfloat16),
        (1.0, -1e4, torch.bfloat16),
    ],
    ids=[f"{name}-{dtype}" for dtype in ("fp32", "bf16") for name in ("high", "wide", "low")],
)
@pytest.mark.usefixtures("implementation", "small_chunks")
def test_large_logits_do_not_lose_accuracy(scale, shift, dtype, device):
    batches = []
    for seed in range(NUM_BATCHES[dtype]):
        (hidden, weight, bias), labels = random_inputs((11, 301, 16), device, dtype, seed)
        batches.append(([hidden, weight, scale * bias + shift], labels))
    assert_as_accurate_as_reference(batches)


@DTYPES
@pytest.mark.usefixtures("small_chunks")
def test_the_kernel_equals_the_pytorch_implementation(dtype, device):
    (hidden, weight, bias), labels = random_inputs((6, kernels._MAX_BLOCK + 9, 8), device, dtype)
    results = []
    for softmax_cross_entropy_ in (kernels.softmax_cross_entropy_, cross_entropy._softmax_cross_entropy_):
        logits = torch.nn.functional.linear(hidden, weight, bias)
        losses = logits.new_empty(len(logits), dtype=torch.float32)
        is_correct = labels.new_empty(len(logits), dtype=torch.int32)
        softmax_cross_entropy_(logits, labels, losses, is_correct, -100, True)
        results.append((losses, is_correct, logits))
    torch.testing.assert_close(*results)


@pytest.mark.usefixtures("implementation")
def test_the_result_does_not_depend_on_the_chunk_size(device, monkeypatch):
    inputs, labels = random_inputs((37, 101, 16), device, torch.float32)
    unchunked = with_gradients(linear_cross_entropy, inputs, labels)
    monkeypatch.setattr(cross_entropy, "_rows_per_chunk", lambda *_: CHUNK)
    torch.testing.assert_close(with_gradients(linear_cross_entropy, inputs, labels), unchunked)


@pytest.mark.usefixtures("implementation", "small_chunks")
def test_ignored_rows_do_not_contribute(device):
    inputs, labels = random_inputs((CHUNK + 3, 301, 16), device, torch.float32)
    loss, num_correct, grad_hidden, *_ = with_gradients(linear_cross_entropy, inputs, labels)
    is_labeled = labels != -100
    assert grad_hidden[~is_labeled].count_nonzero() == 0 and grad_hidden[is_labeled].count_nonzero() > 0
    labeled_results = with_gradients(linear_cross_entropy, [inputs[0][is_labeled], *inputs[1:]], labels[is_labeled])
    torch.testing.assert_close((loss, num_correct), labeled_results[:2])


@pytest.mark.usefixtures("implementation", "small_chunks")
def test_a_batch_of_ignored_rows_gives_zeros(device):
    inputs, labels = random_inputs((CHUNK + 3, 301, 16), device, torch.float32)
    results = with_gradients(linear_cross_entropy, inputs, torch.full_like(labels, -100))
    assert all(tensor.count_nonzero() == 0 for tensor in results)


@DTYPES
@pytest.mark.usefixtures("implementation")
def test_an_empty_batch_gives_zeros(dtype, device):
    inputs, labels = random_inputs((0, 301, 16), device, dtype)
    results = with_gradients(linear_cross_entropy, inputs, labels)
    assert all(tensor.count_nonzero() == 0 for tensor in results)
    assert [tensor.shape for tensor in results[2:]] == [tensor.shape for tensor in inputs]


@DTYPES
@pytest.mark.usefixtures("implementation", "small_chunks")
def test_only_the_first_of_equal_logits_is_correct(dtype, device):
    vocab_size, rows = 2 * kernels._MAX_BLOCK + 77, 24
    logits = torch.randint(4, (rows, vocab_size), generator=torch.Generator().manual_seed(0)).to(device, dtype)
    logits[0::4, :20] = 0  # the first of the largest is not the first column
    logits[1::4, : kernels._MAX_BLOCK + 5] = 0  # nor in the first block
    first = logits.argmax(1)
    second = (logits == 3).long().scatter(1, first[:, None], 0).argmax(1)  # equal, later
    last = vocab_size - 1 - (logits == 3).flip(1).long().argmax(1)
    hidden, bias = torch.eye(rows, device=device, dtype=dtype), torch.zeros(vocab_size, device=device, dtype=dtype)
    is_labeled = [linear_cross_entropy(hidden, logits.t(), bias, labels)[1] for labels in (first, second, last)]
    assert torch.stack(is_labeled).tolist() == [rows, 0, 0]


@DTYPES
@pytest.mark.usefixtures("implementation", "small_chunks")
def test_the_number_of_correct_predictions_equals_the_reference(dtype, device):
    (hidden, weight, bias), labels = random_inputs((5 * CHUNK, 7, 16), device, dtype)
    _, expected = linear_cross_entropy_reference(hidden, weight, bias, labels)
    _, num_correct = linear_cross_entropy(hidden, weight, bias, labels)
    assert num_correct.dtype == torch.int64 and num_correct == expected and num_correct > 0


@pytest.mark.usefixtures("implementation", "small_chunks")
def test_the_loss_is_bit_identical_without_gradients(device):
    inputs, labels = random_inputs((CHUNK + 3, 301, 16), device, torch.float32)
    training_results = with_gradients(linear_cross_entropy, inputs, labels)[:2]
    with torch.no_grad():
        evaluation_results = linear_cross_entropy(*(tensor.requires_grad_() for tensor in inputs), labels)
    assert all(map(torch.equal, training_results, evaluation_results))


@pytest.mark.parametrize("input_index", range(3), ids=["hidden", "weight", "bias"])
@pytest.mark.usefixtures("implementation", "small_chunks")
def test_a_gradient_does_not_depend_on_which_others_are_needed(input_index, device):
    inputs, labels = random_inputs((CHUNK + 3, 301, 16), device, torch.float32)
    expected = with_gradients(linear_cross_entropy, inputs, labels)[2 + input_index]
    inputs[input_index].requires_grad_()
    loss, _ = linear_cross_entropy(*inputs, labels)
    (GRAD_LOSS * loss).backward()
    assert torch.equal(inputs[input_index].grad, expected)


@DTYPES
@pytest.mark.usefixtures("implementation", "small_chunks")
def test_repeated_calls_are_bit_identical(dtype, device):
    inputs, labels = random_inputs((3 * CHUNK - 1, 301, 40), device, dtype)
    first, second = (with_gradients(linear_cross_entropy, inputs, labels) for _ in range(2))
    assert all(map(torch.equal, first, second))


@DTYPES
def test_the_result_does_not_depend_on_the_size_of_the_blocks_of_the_softmax(dtype, monkeypatch):
    inputs, labels = random_inputs((21, 301, 16), "cpu", dtype)
    results = []
    for rows in (1, 8, 21):
        monkeypatch.setattr(cross_entropy, "_CPU_SOFTMAX_BYTES", rows * 301 * 4)
        results.append(with_gradients(linear_cross_entropy, inputs, labels))
    assert all(torch.equal(*pair) for other in results[1:] for pair in zip(results[0], other, strict=True))


def test_a_second_backward_pass_is_an_error(device):
    inputs, labels = random_inputs((5, 30, 8), device, torch.float32)
    loss, _ = linear_cross_entropy(*(tensor.requires_grad_() for tensor in inputs), labels)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@DTYPES
def test_the_loss_is_fp32_and_gradients_have_the_dtype_of_their_inputs(dtype, autocast, device):
    inputs, labels = random_inputs((5, 30, 8), device, dtype)
    loss, _, *gradients = with_gradients(linear_cross_entropy, inputs, labels, autocast)
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert {gradient.dtype for gradient in gradients} == {dtype}


def test_products_under_autocast_use_the_autocast_dtype(device):
    inputs, labels = random_inputs((5, 30, 8), device, torch.float32)
    rounded = [tensor.bfloat16() for tensor in inputs]
    with torch.autocast(device, torch.bfloat16):
        loss, _ = linear_cross_entropy(*inputs, labels)
    assert torch.equal(loss, linear_cross_entropy(*rounded, labels)[0])


@pytest.mark.usefixtures("implementation", "small_chunks")
def test_non_contiguous_inputs_give_the_same_result(device):
    (hidden, weight, bias), labels = random_inputs((CHUNK + 3, 301, 16), device, torch.float32)
    expected = linear_cross_entropy(hidden, weight, bias, labels)
    strided = [torch.stack([tensor, tensor], dim=-1)[..., 0] for tensor in (hidden, weight, bias, labels)]
    torch.testing.assert_close(linear_cross_entropy(*strided), expected)


@pytest.mark.usefixtures("small_chunks")
def test_no_allocation_on_the_cpu_is_larger_than_a_chunk():
    rows, vocab_size, width = shape = (10 * CHUNK, 3000, 8)
    inputs, labels = random_inputs(shape, "cpu", torch.float32)
    max_allocation = {}
    for function in (linear_cross_entropy, linear_cross_entropy_reference):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            with_gradients(function, inputs, labels)
        max_allocation[function] = max(event.self_cpu_memory_usage for event in profile.events())
    assert max_allocation[linear_cross_entropy_reference] >= 4 * rows * vocab_size
    assert max_allocation[linear_cross_entropy] == 4 * CHUNK * vocab_size >= 4 * width * vocab_size


@pytest.mark.gpu
def test_peak_gpu_memory_is_two_weight_gradients_and_a_chunk():
    vocab_size, width = 30528, 768
    inputs, labels = random_inputs((19_660, vocab_size, width), "cuda", torch.float32)
    linear_cross_entropy(*inputs, labels)  # the first call allocates workspaces
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with_gradients(linear_cross_entropy, inputs, labels, autocast=True)
    peak = torch.cuda.max_memory_allocated() - before
    # In the forward pass, the second one is the bf16 weight and the product of one chunk. Rows use less than 100 MB.
    assert peak < cross_entropy._GPU_CHUNK_BYTES + 2 * 4 * vocab_size * width + 100e6


@pytest.mark.gpu
def test_a_call_does_not_synchronize_with_the_gpu():
    inputs, labels = random_inputs((2000, 30528, 64), "cuda", torch.float32)
    with_gradients(linear_cross_entropy, inputs, labels, autocast=True)  # the first call compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        with_gradients(linear_cross_entropy, inputs, labels, autocast=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("vocab_size", [30, 8192, 30528, 2**30])
@DTYPES
@pytest.mark.parametrize("device_type, limit", [("cpu", 2**25), ("cuda", 2**28)])
def test_a_chunk_uses_between_half_and_all_of_the_memory_limit(device_type, limit, dtype, vocab_size):
    rows = cross_entropy._rows_per_chunk(vocab_size, dtype, device_type)
    assert rows == 1 or limit / 2 < rows * vocab_size * dtype.itemsize <= limit


@pytest.mark.parametrize("needs_grad", [[True, True, True], [True, False, False]], ids=["all", "hidden"])
@pytest.mark.usefixtures("implementation", "small_chunks")
def test_the_operator_passes_opcheck(needs_grad, device):
    inputs, labels = random_inputs((CHUNK + 3, 30, 16), device, torch.float32)
    inputs = [tensor.requires_grad_(needed) for tensor, needed in zip(inputs, needs_grad, strict=True)]
    torch.library.opcheck(cross_entropy._linear_cross_entropy, (*inputs, labels, needs_grad))


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.usefixtures("implementation", "small_chunks")
def test_torch_compile_captures_the_operator_in_one_graph(autocast, device):
    torch.compiler.reset()
    inputs, labels = random_inputs((CHUNK + 3, 30, 16), device, torch.float32)
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    actual = with_gradients(compiled, inputs, labels, autocast)
    expected = with_gradients(linear_cross_entropy, inputs, labels, autocast)
    assert all(map(torch.equal, actual, expected))


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 3, 8), (30, 8), (30,), (6,)),
        ((6, 8), (30, 9), (30,), (6,)),
        ((6, 8), (8,), (30,), (6,)),
        ((6, 8), (30, 8), (29,), (6,)),
        ((6, 8), (30, 8), (30,), (5,)),
        ((6, 8), (30, 8), (30,), (6, 1)),
    ],
    ids=["padded", "width", "flat-weight", "bias", "labels", "column-of-labels"],
)
def test_mismatched_shapes_are_an_error_that_lists_them(shapes, device):
    *inputs, labels = (torch.zeros(shape, device=device) for shape in shapes)
    message = r"must be hidden \(M, C\), weight \(V, C\), bias \(V,\) and labels \(M,\), got " + ".*".join(
        str(shape).replace("(", r"\(").replace(")", r"\)") for shape in shapes
    )
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(*inputs, labels.long())


def test_a_label_outside_the_vocabulary_gives_a_nan_loss(device):
    logits = torch.zeros(2, 30, device=device)
    losses, is_correct = torch.zeros(2, device=device), torch.zeros(2, dtype=torch.int32, device=device)
    labels = torch.tensor([30, -1], device=device)
    kernels.softmax_cross_entropy_(logits, labels, losses, is_correct, -100, False)
    assert losses.isnan().all() and not is_correct.any()
