import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.train.schedule import linear_schedule


@given(total=st.integers(1, 500), warmup_share=st.floats(0, 1), final=st.floats(0, 1))
def test_the_rate_rises_to_its_peak_and_falls_to_its_end_in_even_steps(total, warmup_share, final):
    warmup = round(warmup_share * total)
    rates = [
        linear_schedule(step, total_steps=total, warmup_steps=warmup, final_fraction=final) for step in range(total)
    ]
    assert all(0 < rate <= 1 or rate == pytest.approx(final) for rate in rates)
    rise, fall = rates[:warmup], rates[warmup:]
    assert rise == pytest.approx([(step + 1) / warmup for step in range(warmup)])
    if fall:
        assert fall[-1] == pytest.approx(final)
        drops = [before - after for before, after in zip([1.0, *fall], fall, strict=False)]
        assert drops == pytest.approx([(1 - final) / len(fall)] * len(fall))
