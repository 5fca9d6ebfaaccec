"""Tests of the wheel, installed in a separate environment and used outside the repository."""

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
_SMALL_RUN = (
    "data.min_characters=1000",  # fewer documents
    "train.duration=4 steps",
    "train.num_processes=2",  # all processes get the same arguments, including the recipe name
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
    """Return the folder of executables of an environment with the wheel and the other packages of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy, since setuptools creates a folder build/, whose modules end up in later wheels
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
    # Python ignores .pth files in folders added by a .pth file, so an editable installation is not used.
    other_folders = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    Path(site_packages, "other_packages.pth").write_text("\n".join(other_folders) + "\n")
    return executables


@pytest.fixture
def run_outside(executables, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(name, *arguments):
        return _run(executables / name, *arguments, cwd=tmp_path, env=environment)

    return run


def test_the_wheel_contains_all_modules_types_and_recipes(run_outside, executables):
    package = Path(run_outside("python", "-c", "import mosaicbert; print(mosaicbert.__path__[0])").strip())
    assert executables.parent in package.parents
    assert (package / "py.typed").is_file()
    assert {path.stem for path in (package / "recipes").rglob("*.yaml")} == {
        recipe.name for recipe in list_shipped_recipes()
    }
    packaged = {path.relative_to(package) for path in package.rglob("*.py")}
    assert packaged == {path.relative_to(_ROOT / "mosaicbert") for path in (_ROOT / "mosaicbert").rglob("*.py")}


def test_the_commands_version_and_recipes_work(run_outside):
    assert run_outside("mosaicbert", "--version") == f"mosaicbert {mosaicbert.__version__}\n"
    output = run_outside("mosaicbert", "recipes")
    assert all(f"  {recipe.name} " in output for recipe in list_shipped_recipes())


def test_the_quickstart_recipe_is_shown_and_trained_by_name(run_outside, tmp_path):
    assert "runs/quickstart" in run_outside("mosaicbert", "show", "quickstart")
    output = run_outside("mosaicbert", "pretrain", "quickstart", *_SMALL_RUN)
    assert "step 4/4" in output
    assert (tmp_path / "runs" / "quickstart" / "hf" / "model.safetensors").is_file()
