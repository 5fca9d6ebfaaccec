"""Fixtures and settings of all tests."""

import importlib.util
import os
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, settings
from rich.console import Console

from mosaicbert.filesystem import lock_folder
from tests.data.corpus import write_jsonl
from tests.fork_server import forking, set_fork_server
from tests.recipes import tiny_recipe

os.environ["HF_HUB_OFFLINE"] = "1"  # names of the Hub in tests fail at once, without attempts to connect

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the first import of triton, to run its kernels on the CPU
    if importlib.util.find_spec("triton") is not None:
        from tests.interpreter import cache_builtins, patch_arithmetic

        patch_arithmetic()
        cache_builtins()

torch.set_num_threads(1)  # several test processes run at once; sums do not depend on the number of threads

# Shrinking repeats a failing test hundreds of times, which takes minutes for training and kernels. The option
# --hypothesis-profile=shrinking enables it, with more examples than the default.
settings.register_profile("shrinking", deadline=None, derandomize=True, max_examples=50)
settings.register_profile(
    "default", settings.get_profile("shrinking"), max_examples=30, phases=set(Phase) - {Phase.shrink, Phase.explain}
)
settings.load_profile("default")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marker_expression: str = config.option.markexpr
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("slow") and "slow" not in marker_expression:
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with -m slow"))
    # pytest-xdist assigns one half of the tests to each of two processes. Modules that need the finished run or the
    # fork server come first, so that one process creates these and the other does not wait.
    shared_fixtures = {"finished", "forked", "source"}
    first_modules = {item.path for item in items if shared_fixtures & set(getattr(item, "fixturenames", ()))}
    items.sort(key=lambda item: item.path not in first_modules)


@pytest.fixture(autouse=True)
def reset_process_settings() -> None:
    """Reset settings of the process that libraries change when they train.

    Composer enables TF32 on a GPU. accelerate sets the number of threads, on which the bits of sums depend.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Return the folder of real data and fixtures next to the repository."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("real data and reference outputs are not available: no folder ../shared")
    return folder


@pytest.fixture(scope="session")
def original_mosaicbert(shared_folder: Path) -> Path:
    """Return the folder of small random weights in the published format with the outputs of the original code."""
    folder = shared_folder / "fixtures" / "original-mosaicbert"
    if not folder.is_dir():
        pytest.skip("reference outputs are not available: no folder ../shared/fixtures/original-mosaicbert")
    return folder


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder common to all test processes, for files that are created once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "common"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def fork_server(common: Path) -> None:
    """Configure the fork server of the test session, see tests/fork_server.py."""
    set_fork_server(common / "fork_server", os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid())


@pytest.fixture
def forked() -> Generator[None]:
    """Fork the Python programs and workers that a test starts, to skip their imports."""
    with forking():
        yield


@pytest.fixture(scope="session")
def source(common: Path) -> Path:
    with lock_folder(common):
        path = common / "docs.jsonl"
        return path if path.exists() else write_jsonl(path)


@pytest.fixture
def console():
    return Console(record=True, width=200)


@pytest.fixture(scope="session")
def finished(source: Path, common: Path):
    """Return the recipe, the folder and the console output of a small completed run. Tests must not modify it."""
    from mosaicbert.train.run_folder import RunFolder
    from tests.train.running import pretrain_here  # imported here, because Composer takes seconds to import

    recipe, output = tiny_recipe(common, source), common / "output.txt"
    with lock_folder(common):
        if not output.exists():
            console = Console(record=True, width=200)
            pretrain_here(recipe, console)
            output.write_text(console.export_text())
    return recipe, RunFolder(recipe.run_folder), output.read_text()
