"""One process, or one per device: what `mosaicbert pretrain` starts."""

import os
import signal
import subprocess
import sys

from rich.console import Console

from mosaicbert.config import Recipe
from mosaicbert.data.prepare import prepare
from mosaicbert.train.device import count_processes, require_work_for_all
from mosaicbert.train.pretrain import pretrain
from mosaicbert.train.run import check_run


def launch(recipe: Recipe, arguments: list[str], console: Console) -> int:
    """Pretrains on all devices of this machine.

    A process that a launcher started (torchrun, Composer's) trains as the rank it was given. Otherwise this one trains
    itself if there is one device, and starts Composer's launcher if there are several.

    Args:
        recipe: to train.
        arguments: of the command `mosaicbert`, for the processes to start.
        console: to print to.

    Returns:
        The exit code.

    Raises:
        ConfigError: see `pretrain`; before any process is started.
    """
    num_processes = 1 if "RANK" in os.environ else count_processes(recipe)
    if num_processes == 1:
        pretrain(recipe, console)
        return 0
    check_run(recipe)
    require_work_for_all(recipe, prepare(recipe, console), num_processes)
    launcher = [sys.executable, "-m", "composer.cli.launcher", "--nproc", str(num_processes), "--module_mode"]
    process = subprocess.Popen([*launcher, "mosaicbert", *arguments])
    # Composer's launcher ends its processes when it is interrupted, and leaves them alone when it is terminated.
    signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGINT))
    try:
        return process.wait()
    except KeyboardInterrupt:  # the terminal has interrupted the launcher as well
        return process.wait()
