"""What all tests share: where they run, and where real data lies."""

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

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the first import of triton: its kernels are then checked here too
    if importlib.util.find_spec("triton") is not None:
        from tests.interpreter import patch_bf16_arithmetic, remember_builtins

        patch_bf16_arithmetic()
        remember_builtins()

torch.set_num_threads(1)  # test processes share the cores, and sums come out the same whatever their number

# No shrinking: it computes a failing property hundreds of times, for minutes where it trains or runs a kernel.
# --hypothesis-profile=shrinking finds the smallest example.
settings.register_profile("shrinking", deadline=None, derandomize=True, max_examples=50)
settings.register_profile(
    "default", settings.get_profile("shrinking"), phases=set(Phase) - {Phase.shrink, Phase.explain}
)
settings.load_profile("default")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted: str = config.option.markexpr
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("slow") and "slow" not in wanted:
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with -m slow"))


@pytest.fixture(autouse=True)
def fp32_is_fp32() -> None:
    """Composer allows TF32 for the rest of the process it trains in on a GPU."""
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Real data and fixtures, beside the project's folder."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared beside the project: real data and the original's outputs are not here")
    return folder


@pytest.fixture(scope="session")
def original_mosaicbert(shared_folder: Path) -> Path:
    """Small random weights in the published layout, with the outputs that the original implementation gives."""
    folder = shared_folder / "fixtures" / "original-mosaicbert"
    if not folder.is_dir():
        pytest.skip("no ../shared/fixtures/original-mosaicbert: the original's outputs are not here")
    return folder


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all test processes share, for what is made once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "common"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def fork_server(common: Path) -> None:
    """Name the server that forks programs which import the trainer; see tests/fork_server.py."""
    set_fork_server(common / "fork_server", os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid())


@pytest.fixture
def forked() -> Generator[None]:
    """Fork the Python programs and workers that a test starts, which saves them their imports."""
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
    """A tiny run, trained to its end without interruption: recipe, folder, what it printed. Not to be changed."""
    from mosaicbert.train.run_folder import RunFolder
    from tests.train.running import pretrain_here  # here, because Composer takes seconds to import

    recipe, printed = tiny_recipe(common, source), common / "printed.txt"
    with lock_folder(common):
        if not printed.exists():
            console = Console(record=True, width=200)
            pretrain_here(recipe, console)
            printed.write_text(console.export_text())
    return recipe, RunFolder(recipe.run_folder), printed.read_text()
