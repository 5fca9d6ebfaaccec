"""Checkpoints on disk: a folder of safetensors and JSON each, whole or not there, checked before it is believed.

    checkpoints/step-3500/model.safetensors      weights, in fp32
                          optimizer.safetensors  the optimizer's tensors, named <what>/<weight>
                          state.json             everything else, and size and checksum of these files

Nothing in them is code: reading one runs nothing that it holds.
"""

import errno
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mosaicbert.filesystem import PARTIAL_SUFFIX, partial_path, replace_folder, sync_path

_MODEL, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_PREFIX = "step-"
_READ_AT_ONCE = 2**22


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read, or could not be written. The message says which, and why."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        model: weights by name; a tensor that two names share is there under both.
        optimizer: what the optimizer keeps of each weight, by the weight's name and then by its own.
        state: everything else, as JSON knows it.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def write_checkpoint(folder: Path, step: int, checkpoint: Checkpoint, *, keep: bool) -> Path:
    """Writes `folder`/step-N, under that name only once all of it is on the disk.

    Args:
        folder: of the checkpoints.
        step: how many steps are done.
        checkpoint: to write.
        keep: `remove_old` leaves this one, however old it is.

    Raises:
        CheckpointError: the disk is full, or cannot be written; nothing is left behind.
    """
    path = checkpoint_path(folder, step)
    partial = partial_path(path)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        kept = {
            f"{name}/{weight}": value for weight, each in checkpoint.optimizer.items() for name, value in each.items()
        }
        tensors = {_MODEL: checkpoint.model, _OPTIMIZER: kept}
        shared = {name: _write_tensors(partial / name, content) for name, content in tensors.items()}
        content: dict[str, Any] = {
            "state": checkpoint.state,
            "keep": keep,
            "shared": shared,
            "files": {name: _describe(partial / name) for name in (_MODEL, _OPTIMIZER)},
        }
        (partial / _STATE).write_bytes(_encode(content))
        for name in (_MODEL, _OPTIMIZER, _STATE):
            sync_path(partial / name)
        sync_path(partial)
        # A step that is trained again after a crash gives the same checkpoint; the older one may be corrupted.
        replace_folder(partial, path)
    except (OSError, SafetensorError, CheckpointError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"{path}: could not be written ({_reason(error)}).") from error
    return path


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint, and believes it only if every byte is as it was written.

    Raises:
        CheckpointError: a file is missing, shortened or changed.
    """
    content = _read_content(path)
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, written in content["files"].items():
        found = _describe(path / name)
        if found != written:
            raise CheckpointError(f"{path / name}: damaged, {found['bytes']:,} of {written['bytes']:,} bytes found.")
        try:
            tensors[name] = load_file(path / name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path / name}: cannot be read ({error}).") from error
        tensors[name] |= {alias: tensors[name][owner] for alias, owner in content["shared"][name].items()}
    model = tensors[_MODEL]
    optimizer: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors[_OPTIMIZER].items():
        kept, weight = name.split("/", 1)
        optimizer.setdefault(weight, {})[kept] = value
    return Checkpoint(model, optimizer, content["state"])


def read_state(path: Path) -> dict[str, Any]:
    """What `Checkpoint.state` is of a checkpoint, without reading its tensors.

    Raises:
        CheckpointError: it is damaged.
    """
    return _read_content(path)["state"]


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first, damaged ones included."""
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal()]
    return sorted(found, key=step_of)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return folder / f"{_PREFIX}{step}"


def step_of(path: Path) -> int:
    """How many steps had been done when a checkpoint was written."""
    return int(path.name.removeprefix(_PREFIX))


def remove_old(folder: Path, keep_last: int) -> None:
    """Removes all checkpoints but the newest and those written with `keep`, and what a crash left unfinished."""
    for path in folder.glob(f"{_PREFIX}*{PARTIAL_SUFFIX}"):
        shutil.rmtree(path, ignore_errors=True)
    for path in list_checkpoints(folder)[:-keep_last]:
        try:
            kept = _read_content(path)["keep"]
        except CheckpointError:
            kept = False
        if not kept:
            remove_checkpoint(path)


def remove_checkpoint(path: Path) -> None:
    """Removes a checkpoint; whoever looks meanwhile sees all of it or nothing."""
    gone = partial_path(path)
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Writes tensors, each storage once; returns the names that share one -> the name that it is written under."""
    owners: dict[Any, str] = {}
    shared: dict[str, str] = {}
    for name, tensor in tensors.items():
        view = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        owner = owners.setdefault(view, name) if tensor.numel() else name
        if owner != name:
            shared[name] = owner
    save_file({name: _alone(tensor) for name, tensor in tensors.items() if name not in shared}, path)
    return shared


def _alone(tensor: Tensor) -> Tensor:
    is_all_of_its_storage = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if is_all_of_its_storage else tensor.clone(memory_format=torch.contiguous_format)


def _read_content(path: Path) -> dict[str, Any]:
    try:
        found = (path / _STATE).read_bytes()
        content: Any = json.loads(found)
        del content["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path / _STATE}: damaged ({type(error).__name__}).") from error
    if found != _encode(content):
        raise CheckpointError(f"{path / _STATE}: damaged, its checksum is another.")
    return content


def _encode(content: dict[str, Any]) -> bytes:
    """The only bytes that stand for `content`, its checksum among them."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (json.dumps(content | {"sha256": digest}, indent=1) + "\n").encode()


def _describe(path: Path) -> dict[str, Any]:
    digest = xxhash.xxh3_128()
    size = 0
    try:
        with path.open("rb") as file:
            while block := file.read(_READ_AT_ONCE):
                digest.update(block)
                size += len(block)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise CheckpointError(f"{path}: cannot be read ({_reason(error)}).") from error
    return {"bytes": size, "xxh3_128": digest.hexdigest()}


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
