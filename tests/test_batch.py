import torch

from mosaicbert.batch import Batch


def make_batch(device="cpu"):
    return Batch(
        input_ids=torch.tensor([11, 12, 13, 21, 31, 32], device=device),
        cu_seqlens=torch.tensor([0, 3, 4, 6], dtype=torch.int32, device=device),
        max_seqlen=3,
        masked_indices=torch.tensor([1, 3, 5], device=device),
        labels=torch.tensor([91, 92, 93], device=device),
    )


def test_counts_are_those_of_tokens_sequences_and_masks():
    batch = make_batch()
    assert (batch.num_tokens, batch.num_sequences, batch.num_masked) == (6, 3, 3)


def test_padded_puts_each_document_in_its_row_and_each_label_at_its_token(device):
    padded = make_batch(device).padded(pad_token_id=7)
    assert padded["input_ids"].tolist() == [[11, 12, 13], [21, 7, 7], [31, 32, 7]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert padded["labels"].tolist() == [[-100, 91, -100], [92, -100, -100], [-100, 93, -100]]


def test_padded_tensors_are_int64_on_the_batchs_device(device):
    for name, tensor in make_batch(device).padded(pad_token_id=0).items():
        assert tensor.dtype == torch.int64, name
        assert tensor.device.type == device, name


def test_a_batch_without_masks_is_padded_without_labels():
    empty = torch.empty(0, dtype=torch.int64)
    batch = Batch(
        input_ids=torch.tensor([1, 2]),
        cu_seqlens=torch.tensor([0, 2], dtype=torch.int32),
        max_seqlen=2,
        masked_indices=empty,
        labels=empty,
    )
    assert batch.padded(pad_token_id=0)["labels"].tolist() == [[-100, -100]]


def test_to_moves_every_tensor_and_keeps_the_numbers(device):
    batch = make_batch()
    moved = batch.to(device)
    assert moved.max_seqlen == batch.max_seqlen
    for name in ("input_ids", "cu_seqlens", "masked_indices", "labels"):
        before, after = getattr(batch, name), getattr(moved, name)
        assert after.device.type == device, name
        assert after.dtype == before.dtype, name
        assert after.tolist() == before.tolist(), name


def test_to_another_kind_of_device_moves_every_tensor():
    moved = make_batch().to("meta")
    assert {moved.input_ids.device.type, moved.cu_seqlens.device.type} == {"meta"}
    assert {moved.masked_indices.device.type, moved.labels.device.type} == {"meta"}
