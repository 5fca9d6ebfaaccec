"""Server that forks Python programs from a process with the trainer already imported, which takes seconds.

`ForkingPopen` is a `subprocess.Popen` whose programs `python -m MODULE` and `python -c CODE` are forked by a server
common to all test processes. Inside `forking`, `subprocess` and the start method "spawn" of `multiprocessing` use it. A
forked program has its own arguments, environment, working directory, streams, session, signals and exit code, and forks
the programs that it starts. Only its parent process and its command line in `ps` differ. Isolated interpreters
(`python -I`) and other programs are started normally. With a GPU all programs are started normally, since CUDA does not
support forks.
"""

import atexit
import contextlib
import gc
import importlib
import itertools
import json
import multiprocessing
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Generator
from multiprocessing import popen_spawn_posix
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from mosaicbert.filesystem import lock_folder

_ROOT = Path(__file__).parents[1]
_FOLDER = "MOSAICBERT_FORK_SERVER"  # environment variable: folder of the server's socket
_SESSION = "MOSAICBERT_TEST_SESSION"  # environment variable: id of the process with which the server ends
_PRELOADED = (
    "datasets",
    "mosaicbert.cli",
    "mosaicbert.data.store_stats",
    "mosaicbert.finetune.glue.job",
    "mosaicbert.train.pretrain",
    "mosaicbert.train.results",
    "torch.distributed.run",
)
_MAX_REQUEST_BYTES = 1 << 18
_MAX_FDS = 16
_OriginalPopen = subprocess.Popen  # `forking` replaces it


def set_fork_server(folder: Path, session: int) -> None:
    """Configure the server of this process and its child processes. The server is started on first use.

    Args:
        folder: Folder of the socket and the log, the same for all processes of a test session.
        session: Id of the process with which the server ends.
    """
    folder.mkdir(exist_ok=True)
    os.environ |= {_FOLDER: str(folder), _SESSION: str(session)}


def _connect() -> socket.socket:
    folder = Path(os.environ[_FOLDER])
    address = folder / "socket"
    if not address.exists():
        with lock_folder(folder):
            if not address.exists():
                _start_server(address)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(str(address))
    except ConnectionRefusedError:  # the server has crashed: its log has the traceback
        with lock_folder(folder):
            if connection.connect_ex(str(address)):
                address.unlink()
                _start_server(address)
                connection.connect(str(address))
    return connection


def _start_server(address: Path) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        address.with_name("log").open("a") as log,
    ):
        listener.bind(str(address))
        listener.listen(64)
        program = f"from tests.fork_server import main; main({listener.fileno()}, {os.environ[_SESSION]})"
        _OriginalPopen(
            [sys.executable, "-c", program],
            cwd=_ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(listener.fileno(),),
        )


class ForkingPopen(subprocess.Popen[Any]):
    """Variant of `subprocess.Popen` whose Python programs are forked by the server."""

    _connection: socket.socket | None = None

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *others):
        if _program(args) is None or _FOLDER not in os.environ or torch.cuda.is_available():
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *others)
            return
        pipes, start_new_session = others[3:9], others[14]
        streams = [
            given if given != -1 else default for default, given in enumerate(pipes[index] for index in (0, 3, 5))
        ]
        request = {
            "command": [os.fsdecode(word) for word in args],
            "folder": os.path.abspath(cwd or "."),
            "environment": dict(os.environ if env is None else env),
            "fds": [0, 1, 2, *pass_fds],
            "start_new_session": start_new_session,
        }
        self._connection = _connect()
        socket.send_fds(self._connection, [json.dumps(request).encode()], [*streams, *pass_fds])
        self.pid = int(self._connection.recv(32))
        self._child_created = True
        self._close_pipe_fds(*pipes)

    def _internal_poll(self, *arguments, **keywords):
        if self._connection is None:
            return super()._internal_poll(*arguments, **keywords)
        if self.returncode is None:
            self._connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                self._read_status()
        return self.returncode

    def _wait(self, timeout):
        if self._connection is None:
            return super()._wait(timeout)
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                self._read_status()
            except TimeoutError:
                raise subprocess.TimeoutExpired(self.args, timeout) from None
        return self.returncode

    def _read_status(self) -> None:
        assert self._connection is not None
        self.returncode = int(self._connection.recv(32) or 1)  # empty if the server has been killed
        self._connection.close()


class _ForkedWorker(popen_spawn_posix.Popen):
    """Process of `multiprocessing` with the start method "spawn"."""

    def _launch(self, process: multiprocessing.Process) -> None:
        with mock.patch("multiprocessing.util.spawnv_passfds", self._fork):
            super()._launch(process)

    def _fork(self, _executable: bytes, command: list[str | bytes], fds: tuple[int, ...]) -> int:
        self._forked = ForkingPopen([os.fsdecode(word) for word in command], pass_fds=fds)
        return self._forked.pid

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        if self.returncode is None:
            self.returncode = self._forked.poll() if flag == os.WNOHANG else self._forked.wait()
        return self.returncode


@contextlib.contextmanager
def forking() -> Generator[None]:
    """Fork the Python programs and the workers of `multiprocessing` that this process starts."""
    with (
        mock.patch("subprocess.Popen", ForkingPopen),
        mock.patch("multiprocessing.context.SpawnProcess._Popen", staticmethod(_ForkedWorker)),
    ):
        yield


def _program(command: list[str]) -> list[str] | None:
    """Return the arguments from -m or -c on, or None for a command that cannot be forked."""
    words = [os.fsdecode(word) for word in command]
    if not words or words[0] != sys.executable:
        return None
    words = list(itertools.dropwhile(lambda word: word in ("-u", "-B"), words[1:]))
    return words if words[:1] in (["-m"], ["-c"]) else None


def _serve(listener: socket.socket, session: int) -> dict[str, Any] | None:
    """Fork a process for each request. Return the request in the forked process, and None when the session ends."""
    wakeup_read, wakeup_write = socket.socketpair()
    wakeup_read.setblocking(False)
    wakeup_write.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal also sends it to the forked processes
    signal.set_wakeup_fd(wakeup_write.fileno(), warn_on_full_buffer=False)
    session_end = os.pidfd_open(session)
    clients: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        for source in (listener, wakeup_read, session_end):
            selector.register(source, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if session_end in ready:
                return None
            if wakeup_read in ready:
                wakeup_read.recv(4096)
                _report_ended(clients)
            if listener in ready:
                client, _ = listener.accept()
                try:
                    content, fds, _, _ = socket.recv_fds(client, _MAX_REQUEST_BYTES, _MAX_FDS)
                except OSError:
                    content, fds = b"", []
                if not content:  # the client was killed before its request
                    client.close()
                    continue
                pid = os.fork()
                if pid == 0:
                    request = json.loads(content) | {"received": fds}
                    for other in (client, listener, wakeup_read, wakeup_write, *clients.values()):
                        other.close()
                    os.close(session_end)
                    return request
                for fd in fds:
                    os.close(fd)
                clients[pid] = client
                with contextlib.suppress(OSError):  # the client was killed after its request
                    client.send(str(pid).encode())


def _report_ended(clients: dict[int, socket.socket]) -> None:
    while clients:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with clients.pop(pid) as client:
            with contextlib.suppress(OSError):  # the client has ended before its program
                client.send(str(os.waitstatus_to_exitcode(status)).encode())


def _run(request: dict[str, Any]) -> int:
    """Run the requested program in this process, and return its exit code."""
    try:
        _run_program(request)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end(code: int) -> None:
    """Exit like an interpreter, but without the destruction of modules, which takes seconds."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run_program(request: dict[str, Any]) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["start_new_session"]:
        os.setsid()
    _renumber_fds(request["received"], request["fds"])
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    words = _program(request["command"])
    assert words is not None
    sys.path[0] = request["folder"]
    sys.path[1:1] = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.argv = ["-c", *words[2:]]
    if words[0] == "-m":
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})


def _renumber_fds(received: list[int], numbers: list[int]) -> None:
    """Renumber the received file descriptors as in the requesting process."""
    first_free = max(*numbers, *received) + 1
    copies = [os.dup2(fd, first_free + index) for index, fd in enumerate(received)]
    for fd in received:
        os.close(fd)
    for fd, number in zip(copies, numbers, strict=True):
        os.dup2(fd, number)
        os.close(fd)


def main(listener: int, session: int) -> None:
    """Import the trainer and serve requests. Each forked process runs its program."""
    for name in _PRELOADED:
        importlib.import_module(name)
    # Composer describes the CPU whenever it creates a trainer, which takes a second, and keeps the description.
    importlib.import_module("composer.utils.collect_env").get_cpu_model()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # a garbage collection in a forked process would copy all memory pages
    request = _serve(socket.socket(fileno=listener), session)
    if request is not None:
        with forking():
            _end(_run(request))
