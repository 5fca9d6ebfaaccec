import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mosaicbert.config import ConfigError
from mosaicbert.filesystem import atomic_path, lock_folder, replace_folder, write_file

_HOLDER = """
import sys
from pathlib import Path
from mosaicbert.filesystem import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder's lock until its input ends."""
    command = [sys.executable, "-c", _HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "in\n"
        yield process
        process.kill()


def test_a_lock_that_another_process_holds_is_refused_in_the_words_that_were_given(tmp_path, holder):
    with pytest.raises(ConfigError) as raised, lock_folder(tmp_path, f"{tmp_path}: somebody is in; wait."):
        pass
    assert str(raised.value) == f"{tmp_path}: somebody is in; wait."
    assert holder.poll() is None


def test_a_lock_that_is_held_in_the_same_process_is_refused_too(tmp_path):
    with lock_folder(tmp_path), pytest.raises(ConfigError, match="refused"), lock_folder(tmp_path, "refused"):
        pass


def test_a_lock_is_lifted_when_its_holder_leaves(tmp_path):
    with lock_folder(tmp_path, "refused"):
        pass
    with lock_folder(tmp_path, "refused"):
        pass


def test_a_lock_is_lifted_when_its_holder_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), lock_folder(tmp_path, "refused"):
        raise ZeroDivisionError
    with lock_folder(tmp_path, "refused"):
        pass


def test_a_lock_is_lifted_when_its_holder_is_killed(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock_folder(tmp_path, "refused"):
        pass


def test_without_a_refusal_the_next_one_waits_until_the_holder_leaves(tmp_path, holder):
    entered = threading.Event()

    def enter():
        with lock_folder(tmp_path):
            entered.set()

    waiting = threading.Thread(target=enter, daemon=True)
    waiting.start()
    assert not entered.wait(0.2)
    holder.stdin.close()
    assert entered.wait(30)
    waiting.join()


def test_locks_of_two_folders_do_not_meet(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    with lock_folder(tmp_path / "one", "refused"), lock_folder(tmp_path / "other", "refused"):
        pass


def test_a_folder_that_has_gone_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match=r"gone: has gone; .* run again") as raised, lock_folder(tmp_path / "gone"):
        pass
    assert "\n" not in str(raised.value)
    assert not Path(tmp_path / "gone").exists()


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_beside_it(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "a.partial").symlink_to("/dev/full")
    with pytest.raises(ConfigError, match=r"/a: cannot be written \(No space left on device\); make room and run the"):
        write_file(tmp_path / "a", b"new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


def test_a_file_that_fails_while_it_is_written_leaves_the_old_one(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a") as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


@pytest.mark.parametrize("older", [None, "old"], ids=["new", "older"])
def test_a_finished_folder_replaces_an_older_one(tmp_path, older):
    for name, content in (("new", "new"), ("folder", older)):
        if content is not None:
            (tmp_path / name).mkdir()
            (tmp_path / name / "file").write_text(content)
    replace_folder(tmp_path / "new", tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "file").read_text() == "new"
