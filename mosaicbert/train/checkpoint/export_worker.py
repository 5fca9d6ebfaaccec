"""Export of checkpoints to Hugging Face folders in a separate process, during training.

`runs/x/hf/step-N` is the export of the checkpoint after N steps. `runs/x/hf` contains the files of the newest export.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

from mosaicbert.export.hf_folder import publish
from mosaicbert.filesystem import lock_folder
from mosaicbert.train.checkpoint.format import list_checkpoints, step_of
from mosaicbert.train.run_folder import RunFolder, newest_export

_NICENESS = 19  # training has priority
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
# The export has its own process group, so that only `stop` ends it, not an interrupt of the training. It does not have
# its own session: Linux divides the CPU among sessions before it considers niceness.
_PROGRAM = f"""
import os, sys
os.setpgid(0, 0)
os.nice({_NICENESS})
from mosaicbert.train.results import export_step
export_step(sys.argv[1], int(sys.argv[2]))
"""


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:  # otherwise its id may belong to a different process
        try:
            os.killpg(process.pid, signal.SIGKILL)  # also ends its child processes
        except ProcessLookupError:  # the process has not set its process group yet
            process.kill()


class ExportWorker:
    """Export checkpoints to Hugging Face folders: newest first, one process at a time, at the lowest priority.

    Args:
        run: Run folder.
        log: Function that prints a line.

    Attributes:
        failures: Reason why an export failed, by step.
    """

    def __init__(self, run: RunFolder, log: Callable[[str], None]) -> None:
        self.run = run
        self.log = log
        self.failures: dict[int, str] = {}
        self._stop_event = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start to export the checkpoints without an export, unless this is in progress. Return at once."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._export_missing, daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Wait until the export of every checkpoint has finished or failed."""
        self.start()
        assert self._thread is not None
        self._thread.join()
        if self._missing_steps():  # another checkpoint was written in the meantime
            self.finish()

    def remove_after(self, step: int) -> None:
        """Remove the exports of later steps after a rollback, since these steps will have different weights."""
        self.stop()
        self._stop_event.clear()
        for folder in self.run.hugging_face.glob("step-*[0-9]"):
            if step_of(folder) > step:
                shutil.rmtree(folder)
        self.failures = {failed: reason for failed, reason in self.failures.items() if failed <= step}
        if newest_export(self.run) is None:
            shutil.rmtree(self.run.hugging_face, ignore_errors=True)
        else:
            self._clean_up()

    def stop(self) -> None:
        """Stop the export in progress. The next session exports the remaining checkpoints."""
        self._stop_event.set()
        if self._process is not None:
            _kill(self._process)
        if self._thread is not None:
            self._thread.join()

    def _missing_steps(self) -> list[int]:
        steps = reversed([step_of(path) for path in list_checkpoints(self.run.checkpoints)])
        return [step for step in steps if step not in self.failures and not self.run.export_of(step).is_dir()]

    def _export_missing(self) -> None:
        self._clean_up()
        while not self._stop_event.is_set() and (missing := self._missing_steps()):
            self._export(missing[0])
            self._clean_up()

    def _export(self, step: int) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
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
        if self._stop_event.is_set():  # `stop` was called while the process started
            _kill(self._process)
        _, errors = self._process.communicate()
        is_kept = step in {step_of(path) for path in list_checkpoints(self.run.checkpoints)}
        if self._process.returncode and is_kept and not self._stop_event.is_set():
            self._fail(step, (errors.strip().splitlines() or ["no output"])[-1])

    def _fail(self, step: int, reason: str) -> None:
        self.failures[step] = reason
        self.log(f"step {step}: export failed: {reason}")

    def _clean_up(self) -> None:
        """Publish the newest export if a crash has prevented it, and remove exports of removed checkpoints."""
        newest = newest_export(self.run)
        if newest is None:
            return
        with lock_folder(self.run.checkpoints):
            publish(self.run.hugging_face, newest)
            kept_steps = {step_of(path) for path in list_checkpoints(self.run.checkpoints)}
            for folder in self.run.hugging_face.glob("step-*[0-9]"):
                if step_of(folder) not in kept_steps and folder != newest:
                    shutil.rmtree(folder, ignore_errors=True)
