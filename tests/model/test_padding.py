import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.model.padding import compute_unpadding, real_tokens, repad, unpad


@st.composite
def attention_masks(draw):
    """Generate masks with at least one token per row and padding at any position."""
    length = draw(st.integers(1, 12))
    row = st.lists(st.booleans(), min_size=length, max_size=length).filter(any)
    return torch.tensor(draw(st.lists(row, min_size=1, max_size=6)))


def distinct_states(mask):
    return torch.arange(1.0, mask.numel() * 2 + 1).reshape(*mask.shape, 2)  # (B, S, 2), all nonzero


@given(mask=attention_masks())
def test_repad_inverts_unpad_with_zeros_at_padding(mask):
    states, unpadding = distinct_states(mask), compute_unpadding(mask)
    assert torch.equal(repad(unpad(states, unpadding), unpadding), states * mask[..., None])


@given(mask=attention_masks())
def test_unpad_inverts_repad(mask):
    unpadding = compute_unpadding(mask)
    tokens = torch.randn(int(mask.sum()), 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(unpad(repad(tokens, unpadding), unpadding), tokens)


@given(mask=attention_masks())
def test_unpad_keeps_the_tokens_of_each_sequence_in_order(mask):
    states, unpadding = distinct_states(mask), compute_unpadding(mask)
    tokens, bounds = unpad(states, unpadding), unpadding.cu_seqlens.tolist()
    assert len(bounds) == mask.shape[0] + 1
    for row, (start, stop) in enumerate(itertools.pairwise(bounds)):
        assert torch.equal(tokens[start:stop], states[row, mask[row]])


@given(mask=attention_masks())
def test_max_seqlen_counts_real_tokens(mask):
    unpadding = compute_unpadding(mask)
    assert unpadding.max_seqlen == int(mask.sum(dim=1).max())
    assert unpadding.cu_seqlens.dtype == torch.int32


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32], ids=["bool", "int", "float"])
def test_nonzero_mask_values_of_any_dtype_mark_real_tokens(dtype, device):
    mask = torch.tensor([[2, 1, 0], [0, 3, 0]], device=device, dtype=dtype)
    assert compute_unpadding(real_tokens(mask)).indices.tolist() == [0, 1, 4]


def test_only_real_tokens_receive_gradients(device):
    mask = torch.tensor([[True, True, False], [True, False, False]], device=device)
    states = torch.ones(2, 3, 2, device=device, requires_grad=True)
    unpadding = compute_unpadding(mask)
    repad(unpad(states, unpadding), unpadding).sum().backward()
    assert torch.equal(states.grad, mask[..., None].expand(2, 3, 2).float())


def test_padding_has_the_given_value():
    mask = torch.tensor([[True, False], [True, True]])
    unpadding = compute_unpadding(mask)
    assert torch.equal(repad(torch.tensor([1.0, 2.0, 3.0]), unpadding, -7.0), torch.tensor([[1.0, -7.0], [2.0, 3.0]]))


def test_a_batch_without_padding_is_not_copied():
    states = torch.randn(2, 3, 4)
    unpadding = compute_unpadding(torch.ones(2, 3, dtype=torch.bool))
    tokens = unpad(states, unpadding)
    assert tokens.data_ptr() == repad(tokens, unpadding).data_ptr() == states.data_ptr()


def test_the_first_token_of_a_row_without_tokens_counts_as_real():
    mask = torch.tensor([[0, 1, 0], [0, 0, 0]])
    assert real_tokens(mask).tolist() == [[False, True, False], [True, False, False]]


@pytest.mark.parametrize("shape", [(4,), (1, 1, 4)], ids=["flat", "extended"])
def test_a_mask_that_is_not_two_dimensional_is_an_error(shape):
    with pytest.raises(ValueError, match=r"`attention_mask` must be \(B, S\), got \(.*\)"):
        real_tokens(torch.ones(shape))
