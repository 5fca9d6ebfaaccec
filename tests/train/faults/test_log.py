import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.train.checkpoint.format import (
    Checkpoint,
    checkpoint_path,
    list_checkpoints,
    read_state,
    remove_checkpoint,
    step_of,
    write_checkpoint,
)
from mosaicbert.train.checkpoint.resume import find_resume_point
from mosaicbert.train.checkpoint.rollback import log_rollback
from mosaicbert.train.faults.log import Fault, FaultLog, list_samples
from mosaicbert.train.faults.spike_detector import RollbackRequest
from mosaicbert.train.run_folder import RunFolder


def _samples_of(batch):
    return np.array([0, 1]), np.array([2 * batch, 2 * batch + 1])


def _skipped(step):
    return Fault(kind="skipped", step=step, reason="loss nan, gradient norm 1.0", batches=[step - 1], samples=[[0, 7]])


def _gone_back(step, batches, resumed_step=0):
    return Fault(kind="rollback", step=step, reason="loss 9", batches=batches, resumed_step=resumed_step, samples=[])


@pytest.fixture
def faults(tmp_path):
    return FaultLog(tmp_path / "faults.jsonl")


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path)


def _write_checkpoints(run, *steps, rollbacks=0):
    for step in steps:
        state = {"of": step, "rollbacks": rollbacks}
        write_checkpoint(run.checkpoints, step, Checkpoint({"w": torch.zeros(1)}, {}, state), keep=False)


def _steps(run):
    return [step_of(path) for path in list_checkpoints(run.checkpoints)]


def test_a_run_without_faults_has_no_file_and_leaves_nothing_out(faults):
    assert faults.read() == faults.rollbacks() == []
    assert faults.skipped_batches() == set()
    assert not faults.path.exists()


def test_faults_are_read_as_they_were_written_each_on_a_line(faults):
    written = [
        _skipped(3),
        _gone_back(9, [7, 8], resumed_step=6),
        Fault(kind="checkpoint", step=6, reason="é\n", batches=[]),
    ]
    for fault in written:
        faults.write(fault)
    assert faults.read() == written
    assert [json.loads(line)["step"] for line in faults.path.read_text().splitlines()] == [3, 9, 6]


def test_a_fault_that_happens_again_after_a_crash_is_noted_once(faults):
    for fault in (_skipped(3), _skipped(4), _skipped(3), _skipped(4), _skipped(3)):
        faults.write(fault)
    assert faults.read() == [_skipped(3), _skipped(4)]


def test_only_what_the_run_went_back_for_is_left_out(faults):
    for fault in (_skipped(3), _gone_back(9, [7, 8]), _skipped(12), _gone_back(20, [8, 19])):
        faults.write(fault)
    assert faults.skipped_batches() == {7, 8, 19}
    assert [fault.step for fault in faults.rollbacks()] == [9, 20]


@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_last_line_that_a_crash_cut_off_is_left_out_and_written_over(cut, tmp_path_factory):
    faults = FaultLog(tmp_path_factory.mktemp("torn") / "faults.jsonl")
    faults.write(_skipped(3))
    faults.write(_gone_back(9, [8]))
    whole = faults.path.read_bytes()
    faults.write(_skipped(12))
    last = faults.path.read_bytes()[len(whole) :]
    faults.path.write_bytes(whole + last[: int(cut * len(last))])
    assert faults.read() == [_skipped(3), _gone_back(9, [8])]
    faults.write(_skipped(15))
    assert faults.read() == [_skipped(3), _gone_back(9, [8]), _skipped(15)]
    assert faults.path.read_bytes().startswith(whole)


def test_the_samples_of_all_batches_are_listed_with_their_epochs():
    assert list_samples(_samples_of, [3, 5]) == [[0, 6], [1, 7], [0, 10], [1, 11]]


@pytest.mark.parametrize(
    "checkpoints, before, resumed",
    [
        ([3, 6, 9], [], 6),
        ([3, 6, 8], [], 6),
        ([3, 6], [], 6),
        ([3], [], 3),
        ([], [], 0),
        ([9, 12], [], 0),
        ([3, 6, 9], [8], 3),
        ([3, 6, 9], [12], 3),
        ([3, 6, 9], [18], 3),
        ([3, 6, 9], [19], 6),
        ([1, 3, 6], [7, 9], 1),
        ([1, 3, 6], [7, 8, 9, 10], 1),
        ([3, 6], [200], 6),
    ],
    ids=[
        "newest-before-the-step",
        "one-of-the-step-itself-is-too-new",
        "newest",
        "only-one",
        "none",
        "none-old-enough",
        "once-before-at-the-same-step",
        "once-before-a-little-later",
        "once-before-a-window-away",
        "once-before-further-away",
        "twice-before",
        "more-often-than-there-are-checkpoints",
        "long-ago",
    ],
)
def test_the_run_goes_back_one_checkpoint_further_each_time(checkpoints, before, resumed, run, faults):
    _write_checkpoints(run, *checkpoints, rollbacks=len(before))
    for step in before:
        faults.write(_gone_back(step, [step - 1]))
    fault = log_rollback(run, faults, RollbackRequest(8, [7], "loss 9"), window_steps=10, samples_of=_samples_of)
    assert fault.resumed_step == resumed
    restart, _ = find_resume_point(run, faults, None, lambda _: None)
    assert restart.step == resumed
    assert _steps(run) == [step for step in checkpoints if step <= resumed]
    assert [read_state(path)["of"] for path in list_checkpoints(run.checkpoints)] == _steps(run)


@pytest.mark.parametrize("removed", [(), (9,), (9, 6)], ids=["before", "on-the-way", "almost-done"])
def test_a_crash_while_going_back_changes_nothing(removed, run, faults):
    _write_checkpoints(run, 3, 6, 9)
    faults.write(_gone_back(10, [7], resumed_step=3))
    for step in removed:
        remove_checkpoint(checkpoint_path(run.checkpoints, step))
    restart, _ = find_resume_point(run, faults, None, lambda _: None)
    assert (restart.step, restart.skipped_batches, _steps(run)) == (3, {7}, [3])


def test_checkpoints_written_after_going_back_stay(run, faults):
    faults.write(_gone_back(8, [6], resumed_step=3))
    _write_checkpoints(run, 3, 6, 9, rollbacks=1)
    restart, _ = find_resume_point(run, faults, None, lambda _: None)
    assert (restart.step, _steps(run)) == (9, [3, 6, 9])


def test_going_back_is_noted_with_the_batches_and_their_samples(run, faults):
    _write_checkpoints(run, 3, 6)
    cause = RollbackRequest(8, [7, 6], "loss 9.000 after a median of 3.000")
    noted = log_rollback(run, faults, cause, window_steps=10, samples_of=_samples_of)
    assert faults.read() == [noted]
    assert noted == Fault(
        kind="rollback",
        step=8,
        reason="loss 9.000 after a median of 3.000",
        batches=[6, 7],
        resumed_step=6,
        samples=[[0, 12], [1, 13], [0, 14], [1, 15]],
    )


def test_the_run_goes_back_to_before_the_first_batch_that_is_left_out(run, faults):
    # Batches of steps without an update can lie on both sides of a checkpoint.
    _write_checkpoints(run, 3, 6, 9)
    cause = RollbackRequest(11, list(range(5, 11)), "6 steps in a row without a finite loss")
    assert log_rollback(run, faults, cause, window_steps=10, samples_of=_samples_of).resumed_step == 3
