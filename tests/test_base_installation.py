"""Tests with only torch, transformers and this package installed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from mosaicbert.cli import _TRAIN_EXTRA_MODULES
from mosaicbert.export.parity import _link_requirements

_ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run_in_base_installation(tmp_path_factory):
    site = tmp_path_factory.mktemp("base") / "site"
    _link_requirements(site, ("torch", "transformers"))
    (site / "mosaicbert").symlink_to(_ROOT / "mosaicbert")

    def run(code):
        code = f"import sys; sys.path.append({str(site)!r})\n{code}"
        return subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)

    return run


def test_a_model_is_created_saved_and_loaded_through_the_auto_classes(run_in_base_installation, tmp_path):
    finished = run_in_base_installation(
        "import mosaicbert, torch\n"
        "from transformers import AutoModelForMaskedLM\n"
        "config = mosaicbert.MosaicBertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1,\n"
        "    num_attention_heads=2, intermediate_size=16)\n"
        "model = mosaicbert.MosaicBertForMaskedLM(config).eval()\n"
        f"model.save_pretrained({str(tmp_path)!r})\n"
        f"loaded = AutoModelForMaskedLM.from_pretrained({str(tmp_path)!r})\n"
        "ids = torch.arange(12).view(2, 6)\n"
        "assert torch.equal(loaded(ids).logits, model(ids).logits)\n"
        "print(type(loaded).__module__)\n"
    )
    assert finished.stdout.strip() == "mosaicbert.model.modeling", finished.stderr


@pytest.mark.parametrize("first_use", ["mosaicbert.MosaicBertForMaskedLM", "transformers.AutoModelForMaskedLM"])
def test_the_first_use_within_a_device_does_not_fail(first_use, run_in_base_installation):
    finished = run_in_base_installation(
        "import mosaicbert, torch, transformers\n"
        f"with torch.device('meta'): print({first_use}.__name__)\n"
        "from mosaicbert.model.configuration import MosaicBertConfig\n"
        "print(transformers.AutoModelForMaskedLM._model_mapping[MosaicBertConfig].__name__)\n"
    )
    assert finished.stdout.split() == [first_use.rpartition(".")[2], "MosaicBertForMaskedLM"], finished.stderr


def test_a_command_that_needs_the_train_extra_prints_the_install_command(run_in_base_installation):
    recipe = _ROOT / "recipes" / "quickstart.yaml"
    finished = run_in_base_installation(f"from mosaicbert.cli import main; main(['pretrain', {str(recipe)!r}])")
    assert finished.returncode == 2
    assert (
        finished.stderr.strip()
        == "mosaicbert pretrain: omegaconf is not installed. Run `pip install 'mosaicbert[train]'`."
    )


@pytest.mark.parametrize("command", ["--help", "--version", "recipes"])
def test_help_version_and_recipes_do_not_need_the_train_extra(command, run_in_base_installation):
    finished = run_in_base_installation(f"from mosaicbert.cli import main; main([{command!r}])")
    assert finished.returncode == 0, finished.stderr
    assert "mosaicbert" in finished.stdout


def test_the_listed_train_extra_modules_are_the_imports_missing_in_the_base_installation():
    base = {"torch", "transformers", "safetensors", "numpy"}
    base |= {"packaging", "tokenizers", "huggingface_hub"}  # requirements of transformers
    optional = {"triton", "flash_attn", "wandb", "onnxruntime"}  # imported only if installed
    imported = set[str]()
    for path in (_ROOT / "mosaicbert").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).split(".")[0])
    assert imported - set(sys.stdlib_module_names) - base - optional - {"mosaicbert"} == _TRAIN_EXTRA_MODULES
