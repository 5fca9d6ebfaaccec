"""Checkpoints to Hugging Face folders, beside the training: runs/x/hf/step-N, and runs/x/hf is the newest of them."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

from mosaicbert.export.hf_folder import publish
from mosaicbert.filesystem import lock
from mosaicbert.train.checkpoint.format import list_checkpoints, step_of
from mosaicbert.train.run_folder import RunFolder, newest_export

_NICENESS = 19  # training comes first
OF_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
# A process group of its own: what interrupts the training lets it finish, or `stop` ends it. Not a session of its own:
# Linux shares out the cores among sessions first, whatever their priority.
_PROGRAM = f"""
import os, sys
os.setpgid(0, 0)
os.nice({_NICENESS})
from mosaicbert.train.results import export_step
export_step(sys.argv[1], int(sys.argv[2]))
"""


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:  # else its number may be another's
        try:
            os.killpg(process.pid, signal.SIGKILL)  # and what it has started
        except ProcessLookupError:  # it has only begun
            process.kill()


class Exporter:
    """Keeps one Hugging Face folder per checkpoint: newest first, one process at a time, at the lowest priority.

    Args:
        run: its folder.
        say: prints a line.

    Attributes:
        failures: why an export failed, by step.
    """

    def __init__(self, run: RunFolder, say: Callable[[str], None]) -> None:
        self.run = run
        self.say = say
        self.failures: dict[int, str] = {}
        self._stopped = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None

    def follow(self) -> None:
        """Begins to export the checkpoints that lack their folder, unless it is being done; returns at once."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Waits until every checkpoint has its folder, or has failed to get it."""
        self.follow()
        assert self._thread is not None
        self._thread.join()
        if self._missing():  # a checkpoint has come meanwhile
            self.finish()

    def forget_after(self, step: int) -> None:
        """Removes the exports of checkpoints that a rollback has taken away: the same steps will have other weights."""
        self.stop()
        self._stopped.clear()
        for folder in self.run.hugging_face.glob("step-*[0-9]"):
            if step_of(folder) > step:
                shutil.rmtree(folder)
        self.failures = {failed: why for failed, why in self.failures.items() if failed <= step}
        if newest_export(self.run) is None:
            shutil.rmtree(self.run.hugging_face, ignore_errors=True)
        else:
            self._tidy()

    def stop(self) -> None:
        """Leaves what is not exported yet to the next sitting."""
        self._stopped.set()
        if self._process is not None:
            _kill(self._process)
        if self._thread is not None:
            self._thread.join()

    def _missing(self) -> list[int]:
        steps = reversed([step_of(path) for path in list_checkpoints(self.run.checkpoints)])
        return [step for step in steps if step not in self.failures and not self.run.export_of(step).is_dir()]

    def _work(self) -> None:
        self._tidy()
        while not self._stopped.is_set() and (missing := self._missing()):
            self._export(missing[0])
            self._tidy()

    def _export(self, step: int) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in OF_LAUNCHERS}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(self.run.path), str(step)],
                env=environment | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            self._fail(step, str(error))
            return
        if self._stopped.is_set():  # meanwhile
            _kill(self._process)
        _, errors = self._process.communicate()
        still_wanted = step in {step_of(path) for path in list_checkpoints(self.run.checkpoints)}
        if self._process.returncode and still_wanted and not self._stopped.is_set():
            self._fail(step, (errors.strip().splitlines() or ["no output"])[-1])

    def _fail(self, step: int, why: str) -> None:
        self.failures[step] = why
        self.say(f"step {step} was not exported: {why}")

    def _tidy(self) -> None:
        """Shows the newest export, which a crash may have left unshown, and removes those of removed checkpoints."""
        newest = newest_export(self.run)
        if newest is None:
            return
        with lock(self.run.checkpoints):
            publish(self.run.hugging_face, newest)
            kept = {step_of(path) for path in list_checkpoints(self.run.checkpoints)}
            for folder in self.run.hugging_face.glob("step-*[0-9]"):
                if step_of(folder) not in kept and folder != newest:
                    shutil.rmtree(folder, ignore_errors=True)
