"""Disk space for checkpoints."""

import contextlib
import os
import shutil

from mosaicbert.config import ConfigError
from mosaicbert.train.run_folder import RunFolder

_MARGIN_BYTES = 2**28  # for metrics, figures and caches


def check_disk_space(run: RunFolder, num_parameters: int, keep_last: int) -> None:
    """Check that the disk of a run has space for the checkpoints that are always kept.

    Args:
        run: Run folder.
        num_parameters: Parameters of the model.
        keep_last: Number of newest checkpoints that are kept.

    Raises:
        ConfigError: If there is too little space.
    """
    # A checkpoint has weights and two moments in fp32, and an export. While a checkpoint is written,
    # `keep_last` others exist.
    required = (keep_last + 1) * (12 + 4) * num_parameters + _MARGIN_BYTES
    used = 0
    for folder, _, names in os.walk(run.path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # the last session's export may still be running
                used += os.lstat(os.path.join(folder, name)).st_size
    free = shutil.disk_usage(run.path).free
    if free + used < required:
        raise ConfigError(
            f"{run.path} must be on a disk with {required / 2**30:.1f} GiB for {keep_last + 1} checkpoints and their "
            f"exports, got {free / 2**30:.1f} GiB free. Free disk space, set a different `runs_folder`, or lower "
            "`checkpoint.keep_last`."
        )
