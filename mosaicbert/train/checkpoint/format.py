"""Checkpoint file format: a folder of safetensors and JSON files, written atomically and verified when it is read.

    checkpoints/step-3500/model.safetensors      weights in fp32
                          optimizer.safetensors  optimizer tensors, named <tensor>/<weight>
                          state.json             other state, and size and checksum of both other files

Reading a checkpoint does not execute code from it.
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
_BLOCK_BYTES = 2**22


class CheckpointError(RuntimeError):
    """Error in reading or writing a checkpoint. The message contains its path and the reason."""


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint.

    Attributes:
        model: Weights by name. A tensor that two names share is listed under both.
        optimizer: Optimizer tensors by the name of the weight, then by their own name.
        state: Other state as JSON values.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def write_checkpoint(folder: Path, step: int, checkpoint: Checkpoint, *, keep: bool) -> Path:
    """Write a checkpoint atomically to the folder step-N.

    Args:
        folder: Folder of the checkpoints.
        step: Number of completed steps.
        checkpoint: Content to write.
        keep: Whether `remove_old` never removes this checkpoint.

    Returns:
        Path of the checkpoint.

    Raises:
        CheckpointError: If the disk is full or cannot be written. Incomplete files are removed.
    """
    path = checkpoint_path(folder, step)
    partial = partial_path(path)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        optimizer = {
            f"{name}/{weight}": value for weight, each in checkpoint.optimizer.items() for name, value in each.items()
        }
        tensors = {_MODEL: checkpoint.model, _OPTIMIZER: optimizer}
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
        # The same step trained again after a crash has the same checkpoint, but the older one may be corrupted.
        replace_folder(partial, path)
    except (OSError, SafetensorError, CheckpointError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"{path} cannot be written ({_reason(error)}).") from error
    return path


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, and verify size and checksum of every file.

    Args:
        path: Path of the checkpoint.

    Raises:
        CheckpointError: If a file is missing, truncated or changed.
    """
    content = _read_content(path)
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, expected in content["files"].items():
        actual = _describe(path / name)
        if actual != expected:
            has_same_size = actual["bytes"] == expected["bytes"]
            sizes = f"size is {actual['bytes']:,}, expected {expected['bytes']:,} bytes"
            reason = "checksum does not match" if has_same_size else sizes
            raise CheckpointError(f"{path / name} is corrupted ({reason}).")
        try:
            tensors[name] = load_file(path / name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path / name} cannot be read ({_reason(error)}).") from error
        tensors[name] |= {alias: tensors[name][owner] for alias, owner in content["shared"][name].items()}
    model = tensors[_MODEL]
    optimizer: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors[_OPTIMIZER].items():
        tensor_name, weight = name.split("/", 1)
        optimizer.setdefault(weight, {})[tensor_name] = value
    return Checkpoint(model, optimizer, content["state"])


def read_state(path: Path) -> dict[str, Any]:
    """Read the state of a checkpoint without its tensors.

    Args:
        path: Path of the checkpoint.

    Raises:
        CheckpointError: If state.json is missing or corrupted.
    """
    return _read_content(path)["state"]


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the paths of all checkpoints in a folder, oldest first, including corrupted ones."""
    paths = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal()]
    return sorted(paths, key=step_of)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint after a number of steps."""
    return folder / f"{_PREFIX}{step}"


def step_of(path: Path) -> int:
    """Return the number of completed steps from the path of a checkpoint or of its export."""
    return int(path.name.removeprefix(_PREFIX))


def remove_old(folder: Path, keep_last: int) -> None:
    """Remove old checkpoints, except those written with `keep`, and incomplete checkpoints of a crash.

    Args:
        folder: Folder of the checkpoints.
        keep_last: Number of newest checkpoints that are not removed.
    """
    for path in folder.glob(f"{_PREFIX}*{PARTIAL_SUFFIX}"):
        shutil.rmtree(path, ignore_errors=True)
    for path in list_checkpoints(folder)[:-keep_last]:
        try:
            must_keep = _read_content(path)["keep"]
        except CheckpointError:
            must_keep = False
        if not must_keep:
            remove_checkpoint(path)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint atomically."""
    partial = partial_path(path)
    shutil.rmtree(partial, ignore_errors=True)
    path.rename(partial)
    shutil.rmtree(partial, ignore_errors=True)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Write tensors, each shared tensor once. Return the stored name of shared tensors by their other names."""
    owners: dict[Any, str] = {}
    shared: dict[str, str] = {}
    for name, tensor in tensors.items():
        view = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        owner = owners.setdefault(view, name) if tensor.numel() else name
        if owner != name:
            shared[name] = owner
    save_file({name: _copy_view(tensor) for name, tensor in tensors.items() if name not in shared}, path)
    return shared


def _copy_view(tensor: Tensor) -> Tensor:
    fills_storage = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if fills_storage else tensor.clone(memory_format=torch.contiguous_format)


def _read_content(path: Path) -> dict[str, Any]:
    try:
        encoded = (path / _STATE).read_bytes()
        content: Any = json.loads(encoded)
        del content["sha256"]
    except OSError as error:
        raise CheckpointError(f"{path / _STATE} cannot be read ({_reason(error)}).") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path / _STATE} is corrupted (not a valid checkpoint record).") from error
    if encoded != _encode(content):
        raise CheckpointError(f"{path / _STATE} is corrupted (checksum does not match).")
    return content


def _encode(content: dict[str, Any]) -> bytes:
    """Encode the content of state.json with its checksum. Equal contents have equal bytes."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (json.dumps(content | {"sha256": digest}, indent=1) + "\n").encode()


def _describe(path: Path) -> dict[str, Any]:
    digest = xxhash.xxh3_128()
    size = 0
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                size += len(block)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise CheckpointError(f"{path} cannot be read ({_reason(error)}).") from error
    return {"bytes": size, "xxh3_128": digest.hexdigest()}


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error).rstrip(".")
