"""Staging directory `<store>.partial` of an unfinished token store.

prepared_from.json     recipe keys and values that determine the store
revisions.json         commits of the Hub datasets
tokenizer.json         trained tokenizer
partitions/            partitions, see `partition`
<split>/, store.json   parts of the store, during its assembly
lock                   exclusive lock for short steps of one process
in_use                 usage lock, shared by all processes that prepare partitions
"""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Generator
from pathlib import Path

from mosaicbert.config import ConfigError
from mosaicbert.config.validators import must_be
from mosaicbert.data.prepare.partition import partition_folder
from mosaicbert.data.prepare.plan import PreparePlan
from mosaicbert.data.store import StoreRecord
from mosaicbert.filesystem import lock_folder, write_file

_STAGING_FILES = ("partitions", "prepared_from.json", "revisions.json", "assembly.txt", "lock", "in_use")


@contextlib.contextmanager
def open_staging(plan: PreparePlan) -> Generator[Path]:
    """Open or create the staging directory of a plan. Delete a new one if an error occurs before the first shard.

    Args:
        plan: Prepare plan.

    Raises:
        ConfigError: If the directory cannot be written or was started with different values, or the store is finished.
    """
    staging = plan.staging_folder
    new_folders = [folder for folder in (staging, *staging.parents) if not folder.exists()]
    try:
        staging.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{plan.store_folder} cannot be written ({error}). Set a different `data.store` or `runs_folder`."
        ) from error
    with (staging / "in_use").open("w") as usage_lock:
        fcntl.flock(usage_lock, fcntl.LOCK_SH)  # shared: several processes may prepare partitions
        try:
            _initialize(plan, staging)
            yield staging
        except ConfigError:
            with contextlib.suppress(OSError):  # locked by another process, or the folder is not empty
                fcntl.flock(usage_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if staging in new_folders and not any(staging.glob("partitions/*/*.arrow")):
                    shutil.rmtree(staging)
                    for folder in new_folders[1:]:
                        folder.rmdir()
            raise


def publish_store(staging: Path, store_folder: Path) -> None:
    """Delete the files that are not part of the store, and rename the staging directory to the store folder.

    Args:
        staging: Staging directory.
        store_folder: Folder of the store.
    """
    for name in _STAGING_FILES:
        path = staging / name
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
    staging.rename(store_folder)


def _initialize(plan: PreparePlan, staging: Path) -> None:
    path = staging / "prepared_from.json"
    with lock_folder(staging):
        if plan.store_folder.exists():
            raise ConfigError(f"{plan.store_folder} was finished by another process just now. Run the command again.")
        if (staging / "store.json").exists():  # the previous session ended during the cleanup
            plan.check_prepared_from(staging, StoreRecord.read(staging).prepared_from)
        elif path.exists():
            plan.check_prepared_from(staging, json.loads(path.read_text()))
        else:
            write_file(path, json.dumps(plan.prepared_from).encode())
        suffix = partition_folder(staging, 0, plan.num_partitions).name.partition("-")[2]
        started = [folder for folder in staging.glob("partitions/*") if not folder.name.endswith(suffix)]
        if started:
            raise must_be(
                "data.num_partitions",
                f"the number of partitions that {started[0]} was started with",
                plan.num_partitions,
                f"Restore the number, or delete {staging} to start again.",
            )
