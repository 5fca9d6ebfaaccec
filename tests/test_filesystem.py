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
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Process that holds the lock of the folder until its standard input is closed."""
    command = [sys.executable, "-c", _HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_folder_locked_by_another_process_raises_the_given_message(tmp_path, holder):
    with pytest.raises(ConfigError) as raised, lock_folder(tmp_path, f"{tmp_path} is in use. Wait for it."):
        pass
    assert str(raised.value) == f"{tmp_path} is in use. Wait for it."
    assert holder.poll() is None


def test_a_folder_locked_by_this_process_raises_the_given_message(tmp_path):
    with lock_folder(tmp_path), pytest.raises(ConfigError, match="locked"), lock_folder(tmp_path, "locked"):
        pass


def test_a_lock_is_released_at_the_end_of_the_block(tmp_path):
    with lock_folder(tmp_path, "locked"):
        pass
    with lock_folder(tmp_path, "locked"):
        pass


def test_a_lock_is_released_after_an_exception(tmp_path):
    with pytest.raises(ZeroDivisionError), lock_folder(tmp_path, "locked"):
        raise ZeroDivisionError
    with lock_folder(tmp_path, "locked"):
        pass


def test_a_lock_is_released_when_its_process_is_killed(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock_folder(tmp_path, "locked"):
        pass


def test_without_a_message_lock_folder_waits_for_the_release(tmp_path, holder):
    entered = threading.Event()

    def enter():
        with lock_folder(tmp_path):
            entered.set()

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    assert not entered.wait(0.2)
    holder.stdin.close()
    assert entered.wait(30)
    thread.join()


def test_locks_of_different_folders_are_independent(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    with lock_folder(tmp_path / "one", "locked"), lock_folder(tmp_path / "other", "locked"):
        pass


def test_a_missing_folder_raises_an_error_with_a_remedy(tmp_path):
    with (
        pytest.raises(ConfigError, match=r"missing does not exist any more: .* Run the command again") as raised,
        lock_folder(tmp_path / "missing"),
    ):
        pass
    assert "\n" not in str(raised.value)
    assert not Path(tmp_path / "missing").exists()


def test_a_failed_write_keeps_the_old_file_and_deletes_the_temporary_one(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "a.partial").symlink_to("/dev/full")
    with pytest.raises(ConfigError, match=r"/a cannot be written \(No space left on device\)\. Free disk space"):
        write_file(tmp_path / "a", b"new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


def test_an_exception_during_a_write_keeps_the_old_file(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a") as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


@pytest.mark.parametrize("previous", [None, "old"], ids=["new", "previous"])
def test_a_finished_folder_replaces_the_previous_one(tmp_path, previous):
    for name, content in (("new", "new"), ("folder", previous)):
        if content is not None:
            (tmp_path / name).mkdir()
            (tmp_path / name / "file").write_text(content)
    replace_folder(tmp_path / "new", tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "file").read_text() == "new"
