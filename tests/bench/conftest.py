"""Documents of the finished run, for the tests of the benchmark."""

import pytest

from mosaicbert.bench.documents import read_workloads
from mosaicbert.data.store import StoreRecord


@pytest.fixture(scope="session")
def workloads(finished):
    """Return the first steps of the finished run."""
    recipe, folder, _ = finished
    return read_workloads(recipe, StoreRecord.read(folder.path), num_rounds=4)
