"""One process, or one per device: what `mosaicbert pretrain` starts."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from types import FrameType
from typing import IO

from rich.console import Console

from mosaicbert.config import Recipe
from mosaicbert.data.prepare.pipeline import prepare
from mosaicbert.train.processes import count_processes, require_work_for_all
from mosaicbert.train.run_folder import check_run

_LIFELINE = "MOSAICBERT_LIFELINE"  # a pipe's end, in the processes that this one starts
_POLL_SECONDS = 0.1
_LAST_LINES = 20


def launch(recipe: Recipe, arguments: list[str], console: Console) -> int:
    """Pretrains on all devices of this machine.

    A process that a launcher started (torchrun, Composer's, this one) trains as the rank it was given. Otherwise this
    one trains itself if there is one device, and starts a process for each if there are several. It hands them the
    signals that it gets; if one of them fails it ends the others, and if it is killed they end too.

    Args:
        recipe: to train.
        arguments: of the command `mosaicbert`, for the processes to start.
        console: to print to.

    Returns:
        The exit code.

    Raises:
        ConfigError: see `pretrain`; before any process is started.
    """
    if _LIFELINE in os.environ:
        threading.Thread(target=_end_with, args=(int(os.environ.pop(_LIFELINE)),), daemon=True).start()
    num_processes = 1 if "RANK" in os.environ else count_processes(recipe)
    if num_processes == 1:
        from mosaicbert.train.pretrain import pretrain  # here, because Composer takes seconds to import

        pretrain(recipe, console, command=shlex.join(["mosaicbert", *arguments]))
        return 0
    check_run(recipe)
    require_work_for_all(recipe, prepare(recipe, console), num_processes)
    return _run([sys.executable, "-m", "mosaicbert", *arguments], num_processes)


def _run(command: list[str], num_processes: int) -> int:
    read_end, write_end = os.pipe()  # it breaks when this process ends, however it does
    environment = os.environ | {
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        _LIFELINE: str(read_end),
    }
    with tempfile.TemporaryFile() as others:  # what the ranks but the first say; shown if one of them fails
        ranks = [
            subprocess.Popen(
                command,
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=None if rank == 0 else others,
                stderr=None if rank == 0 else others,
                pass_fds=(read_end,),
                start_new_session=True,  # else a terminal's interrupt would come twice
            )
            for rank in range(num_processes)
        ]
        os.close(read_end)

        def forward(number: int, _frame: FrameType | None) -> None:
            for rank in ranks:
                if rank.poll() is None:
                    rank.send_signal(number)

        before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            return _wait(ranks, others)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(write_end)


def _wait(ranks: list[subprocess.Popen[bytes]], others: IO[bytes]) -> int:
    """Waits for all; when one fails, ends the others, since they wait for it in an exchange that will not come."""
    failed: subprocess.Popen[bytes] | None = None
    while any(rank.poll() is None for rank in ranks):
        if failed is None:
            failed = next((rank for rank in ranks if rank.poll()), None)
            if failed is not None:
                for rank in ranks:
                    rank.kill()
        time.sleep(_POLL_SECONDS)
    failed = failed or next((rank for rank in ranks if rank.returncode), None)
    if failed is None:
        return 0
    if failed is not ranks[0]:
        others.seek(0)
        lines = others.read().decode(errors="replace").splitlines()[-_LAST_LINES:]
        print(*lines, f"rank {ranks.index(failed)} ended with {failed.returncode}", sep="\n", file=sys.stderr)
    return failed.returncode if failed.returncode > 0 else 128 - failed.returncode


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _end_with(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(1)
