import dataclasses

import pytest
import torch

from mosaicbert.batch import MicroBatch, StepBatch

_TENSORS = ("input_ids", "cu_seqlens", "masked_indices", "labels")


def make_batch(device="cpu"):
    return MicroBatch(
        input_ids=torch.tensor([11, 12, 13, 21, 31, 32], device=device),
        cu_seqlens=torch.tensor([0, 3, 4, 6], dtype=torch.int32, device=device),
        max_seqlen=3,
        masked_indices=torch.tensor([1, 3, 5], device=device),
        labels=torch.tensor([91, 92, 93], device=device),
        num_tokens=6,
        num_sequences=3,
        num_masked=3,
    )


def make_padded_batch(device="cpu"):
    """Create the same batch with two padding documents, two empty documents and two padding labels."""
    return MicroBatch(
        input_ids=torch.tensor([11, 12, 13, 21, 31, 32, 8, 8, 8, 8, 8], device=device),
        cu_seqlens=torch.tensor([0, 3, 4, 6, 10, 11, 11, 11], dtype=torch.int32, device=device),
        max_seqlen=4,
        masked_indices=torch.tensor([1, 3, 5, 0, 0], device=device),
        labels=torch.tensor([91, 92, 93, -100, -100], device=device),
        num_tokens=6,
        num_sequences=3,
        num_masked=3,
    )


def test_the_shape_includes_padding():
    assert make_batch().shape == (6, 3, 3)
    assert make_padded_batch().shape == (11, 7, 5)


def test_padded_converts_documents_to_rows_and_labels_to_token_positions(device):
    padded = make_batch(device).padded(pad_token_id=7)
    assert padded["input_ids"].tolist() == [[11, 12, 13], [21, 7, 7], [31, 32, 7]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert padded["labels"].tolist() == [[-100, 91, -100], [92, -100, -100], [-100, 93, -100]]


def test_padded_removes_padding_of_the_micro_batch(device):
    plain, with_padding = (make(device).padded(pad_token_id=7) for make in (make_batch, make_padded_batch))
    assert {name: tensor.tolist() for name, tensor in with_padding.items()} == {
        name: tensor.tolist() for name, tensor in plain.items()
    }


def test_padded_tensors_are_int64_on_the_device_of_the_batch(device):
    for name, tensor in make_padded_batch(device).padded(pad_token_id=0).items():
        assert tensor.dtype == torch.int64, name
        assert tensor.device.type == device, name


def test_padded_does_not_modify_the_batch():
    batch, original = make_padded_batch(), make_padded_batch()
    batch.padded(pad_token_id=7)
    for name in _TENSORS:
        assert torch.equal(getattr(batch, name), getattr(original, name)), name


def test_a_batch_without_masked_tokens_has_no_labels_after_padding():
    batch = MicroBatch(
        input_ids=torch.tensor([1, 2, 0]),
        cu_seqlens=torch.tensor([0, 2, 3], dtype=torch.int32),
        max_seqlen=2,
        masked_indices=torch.tensor([0]),
        labels=torch.tensor([-100]),
        num_tokens=2,
        num_sequences=1,
        num_masked=0,
    )
    assert batch.padded(pad_token_id=0)["labels"].tolist() == [[-100, -100]]


def test_to_copies_every_tensor_unchanged(device):
    batch = make_padded_batch()
    moved = batch.to(device)
    for name in _TENSORS:
        before, after = getattr(batch, name), getattr(moved, name)
        assert after.device.type == device, name
        assert after.dtype == before.dtype, name
        assert after.tolist() == before.tolist(), name


def test_to_preserves_the_counts():
    moved = make_padded_batch().to("meta")
    assert (moved.max_seqlen, moved.num_tokens, moved.num_sequences, moved.num_masked) == (4, 6, 3, 3)
    assert moved.shape == (11, 7, 5)


def test_to_copies_every_tensor_to_another_device_type():
    moved = make_batch().to("meta")
    assert {getattr(moved, name).device.type for name in _TENSORS} == {"meta"}


def make_step():
    return StepBatch(
        input_ids=torch.arange(12).reshape(2, 6),
        cu_seqlens=torch.tensor([[0, 4, 6], [0, 6, 6]], dtype=torch.int32),
        max_seqlen=6,
        masked_indices=torch.tensor([[1, 3], [5, 0]]),
        labels=torch.tensor([[7, 8], [9, -100]]),
        num_tokens=(6, 6),
        num_sequences=(2, 1),
        num_masked=(2, 1),
        global_num_tokens=20,
        global_num_samples=5,
        global_num_masked=5,
        mask_rate=0.3,
        batch=7,
    )


def test_the_micro_batches_of_a_step_are_its_rows():
    first, second = make_step().micro_batches
    assert first.input_ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert (second.cu_seqlens.tolist(), second.labels.tolist()) == ([0, 6, 6], [9, -100])
    assert (first.num_sequences, second.num_sequences, second.num_masked) == (2, 1, 1)


def test_the_micro_batches_of_a_step_are_views():
    step = make_step()
    for number, batch in enumerate(step.micro_batches):
        for name in _TENSORS:
            row, stacked = getattr(batch, name), getattr(step, name)
            assert row.untyped_storage().data_ptr() == stacked.untyped_storage().data_ptr(), name
            assert row.data_ptr() == stacked[number].data_ptr(), name
            assert row.is_contiguous(), name


@pytest.mark.gpu
def test_a_pinned_step_has_the_same_values_in_pinned_memory():
    step, pinned = make_step(), make_step().pin_memory()
    for name in _TENSORS:
        tensor = getattr(pinned, name)
        assert tensor.is_pinned(), name
        assert tensor.dtype == getattr(step, name).dtype, name
        assert torch.equal(tensor, getattr(step, name)), name
    assert not any(getattr(step, name).is_pinned() for name in _TENSORS)


@pytest.mark.gpu
def test_the_micro_batches_of_a_pinned_step_are_pinned_and_copied_unchanged():
    for batch, original in zip(make_step().pin_memory().micro_batches, make_step().micro_batches, strict=True):
        moved = batch.to("cuda", non_blocking=True)
        torch.cuda.synchronize()
        for name in _TENSORS:
            assert getattr(batch, name).is_pinned(), name
            assert getattr(moved, name).tolist() == getattr(original, name).tolist(), name


@pytest.mark.gpu
def test_pinning_preserves_the_counts():
    step, pinned = make_step(), make_step().pin_memory()
    counts = {field.name for field in dataclasses.fields(StepBatch)} - set(_TENSORS)
    assert {name: getattr(pinned, name) for name in counts} == {name: getattr(step, name) for name in counts}
