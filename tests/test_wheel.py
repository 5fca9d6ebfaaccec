"""The wheel, installed in an environment of its own and used outside the repository."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import mosaicbert
from mosaicbert.config.shipped import list_shipped_recipes

pytestmark = pytest.mark.slow

_ROOT = Path(__file__).parents[1]
_SHRINK = (
    "data.min_characters=1000",  # fewer documents to tokenize
    "train.duration=4 steps",
    "train.num_processes=2",  # the processes are started with the same arguments, the recipe's name included
    "train.global_batch_samples=4",
    "checkpoint.interval=2 steps",
    "eval.interval=4 steps",
    "model.vocab_size=1024",
    "model.hidden_size=32",
    "model.num_hidden_layers=1",
    "model.num_attention_heads=2",
    "model.intermediate_size=64",
)


def _run(*command, **options):
    finished = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def executables(tmp_path_factory):
    """Folder of executables of an environment with the wheel and this environment's other packages."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: setuptools leaves a folder build/, whose old modules go into later wheels
    for name in ("mosaicbert", "recipes"):
        shutil.copytree(_ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(_ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    _run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("mosaicbert-*.whl")
    environment = folder / "environment"
    venv.create(environment, symlinks=True)
    executables = environment / "bin"
    _run(*pip, "--python", executables / "python", "install", "--no-deps", "--no-index", wheel)
    site_packages = _run(executables / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # Python does not read .pth files of a folder that is named in one, and so not that of an editable installation.
    others = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    Path(site_packages, "others.pth").write_text("\n".join(others) + "\n")
    return executables


@pytest.fixture
def run_outside(executables, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(name, *arguments):
        return _run(executables / name, *arguments, cwd=tmp_path, env=environment)

    return run


def test_the_package_comes_from_the_wheel_with_its_types_and_recipes(run_outside, executables):
    package = Path(run_outside("python", "-c", "import mosaicbert; print(mosaicbert.__path__[0])").strip())
    assert executables.parent in package.parents
    assert (package / "py.typed").is_file()
    assert {path.stem for path in (package / "recipes").rglob("*.yaml")} == {
        recipe.name for recipe in list_shipped_recipes()
    }
    packaged = {path.relative_to(package) for path in package.rglob("*.py")}
    assert packaged == {path.relative_to(_ROOT / "mosaicbert") for path in (_ROOT / "mosaicbert").rglob("*.py")}


def test_the_version_and_the_recipes_are_printed(run_outside):
    assert run_outside("mosaicbert", "--version") == f"mosaicbert {mosaicbert.__version__}\n"
    listed = run_outside("mosaicbert", "recipes")
    assert all(f"  {recipe.name} " in listed for recipe in list_shipped_recipes())


def test_the_quickstart_is_shown_and_trained_by_its_name(run_outside, tmp_path):
    assert "runs/quickstart" in run_outside("mosaicbert", "show", "quickstart")
    printed = run_outside("mosaicbert", "pretrain", "quickstart", *_SHRINK)
    assert "step 4/4" in printed
    assert (tmp_path / "runs" / "quickstart" / "hf" / "model.safetensors").is_file()
