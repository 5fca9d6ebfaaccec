"""Hardware and software environment of a run."""

import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from mosaicbert.processes import count_cpus

_PACKAGES = ("mosaicbert", "torch", "transformers", "mosaicml", "datasets", "tokenizers", "numpy", "omegaconf")


def describe_environment() -> dict[str, Any]:
    """Return the current time, the commit, package versions and hardware as JSON values."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in _PACKAGES if _is_installed(name)},
        "cpu": _cpu_name(),
        "num_cores": count_cpus(),
        "gpus": gpus,
    }


def _is_installed(name: str) -> bool:
    return any(True for _ in metadata.distributions(name=name))


def _commit() -> str | None:
    """Return the commit of the source tree, with -dirty if files differ from it, or None for an installed wheel."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return output.strip() or None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
