"""Fault log: reading, writing, and crashes in between."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.train.faults.log import Fault, FaultLog, list_samples


def _samples_of(batch):
    return np.array([0, 1]), np.array([2 * batch, 2 * batch + 1])


def _skipped(step):
    return Fault(kind="skipped", step=step, reason="loss nan, gradient norm 1.0", batches=[step - 1], samples=[[0, 7]])


def _rollback(step, batches, resumed_step=0):
    return Fault(kind="rollback", step=step, reason="loss 9", batches=batches, resumed_step=resumed_step, samples=[])


@pytest.fixture
def faults(tmp_path):
    return FaultLog(tmp_path / "faults.jsonl")


def test_a_run_without_faults_has_no_file_and_skips_no_batch(faults):
    assert faults.read() == faults.rollbacks() == []
    assert faults.skipped_batches() == set()
    assert not faults.path.exists()


def test_faults_are_read_back_and_each_has_a_line(faults):
    written = [
        _skipped(3),
        _rollback(9, [7, 8], resumed_step=6),
        Fault(kind="checkpoint", step=6, reason="é\n", batches=[]),
    ]
    for fault in written:
        faults.write(fault)
    assert faults.read() == written
    assert [json.loads(line)["step"] for line in faults.path.read_text().splitlines()] == [3, 9, 6]


def test_a_fault_that_is_repeated_after_a_crash_has_one_line(faults):
    for fault in (_skipped(3), _skipped(4), _skipped(3), _skipped(4), _skipped(3)):
        faults.write(fault)
    assert faults.read() == [_skipped(3), _skipped(4)]


def test_only_the_batches_of_rollbacks_are_skipped(faults):
    for fault in (_skipped(3), _rollback(9, [7, 8]), _skipped(12), _rollback(20, [8, 19])):
        faults.write(fault)
    assert faults.skipped_batches() == {7, 8, 19}
    assert [fault.step for fault in faults.rollbacks()] == [9, 20]


@given(fraction=st.floats(0, 1, exclude_max=True))
def test_a_last_line_that_a_crash_truncated_is_ignored_and_overwritten(fraction, tmp_path_factory):
    faults = FaultLog(tmp_path_factory.mktemp("truncated") / "faults.jsonl")
    faults.write(_skipped(3))
    faults.write(_rollback(9, [8]))
    complete_lines = faults.path.read_bytes()
    faults.write(_skipped(12))
    last_line = faults.path.read_bytes()[len(complete_lines) :]
    faults.path.write_bytes(complete_lines + last_line[: int(fraction * len(last_line))])
    assert faults.read() == [_skipped(3), _rollback(9, [8])]
    faults.write(_skipped(15))
    assert faults.read() == [_skipped(3), _rollback(9, [8]), _skipped(15)]
    assert faults.path.read_bytes().startswith(complete_lines)


def test_the_samples_of_all_batches_are_listed_with_their_epochs():
    assert list_samples(_samples_of, [3, 5]) == [[0, 6], [1, 7], [0, 10], [1, 11]]
