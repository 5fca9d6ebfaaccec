"""Launch of training processes: one per device of this machine."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from types import FrameType
from typing import IO

import torch
from rich.console import Console

from mosaicbert.config import ConfigError, Recipe, TrainConfig
from mosaicbert.console import print_line
from mosaicbert.train.resolve import prepare_run, resolve_num_processes, resolve_precision, resolve_run
from mosaicbert.train.run_folder import create_run_folder

_PARENT_DEATH_PIPE = "MOSAICBERT_PARENT_DEATH_PIPE"  # environment variable: file descriptor of the read end
_POLL_SECONDS = 0.1
_NUM_LAST_LINES = 20


def launch(recipe: Recipe, arguments: list[str], console: Console) -> int:
    """Pretrain on all devices of this machine.

    A process that a launcher has started (torchrun, Composer's or this function) trains as one rank. Otherwise this
    process trains itself if there is one device, and starts one process per device if there are several. It forwards
    SIGTERM and SIGINT to them, and kills all of them if one fails. They exit when this process is killed.

    Args:
        recipe: Recipe to train.
        arguments: Arguments of the command `mosaicbert`, which are passed to the processes.
        console: Console to print to.

    Returns:
        Exit code of the command.

    Raises:
        ConfigError: If a check of `prepare_run` fails, before any process is started; or in a process that trains, see
            `resolve_run` and `pretrain`.
    """
    if _PARENT_DEATH_PIPE in os.environ:
        read_end = int(os.environ.pop(_PARENT_DEATH_PIPE))
        threading.Thread(target=_exit_with_parent, args=(read_end,), daemon=True).start()
    if "RANK" not in os.environ and recipe.train.num_processes == "auto" and not torch.cuda.is_available():
        recipe = _measure_processes(recipe, console)
    num_processes = 1 if "RANK" in os.environ else count_processes(recipe.train)
    if num_processes > 1:
        folder, store = prepare_run(recipe, console, num_processes)
        if not folder.is_finished:
            if recipe.train.precision == "auto" and not torch.cuda.is_available():
                create_run_folder(resolve_precision(recipe, folder)[0], store)  # all ranks read the precision there
            return _run_ranks([sys.executable, "-m", "mosaicbert", *arguments], num_processes)
    resolved = resolve_run(recipe, console)
    from mosaicbert.train.pretrain import pretrain  # here, because Composer takes seconds to import

    pretrain(resolved, console, command=shlex.join(["mosaicbert", *arguments]))
    return 0


def _measure_processes(recipe: Recipe, console: Console) -> Recipe:
    """Return the recipe with the measured number of processes, after its store is prepared.

    The run folder is created with this number and the precision, so that the ranks and a resumed run read them there.
    """
    folder, store = prepare_run(recipe, console, 1)
    if folder.is_finished:
        return replace(recipe, train=replace(recipe.train, num_processes=1))
    measured, precision_reason = resolve_precision(recipe, folder)
    number, reason = resolve_num_processes(measured, folder)
    create_run_folder(replace(measured, train=replace(measured.train, num_processes=number)), store)
    print_line(console, f"precision: {measured.train.precision} ({precision_reason})")
    print_line(console, f"processes: {number} ({reason})")
    return replace(recipe, train=replace(recipe.train, num_processes=number))


def count_processes(config: TrainConfig) -> int:
    """Return the number of processes to start on this machine: as set in the recipe, or one per GPU.

    Args:
        config: Train section of the recipe.

    Raises:
        ConfigError: If more processes are set than there are GPUs.
    """
    num_gpus = torch.cuda.device_count()
    if not isinstance(config.num_processes, int):
        return max(1, num_gpus)
    if num_gpus and config.num_processes > num_gpus:
        raise ConfigError(
            f"`train.num_processes` must be at most the number of GPUs, {num_gpus}, got {config.num_processes}. "
            f"Set `train.num_processes={num_gpus}`."
        )
    return config.num_processes


def _run_ranks(command: list[str], num_processes: int) -> int:
    read_end, write_end = os.pipe()  # closed by the system when this process ends for any reason
    environment = os.environ | {
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        _PARENT_DEATH_PIPE: str(read_end),
    }
    with tempfile.TemporaryFile() as output:  # output of all ranks except the first, printed if one fails
        ranks = [
            subprocess.Popen(
                command,
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=None if rank == 0 else output,
                stderr=None if rank == 0 else output,
                pass_fds=(read_end,),
                start_new_session=True,  # otherwise an interrupt at the terminal would be delivered twice
            )
            for rank in range(num_processes)
        ]
        os.close(read_end)

        def forward(number: int, _frame: FrameType | None) -> None:
            for rank in ranks:
                if rank.poll() is None:
                    rank.send_signal(number)

        previous_handlers = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            return _wait(ranks, output)
        finally:
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)
            os.close(write_end)


def _wait(ranks: list[subprocess.Popen[bytes]], output: IO[bytes]) -> int:
    """Wait for all ranks. If one fails, kill the others, which would wait for it in a collective operation."""
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
        output.seek(0)
        lines = output.read().decode(errors="replace").splitlines()[-_NUM_LAST_LINES:]
        print(*lines, f"rank {ranks.index(failed)} exited with code {failed.returncode}", sep="\n", file=sys.stderr)
    return failed.returncode if failed.returncode > 0 else 128 - failed.returncode


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _exit_with_parent(read_end: int) -> None:
    os.read(read_end, 1)
    os._exit(1)
