"""The staging directory `<store>.partial`, in which a token store grows until it is complete.

prepared_from.json     recipe keys and values that it is prepared with
revisions.json         commits of the Hub datasets
tokenizer.json         trained tokenizer
partitions/                partitions, see `partition`
<split>/, store.json   the store, while it is put together
lock                   held for short steps that one process takes
in_use                 usage lock, shared by all processes that prepare partitions
"""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Generator
from pathlib import Path

from mosaicbert.config import ConfigError
from mosaicbert.data.prepare.partition import partition_folder
from mosaicbert.data.prepare.plan import PreparePlan
from mosaicbert.data.store import StoreRecord
from mosaicbert.filesystem import lock_folder, write_file

_STAGING_FILES = ("partitions", "prepared_from.json", "revisions.json", "assembly.txt", "lock", "in_use")


@contextlib.contextmanager
def open_staging(plan: PreparePlan) -> Generator[Path]:
    """Open the staging directory of a plan, or create it; delete a new one if preparing fails before the first shard.

    Raises:
        ConfigError: If the directory cannot be written or was begun with other values, or the store is finished.
    """
    staging = plan.staging_folder
    new_folders = [folder for folder in (staging, *staging.parents) if not folder.exists()]
    try:
        staging.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{plan.store_folder}: cannot be written ({error}); choose another data.store or runs_folder."
        ) from error
    with (staging / "in_use").open("w") as usage_lock:
        fcntl.flock(usage_lock, fcntl.LOCK_SH)  # any number of processes may work here
        try:
            _begin(plan, staging)
            yield staging
        except ConfigError:
            with contextlib.suppress(OSError):  # another process works here, or another run has put something there
                fcntl.flock(usage_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if staging in new_folders and not any(staging.glob("partitions/*/*.arrow")):
                    shutil.rmtree(staging)
                    for folder in new_folders[1:]:
                        folder.rmdir()
            raise


def publish_store(staging: Path, store_folder: Path) -> None:
    """Delete what is not part of the store, and rename the staging directory to the store's folder."""
    for name in _STAGING_FILES:
        path = staging / name
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
    staging.rename(store_folder)


def _begin(plan: PreparePlan, staging: Path) -> None:
    path = staging / "prepared_from.json"
    with lock_folder(staging):
        if plan.store_folder.exists():
            raise ConfigError(f"{plan.store_folder}: another process has just finished this store; run again.")
        if (staging / "store.json").exists():  # interrupted while cleaning up
            plan.check_prepared_from(staging, StoreRecord.read(staging).prepared_from)
        elif path.exists():
            plan.check_prepared_from(staging, json.loads(path.read_text()))
        else:
            write_file(path, json.dumps(plan.prepared_from).encode())
        suffix = partition_folder(staging, 0, plan.num_partitions).name.partition("-")[2]
        if others := [folder for folder in staging.glob("partitions/*") if not folder.name.endswith(suffix)]:
            raise ConfigError(
                f"{others[0]}: was begun with another data.num_partitions than {plan.num_partitions}; "
                f"set that again, or delete {staging} to begin again."
            )
