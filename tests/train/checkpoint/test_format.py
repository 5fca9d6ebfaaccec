"""Checkpoint file format: exact round trips, detection of corruption, and crashes at any time."""

import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import stat
import tempfile
import time
from pathlib import Path

import pytest
import torch
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from mosaicbert.train.checkpoint.format import (
    Checkpoint,
    CheckpointError,
    checkpoint_path,
    list_checkpoints,
    read_checkpoint,
    read_state,
    remove_checkpoint,
    remove_old,
    step_of,
    write_checkpoint,
)
from tests.processes import in_child, killed_at_each_file_event, start_child, wait_for

_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
_SIZES = {torch.float32: 4, torch.bfloat16: 2, torch.int64: 8}
_NOBODY_UID = 65534


def _checkpoint(seed=0, size=7):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(size, 3, generator=generator)
    return Checkpoint(
        model={"model.embeddings.weight": weight, "model.scale": torch.tensor(0.1), "model.decoder.weight": weight},
        optimizer={
            "model.embeddings.weight": {
                "step": torch.tensor(3.0),
                "exp_avg": torch.randn(size, 3, generator=generator).bfloat16(),
            },
            "model.scale": {"step": torch.tensor(3), "exp_avg": torch.randn((), generator=generator)},
        },
        state={"position": {"steps": seed, "seconds": 1e-5 / 3}, "spike_detector": {"losses": [0.1, 2.5]}, "name": "é"},
    )


def _assert_same_tensors(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (tensor.dtype, tensor.shape), name
        bits = [each.reshape(-1).view(torch.uint8) for each in (actual[name], tensor)]
        assert torch.equal(*bits), name


def _assert_same(actual, expected):
    _assert_same_tensors(actual.model, expected.model)
    assert actual.optimizer.keys() == expected.optimizer.keys()
    for weight, tensors in expected.optimizer.items():
        _assert_same_tensors(actual.optimizer[weight], tensors)
    assert actual.state == expected.state


def _is_same(actual, expected):
    try:
        _assert_same(actual, expected)
    except AssertionError:
        return False
    return True


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return the path of a valid checkpoint, which tests copy."""
    return write_checkpoint(tmp_path_factory.mktemp("written"), 5, _checkpoint(5), keep=False)


def _read_corrupted(written, corrupt):
    """Read a copy of a checkpoint after calling `corrupt` with its path."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, written.name)
        shutil.copytree(written, copy)
        corrupt(copy)
        return read_checkpoint(copy)


@st.composite
def _tensors(draw):
    dtype = draw(st.sampled_from(list(_SIZES)))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    size = torch.Size(shape).numel() * _SIZES[dtype]
    content = draw(st.binary(min_size=size, max_size=size))  # any bits: NaNs, negative zeros, subnormal numbers
    flat = torch.frombuffer(bytearray(content), dtype=dtype) if size else torch.empty(0, dtype=dtype)
    tensor = flat.reshape(shape)
    return tensor.transpose(0, -1) if draw(st.booleans()) and tensor.ndim else tensor


_names = st.text("abc.", min_size=1, max_size=5)
_numbers = st.one_of(st.integers(-(2**60), 2**60), st.floats(allow_nan=False), st.booleans(), st.none())
_states = st.recursive(
    st.one_of(_numbers, st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)),
    max_leaves=10,
)


@given(
    model=st.dictionaries(_names, _tensors(), max_size=4),
    optimizer=st.dictionaries(_names, st.dictionaries(_names, _tensors(), min_size=1, max_size=3), max_size=3),
    state=st.dictionaries(st.text(max_size=5), _states, max_size=4),
)
@settings(max_examples=30)
def test_a_checkpoint_is_read_back_bit_for_bit(model, optimizer, state):
    checkpoint = Checkpoint(model, optimizer, state)
    with tempfile.TemporaryDirectory() as scratch:
        path = write_checkpoint(Path(scratch), 1, checkpoint, keep=False)
        _assert_same(read_checkpoint(path), checkpoint)
        assert read_state(path) == state


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-323, 1.7976931348623157e308, -0.0, 2**53 + 1])
def test_numbers_of_the_state_are_read_back_exactly(value, folder):
    path = write_checkpoint(folder, 1, Checkpoint({}, {}, {"number": value}), keep=False)
    assert repr(read_state(path)["number"]) == repr(value)


def test_a_tensor_with_two_names_is_stored_once_and_read_under_both(folder):
    tied = torch.arange(12.0).reshape(3, 4)
    model = {"decoder": tied, "copy": tied.clone(), "embeddings": tied}
    path = write_checkpoint(folder, 1, Checkpoint(model, {}, {}), keep=False)
    with safe_open(path / "model.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["copy", "decoder"]
    read = read_checkpoint(path).model
    _assert_same_tensors(read, model)
    assert read["decoder"].data_ptr() == read["embeddings"].data_ptr() != read["copy"].data_ptr()


def test_tensors_with_the_same_address_and_different_shapes_are_stored_separately(folder):
    whole = torch.arange(12.0).reshape(3, 4)
    model = {"whole": whole, "first": whole[:1]}
    path = write_checkpoint(folder, 1, Checkpoint(model, {}, {}), keep=False)
    _assert_same_tensors(read_checkpoint(path).model, model)


def test_the_optimizer_state_may_share_a_tensor_among_weights(folder):
    step = torch.tensor(3.0)
    optimizer = {"one": {"step": step}, "other": {"step": step}}
    path = write_checkpoint(folder, 1, Checkpoint({}, optimizer, {}), keep=False)
    _assert_same(read_checkpoint(path), Checkpoint({}, optimizer, {}))


@given(file=st.sampled_from(_FILES[:2]), position=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
@settings(max_examples=300)
def test_a_changed_byte_in_the_tensors_is_an_error(written, file, position, change):
    def corrupt(copy):
        content = bytearray((copy / file).read_bytes())
        content[int(position * len(content))] ^= change
        (copy / file).write_bytes(content)

    with pytest.raises(CheckpointError, match=f"{file} is corrupted"):
        _read_corrupted(written, corrupt)


def test_a_flipped_bit_in_the_state_is_an_error(written, tmp_path):
    content = (written / "state.json").read_bytes()
    undetected = []
    for index in range(len(content)):
        for bit in range(8):
            corrupted = bytearray(content)
            corrupted[index] ^= 1 << bit
            (tmp_path / "state.json").write_bytes(corrupted)
            try:
                read_state(tmp_path)
            except CheckpointError:
                continue
            undetected.append((index, bit, bytes(corrupted[max(0, index - 20) : index + 20])))
    assert undetected == []


@given(position=st.floats(0, 1, exclude_max=True), byte=st.sampled_from(b' \t\r\n"0159eE{[,:\x00\xff'))
@settings(max_examples=300)
@example(0.999999, ord(" "))
def test_a_changed_byte_in_the_state_is_an_error(written, position, byte):
    content = bytearray((written / "state.json").read_bytes())
    index = int(position * len(content))
    if content[index] == byte:
        return
    content[index] = byte
    with pytest.raises(CheckpointError, match=r"state\.json is corrupted"):
        _read_corrupted(written, lambda copy: (copy / "state.json").write_bytes(content))


@pytest.mark.parametrize("content", ["", "[]", "3", "null", "{}", '"sha256"', '{"sha256": null}', "[" * 100_000])
def test_a_state_with_unexpected_json_is_an_error(content, written):
    with pytest.raises(CheckpointError, match=r"state\.json is corrupted"):
        _read_corrupted(written, lambda copy: (copy / "state.json").write_text(content))


@given(file=st.sampled_from(_FILES), fraction=st.floats(0, 1, exclude_max=True))
@settings(max_examples=150)
def test_a_truncated_file_is_an_error(written, file, fraction):
    length = int(fraction * (written / file).stat().st_size)
    with pytest.raises(CheckpointError, match=f"{file} is corrupted"):
        _read_corrupted(written, lambda copy: os.truncate(copy / file, length))


@pytest.mark.parametrize("file", _FILES)
def test_a_file_with_an_additional_byte_is_an_error(file, written):
    with pytest.raises(CheckpointError, match=f"{file} is corrupted"):
        _read_corrupted(written, lambda copy: (copy / file).write_bytes((copy / file).read_bytes() + b" "))


@pytest.mark.parametrize("file", _FILES)
def test_a_missing_file_is_an_error(file, written):
    reason = "cannot be read" if file == "state.json" else r"is corrupted \(size is 0, expected"
    with pytest.raises(CheckpointError, match=f"{file} {reason}"):
        _read_corrupted(written, lambda copy: (copy / file).unlink())


@pytest.mark.parametrize("file", _FILES)
def test_a_folder_in_place_of_a_file_is_an_error(file, written):
    def corrupt(copy):
        (copy / file).unlink()
        (copy / file).mkdir()

    with pytest.raises(CheckpointError, match=file):
        _read_corrupted(written, corrupt)


@pytest.mark.parametrize("one, other", [_FILES[:2], _FILES[1:], _FILES[::2]])
def test_exchanged_files_are_an_error(one, other, written):
    def corrupt(copy):
        (copy / one).rename(copy / "temporary")
        (copy / other).rename(copy / one)
        (copy / "temporary").rename(copy / other)

    with pytest.raises(CheckpointError, match="corrupted"):
        _read_corrupted(written, corrupt)


@pytest.mark.parametrize("file", _FILES)
def test_a_file_of_another_checkpoint_is_an_error(file, written, tmp_path):
    other = write_checkpoint(tmp_path, 6, _checkpoint(6), keep=False)
    with pytest.raises(CheckpointError, match="corrupted"):
        _read_corrupted(written, lambda copy: shutil.copy(other / file, copy / file))


class _PickledCall:
    """Object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def _file_record(path):
    content = path.read_bytes()
    return {"bytes": len(content), "xxh3_128": xxhash.xxh3_128(content).hexdigest()}


@pytest.mark.parametrize("file", _FILES)
def test_reading_does_not_execute_code_from_a_file(file, written, tmp_path):
    marker = tmp_path / "marker"
    pickled = pickle.dumps(_PickledCall(marker))

    def corrupt(copy):
        (copy / file).write_bytes(pickled)
        if file != "state.json":  # an attacker would also update the checksums
            state = json.loads((copy / "state.json").read_text())
            state["files"][file] = _file_record(copy / file)
            del state["sha256"]
            digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
            (copy / "state.json").write_text(json.dumps(state | {"sha256": digest}, indent=1) + "\n")

    with pytest.raises(
        CheckpointError, match=r"state\.json is corrupted" if file == "state.json" else "cannot be read"
    ):
        _read_corrupted(written, corrupt)
    assert not marker.exists()
    pickle.loads(pickled)
    assert marker.exists()


def test_checkpoints_are_listed_in_order_of_their_steps_without_other_files(folder):
    assert list_checkpoints(folder) == []
    for step in (10, 9, 0, 1234):
        write_checkpoint(folder, step, _checkpoint(), keep=False)
    for name in ("step-11.partial", "step-", "step-x", "step-1.5", "step--1", "latest", "hf", "step-7-old"):
        (folder / name).mkdir()
    (folder / "lock").touch()
    assert [path.name for path in list_checkpoints(folder)] == ["step-0", "step-9", "step-10", "step-1234"]
    assert [step_of(path) for path in list_checkpoints(folder)] == [0, 9, 10, 1234]
    assert checkpoint_path(folder, 9) in list_checkpoints(folder)


@given(written=st.dictionaries(st.integers(0, 12), st.booleans(), max_size=5), keep_last=st.integers(1, 4))
@settings(max_examples=20)
def test_the_newest_checkpoints_and_those_written_with_keep_are_not_removed(written, keep_last):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for step, keep in written.items():
            write_checkpoint(folder, step, _checkpoint(step), keep=keep)
        remove_old(folder, keep_last)
        expected_steps = set(sorted(written)[-keep_last:]) | {step for step, keep in written.items() if keep}
        assert {path.name for path in folder.iterdir()} == {f"step-{step}" for step in expected_steps}
        for path in list_checkpoints(folder):
            _assert_same(read_checkpoint(path), _checkpoint(step_of(path)))


def test_incomplete_checkpoints_of_a_crash_are_removed_with_the_old_ones(folder):
    write_checkpoint(folder, 3, _checkpoint(), keep=False)
    for name in ("step-6.partial", "step-3.partial"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(b"incomplete")
    (folder / "step-notes").mkdir()
    remove_old(folder, keep_last=1)
    assert sorted(path.name for path in folder.iterdir()) == ["step-3", "step-notes"]


def test_a_corrupted_checkpoint_is_removed_with_the_old_ones(folder):
    for step in (1, 2, 3):
        write_checkpoint(folder, step, _checkpoint(), keep=True)
    (folder / "step-1" / "state.json").unlink()
    remove_old(folder, keep_last=1)
    assert [step_of(path) for path in list_checkpoints(folder)] == [2, 3]


@pytest.mark.parametrize("leftover", ["step-4", "step-4.partial"])
def test_a_checkpoint_replaces_an_earlier_one_of_the_same_step(leftover, folder):
    (folder / leftover).mkdir(parents=True)
    (folder / leftover / "state.json").write_text("incomplete")
    path = write_checkpoint(folder, 4, _checkpoint(4), keep=False)
    _assert_same(read_checkpoint(path), _checkpoint(4))
    assert list(folder.iterdir()) == [path]


def _is_complete(path):
    return _is_same(read_checkpoint(path), _checkpoint(step_of(path)))


def test_a_crash_at_any_file_operation_of_a_write_leaves_only_complete_checkpoints(folder):
    write_checkpoint(folder, 1, _checkpoint(1), keep=False)
    for number in killed_at_each_file_event(lambda: write_checkpoint(folder, 2, _checkpoint(2), keep=False)):
        paths = list_checkpoints(folder)
        assert step_of(paths[0]) == 1
        assert all(_is_complete(path) for path in paths), number
        remove_old(folder, keep_last=2)
        assert sorted(path for path in folder.iterdir()) == paths
        if paths[1:]:
            remove_checkpoint(paths[1])
    assert number > 10
    assert len(paths) == 2


def test_a_crash_while_a_checkpoint_is_replaced_leaves_only_complete_ones(folder):
    write_checkpoint(folder, 1, _checkpoint(1), keep=False)
    write_checkpoint(folder, 2, _checkpoint(2), keep=False)
    for number in killed_at_each_file_event(lambda: write_checkpoint(folder, 2, _checkpoint(2), keep=False)):
        paths = list_checkpoints(folder)
        assert step_of(paths[0]) == 1
        for path in paths:
            assert sorted(file.name for file in path.iterdir()) == sorted(_FILES), (number, path)
            assert _is_complete(path)
        shutil.rmtree(folder)
        write_checkpoint(folder, 1, _checkpoint(1), keep=False)
        write_checkpoint(folder, 2, _checkpoint(2), keep=False)


def test_a_crash_while_old_checkpoints_are_removed_leaves_only_complete_ones(folder):
    for step in (1, 2, 3):
        write_checkpoint(folder, step, _checkpoint(step), keep=step == 2)
    for _ in killed_at_each_file_event(lambda: remove_old(folder, keep_last=1)):
        paths = list_checkpoints(folder)
        assert {2, 3} <= {step_of(path) for path in paths}
        assert all(_is_complete(path) for path in paths)
        write_checkpoint(folder, 1, _checkpoint(1), keep=False)


def test_a_crash_at_any_time_leaves_only_complete_checkpoints(folder):
    large = Checkpoint({"weight": torch.arange(2.0**20)}, {"weight": {"exp_avg": torch.arange(2.0**20)}}, {"of": 0})
    draw = random.Random(0)
    start = time.monotonic()
    write_checkpoint(folder, 1, large, keep=False)
    seconds = time.monotonic() - start

    def write_repeatedly():
        for step in range(2, 1000):
            write_checkpoint(folder, step, large, keep=False)

    num_incomplete = 0
    for _ in range(30):
        child = start_child(write_repeatedly)
        time.sleep(2 * seconds * draw.random())
        os.kill(child, signal.SIGKILL)
        assert wait_for(child) == -signal.SIGKILL
        num_incomplete += any(folder.glob("*.partial"))
        paths = list_checkpoints(folder)
        assert step_of(paths[0]) == 1
        for path in paths:
            assert _is_same(read_checkpoint(path), large)
        for path in paths[1:]:
            remove_checkpoint(path)
    assert num_incomplete > 3  # otherwise the times are badly chosen


_FREE_BYTES = {
    "nothing-fits": 0,
    "header-fits": 100,
    "half-of-the-weights-fit": 30_000,
    "optimizer-does-not-fit": 80_000,
    "state-does-not-fit": 200_000,
}


@pytest.mark.parametrize("free_bytes", _FREE_BYTES.values(), ids=_FREE_BYTES.keys())
def test_a_failed_write_is_an_error_and_removes_its_files(free_bytes, folder):
    write_checkpoint(folder, 1, _checkpoint(1), keep=False)
    checkpoint = Checkpoint(
        {"weight": torch.zeros(15_000)}, {"weight": {"exp_avg": torch.zeros(40_000)}}, {"long": [0.5] * 50_000}
    )
    copy = folder.with_name("elsewhere")
    sizes = [path.stat().st_size for path in write_checkpoint(copy, 1, checkpoint, keep=False).iterdir()]
    assert any(size > free_bytes for size in sizes)

    def write_with_little_space():
        resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, resource.RLIM_INFINITY))
        with pytest.raises(CheckpointError, match=r"step-2 cannot be written \(.*File too large.*\)"):
            write_checkpoint(folder, 2, checkpoint, keep=False)

    assert in_child(write_with_little_space) == 0
    assert [path.name for path in folder.iterdir()] == ["step-1"]
    assert _is_complete(folder / "step-1")


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(CheckpointError, match=r"step-1 cannot be written \(Not a directory\)"):
        write_checkpoint(tmp_path / "checkpoints", 1, _checkpoint(), keep=False)


def test_a_read_only_folder_is_an_error_and_is_not_changed():
    with tempfile.TemporaryDirectory() as scratch:  # other users cannot read pytest's folders
        folder = Path(scratch)
        write_checkpoint(folder, 1, _checkpoint(1), keep=False)
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IROTH | stat.S_IXOTH)

        def write_as_another_user():
            if os.geteuid() == 0:  # root may write to read-only folders
                os.setuid(_NOBODY_UID)
            with pytest.raises(CheckpointError, match=r"step-2 cannot be written \(Permission denied\)"):
                write_checkpoint(folder, 2, _checkpoint(2), keep=False)

        assert in_child(write_as_another_user) == 0
        folder.chmod(stat.S_IRWXU)
        assert [path.name for path in folder.iterdir()] == ["step-1"]
        assert _is_complete(folder / "step-1")
