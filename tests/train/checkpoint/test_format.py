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
_NOBODY = 65534


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
        state={"position": {"steps": seed, "seconds": 1e-5 / 3}, "guard": {"losses": [0.1, 2.5]}, "name": "é"},
    )


def _assert_same_tensors(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape), name
        bits = [each.reshape(-1).view(torch.uint8) for each in (ours[name], tensor)]
        assert torch.equal(*bits), name


def _assert_same(ours, theirs):
    _assert_same_tensors(ours.model, theirs.model)
    assert ours.optimizer.keys() == theirs.optimizer.keys()
    for weight, kept in theirs.optimizer.items():
        _assert_same_tensors(ours.optimizer[weight], kept)
    assert ours.state == theirs.state


def _is_same(ours, theirs):
    try:
        _assert_same(ours, theirs)
    except AssertionError:
        return False
    return True


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A checkpoint to damage copies of."""
    return write_checkpoint(tmp_path_factory.mktemp("written"), 5, _checkpoint(5), keep=False)


def _damaged(written, damage):
    """What is read from a copy of `written` after `damage`: the errors' messages, or what came without an error."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, written.name)
        shutil.copytree(written, copy)
        damage(copy)
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
def test_what_is_written_is_read_bit_for_bit(model, optimizer, state):
    checkpoint = Checkpoint(model, optimizer, state)
    with tempfile.TemporaryDirectory() as scratch:
        path = write_checkpoint(Path(scratch), 1, checkpoint, keep=False)
        _assert_same(read_checkpoint(path), checkpoint)
        assert read_state(path) == state


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-323, 1.7976931348623157e308, -0.0, 2**53 + 1])
def test_a_number_of_the_state_comes_back_exactly(value, folder):
    path = write_checkpoint(folder, 1, Checkpoint({}, {}, {"number": value}), keep=False)
    assert repr(read_state(path)["number"]) == repr(value)


def test_a_tensor_of_two_names_is_stored_once_and_read_under_both(folder):
    tied = torch.arange(12.0).reshape(3, 4)
    alone = tied.clone()
    model = {"decoder": tied, "alone": alone, "embeddings": tied}
    path = write_checkpoint(folder, 1, Checkpoint(model, {}, {}), keep=False)
    with safe_open(path / "model.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["alone", "decoder"]
    read = read_checkpoint(path).model
    _assert_same_tensors(read, model)
    assert read["decoder"].data_ptr() == read["embeddings"].data_ptr() != read["alone"].data_ptr()


def test_tensors_that_only_begin_at_the_same_place_are_not_taken_for_one(folder):
    whole = torch.arange(12.0).reshape(3, 4)
    model = {"whole": whole, "first": whole[:1]}
    path = write_checkpoint(folder, 1, Checkpoint(model, {}, {}), keep=False)
    _assert_same_tensors(read_checkpoint(path).model, model)


def test_the_optimizer_may_share_a_tensor_among_weights(folder):
    step = torch.tensor(3.0)
    optimizer = {"one": {"step": step}, "other": {"step": step}}
    path = write_checkpoint(folder, 1, Checkpoint({}, optimizer, {}), keep=False)
    _assert_same(read_checkpoint(path), Checkpoint({}, optimizer, {}))


@given(file=st.sampled_from(_FILES[:2]), place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
@settings(max_examples=300)
def test_a_byte_that_changed_in_the_tensors_is_an_error(written, file, place, change):
    def damage(copy):
        content = bytearray((copy / file).read_bytes())
        content[int(place * len(content))] ^= change
        (copy / file).write_bytes(content)

    with pytest.raises(CheckpointError, match=f"{file}: damaged"):
        _damaged(written, damage)


def test_a_bit_that_flipped_in_the_state_is_an_error(written, tmp_path):
    content = (written / "state.json").read_bytes()
    silent = []
    for place in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            (tmp_path / "state.json").write_bytes(damaged)
            try:
                read_state(tmp_path)
            except CheckpointError:
                continue
            silent.append((place, bit, bytes(damaged[max(0, place - 20) : place + 20])))
    assert silent == []


@given(place=st.floats(0, 1, exclude_max=True), byte=st.sampled_from(b' \t\r\n"0159eE{[,:\x00\xff'))
@settings(max_examples=300)
@example(0.999999, ord(" "))
def test_a_byte_that_changed_in_the_state_is_an_error(written, place, byte):
    content = bytearray((written / "state.json").read_bytes())
    place = int(place * len(content))
    if content[place] == byte:
        return
    content[place] = byte
    with pytest.raises(CheckpointError, match=r"state\.json: damaged"):
        _damaged(written, lambda copy: (copy / "state.json").write_bytes(content))


@pytest.mark.parametrize("content", ["", "[]", "3", "null", "{}", '"sha256"', '{"sha256": null}', "[" * 100_000])
def test_a_state_that_is_another_json_is_an_error(content, written):
    with pytest.raises(CheckpointError, match=r"state\.json: damaged"):
        _damaged(written, lambda copy: (copy / "state.json").write_text(content))


@given(file=st.sampled_from(_FILES), share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=150)
def test_a_file_that_was_cut_off_is_an_error(written, file, share):
    length = int(share * (written / file).stat().st_size)
    with pytest.raises(CheckpointError, match=f"{file}: damaged"):
        _damaged(written, lambda copy: os.truncate(copy / file, length))


@pytest.mark.parametrize("file", _FILES)
def test_a_file_with_a_byte_too_many_is_an_error(file, written):
    with pytest.raises(CheckpointError, match=f"{file}: damaged"):
        _damaged(written, lambda copy: (copy / file).write_bytes((copy / file).read_bytes() + b" "))


@pytest.mark.parametrize("file", _FILES)
def test_a_file_that_is_missing_is_an_error(file, written):
    with pytest.raises(CheckpointError, match=f"{file}: damaged"):
        _damaged(written, lambda copy: (copy / file).unlink())


@pytest.mark.parametrize("file", _FILES)
def test_a_folder_in_place_of_a_file_is_an_error(file, written):
    def damage(copy):
        (copy / file).unlink()
        (copy / file).mkdir()

    with pytest.raises(CheckpointError, match=file):
        _damaged(written, damage)


@pytest.mark.parametrize("one, other", [_FILES[:2], _FILES[1:], _FILES[::2]])
def test_files_that_were_exchanged_are_an_error(one, other, written):
    def damage(copy):
        (copy / one).rename(copy / "aside")
        (copy / other).rename(copy / one)
        (copy / "aside").rename(copy / other)

    with pytest.raises(CheckpointError, match="damaged"):
        _damaged(written, damage)


@pytest.mark.parametrize("file", _FILES)
def test_a_file_of_another_checkpoint_is_an_error(file, written, tmp_path):
    other = write_checkpoint(tmp_path, 6, _checkpoint(6), keep=False)
    with pytest.raises(CheckpointError, match="damaged"):
        _damaged(written, lambda copy: shutil.copy(other / file, copy / file))


class _Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def _as_written(path):
    content = path.read_bytes()
    return {"bytes": len(content), "xxh3_128": xxhash.xxh3_128(content).hexdigest()}


@pytest.mark.parametrize("file", _FILES)
def test_reading_runs_nothing_that_a_file_holds(file, written, tmp_path):
    sprung = tmp_path / "sprung"
    trap = pickle.dumps(_Trap(sprung))

    def damage(copy):
        (copy / file).write_bytes(trap)
        if file != "state.json":  # whoever sets a trap makes the checksums right, too
            state = json.loads((copy / "state.json").read_text())
            state["files"][file] = _as_written(copy / file)
            del state["sha256"]
            digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
            (copy / "state.json").write_text(json.dumps(state | {"sha256": digest}, indent=1) + "\n")

    with pytest.raises(CheckpointError, match=r"state\.json: damaged" if file == "state.json" else "cannot be read"):
        _damaged(written, damage)
    assert not sprung.exists()
    pickle.loads(trap)
    assert sprung.exists()


def test_checkpoints_are_listed_by_their_steps_and_nothing_else_is(folder):
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
def test_the_newest_checkpoints_and_those_to_keep_are_kept(written, keep_last):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for step, keep in written.items():
            write_checkpoint(folder, step, _checkpoint(step), keep=keep)
        remove_old(folder, keep_last)
        wanted = set(sorted(written)[-keep_last:]) | {step for step, keep in written.items() if keep}
        assert {path.name for path in folder.iterdir()} == {f"step-{step}" for step in wanted}
        for path in list_checkpoints(folder):
            _assert_same(read_checkpoint(path), _checkpoint(step_of(path)))


def test_what_a_crash_left_is_removed_with_the_old(folder):
    write_checkpoint(folder, 3, _checkpoint(), keep=False)
    for name in ("step-6.partial", "step-3.partial"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(b"half")
    (folder / "step-notes").mkdir()
    remove_old(folder, keep_last=1)
    assert sorted(path.name for path in folder.iterdir()) == ["step-3", "step-notes"]


def test_a_damaged_checkpoint_is_removed_with_the_old(folder):
    for step in (1, 2, 3):
        write_checkpoint(folder, step, _checkpoint(), keep=True)
    (folder / "step-1" / "state.json").unlink()
    remove_old(folder, keep_last=1)
    assert [step_of(path) for path in list_checkpoints(folder)] == [2, 3]


@pytest.mark.parametrize("leftover", ["step-4", "step-4.partial"])
def test_a_step_that_is_done_again_replaces_what_is_there(leftover, folder):
    (folder / leftover).mkdir(parents=True)
    (folder / leftover / "state.json").write_text("half")
    path = write_checkpoint(folder, 4, _checkpoint(4), keep=False)
    _assert_same(read_checkpoint(path), _checkpoint(4))
    assert list(folder.iterdir()) == [path]


def _is_whole(path):
    return _is_same(read_checkpoint(path), _checkpoint(step_of(path)))


def test_a_crash_at_any_file_operation_leaves_whole_checkpoints_only(folder):
    write_checkpoint(folder, 1, _checkpoint(1), keep=False)
    for number in killed_at_each_file_event(lambda: write_checkpoint(folder, 2, _checkpoint(2), keep=False)):
        found = list_checkpoints(folder)
        assert step_of(found[0]) == 1
        assert all(_is_whole(path) for path in found), number
        remove_old(folder, keep_last=2)
        assert sorted(path for path in folder.iterdir()) == found
        if found[1:]:
            remove_checkpoint(found[1])
    assert number > 10
    assert len(found) == 2


def test_a_crash_while_a_checkpoint_is_written_again_leaves_whole_ones_only(folder):
    write_checkpoint(folder, 1, _checkpoint(1), keep=False)
    write_checkpoint(folder, 2, _checkpoint(2), keep=False)
    for number in killed_at_each_file_event(lambda: write_checkpoint(folder, 2, _checkpoint(2), keep=False)):
        found = list_checkpoints(folder)
        assert step_of(found[0]) == 1
        for path in found:
            assert sorted(file.name for file in path.iterdir()) == sorted(_FILES), (number, path)
            assert _is_whole(path)
        shutil.rmtree(folder)
        write_checkpoint(folder, 1, _checkpoint(1), keep=False)
        write_checkpoint(folder, 2, _checkpoint(2), keep=False)


def test_a_crash_while_old_ones_are_removed_leaves_whole_ones_only(folder):
    for step in (1, 2, 3):
        write_checkpoint(folder, step, _checkpoint(step), keep=step == 2)
    for _ in killed_at_each_file_event(lambda: remove_old(folder, keep_last=1)):
        found = list_checkpoints(folder)
        assert {2, 3} <= {step_of(path) for path in found}
        assert all(_is_whole(path) for path in found)
        write_checkpoint(folder, 1, _checkpoint(1), keep=False)


def test_a_crash_at_any_moment_leaves_whole_checkpoints_only(folder):
    large = Checkpoint({"weight": torch.arange(2.0**20)}, {"weight": {"exp_avg": torch.arange(2.0**20)}}, {"of": 0})
    draw = random.Random(0)
    began = time.monotonic()
    write_checkpoint(folder, 1, large, keep=False)
    lasted = time.monotonic() - began

    def write_on():
        for step in range(2, 1000):
            write_checkpoint(folder, step, large, keep=False)

    unfinished = 0
    for _ in range(30):
        child = start_child(write_on)
        time.sleep(2 * lasted * draw.random())
        os.kill(child, signal.SIGKILL)
        assert wait_for(child) == -signal.SIGKILL
        unfinished += any(folder.glob("*.partial"))
        found = list_checkpoints(folder)
        assert step_of(found[0]) == 1
        for path in found:
            assert _is_same(read_checkpoint(path), large)
        for path in found[1:]:
            remove_checkpoint(path)
    assert unfinished > 3  # or the moments were badly chosen


_FULL = {
    "nothing-fits": 0,
    "header-fits": 100,
    "half-of-the-weights-fit": 30_000,
    "optimizer-does-not-fit": 80_000,
    "state-does-not-fit": 200_000,
}


@pytest.mark.parametrize("room", _FULL.values(), ids=_FULL.keys())
def test_a_write_that_fails_is_an_error_and_leaves_nothing_behind(room, folder):
    write_checkpoint(folder, 1, _checkpoint(1), keep=False)
    checkpoint = Checkpoint(
        {"weight": torch.zeros(15_000)}, {"weight": {"exp_avg": torch.zeros(40_000)}}, {"long": [0.5] * 50_000}
    )
    copy = folder.with_name("elsewhere")
    sizes = [path.stat().st_size for path in write_checkpoint(copy, 1, checkpoint, keep=False).iterdir()]
    assert any(size > room for size in sizes)

    def write_with_little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        with pytest.raises(CheckpointError, match=r"step-2: could not be written \(.*File too large.*\)"):
            write_checkpoint(folder, 2, checkpoint, keep=False)

    assert in_child(write_with_little_room) == 0
    assert [path.name for path in folder.iterdir()] == ["step-1"]
    assert _is_whole(folder / "step-1")


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(CheckpointError, match=r"step-1: could not be written \(Not a directory\)"):
        write_checkpoint(tmp_path / "checkpoints", 1, _checkpoint(), keep=False)


def test_a_folder_that_is_read_only_is_an_error_and_stays_as_it_is():
    with tempfile.TemporaryDirectory() as scratch:  # pytest's own folders are closed to others
        folder = Path(scratch)
        write_checkpoint(folder, 1, _checkpoint(1), keep=False)
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IROTH | stat.S_IXOTH)

        def write_as_anybody():
            if os.geteuid() == 0:  # to whom nothing is read-only
                os.setuid(_NOBODY)
            with pytest.raises(CheckpointError, match=r"step-2: could not be written \(Permission denied\)"):
                write_checkpoint(folder, 2, _checkpoint(2), keep=False)

        assert in_child(write_as_anybody) == 0
        folder.chmod(stat.S_IRWXU)
        assert [path.name for path in folder.iterdir()] == ["step-1"]
        assert _is_whole(folder / "step-1")
