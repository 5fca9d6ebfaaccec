import subprocess
import sys
from pathlib import Path

import pytest

from mosaicbert.cli import main
from mosaicbert.config.load import save_recipe
from tests.recipes import tiny_recipe

_RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize("command", [[], ["show"], ["prepare"], ["pretrain"], ["export"]], ids=" ".join)
def test_help_answers_without_importing_anything_slow(command):
    code = (
        "import sys\nfrom mosaicbert.cli import main\n"
        f"try: main({[*command, '--help']!r})\nexcept SystemExit: pass\n"
        "slow = {'torch', 'transformers', 'composer', 'datasets', 'omegaconf', 'numpy'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "usage: mosaicbert" in answer.stdout


def test_show_says_what_the_papers_run_takes(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["show", str(_RECIPES / "mosaicbert-base-c4.yaml")])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    for expected in ("137,400,384 parameters", "70,000 steps of 4,096", "36,700,160,000 tokens", "737 MFLOP per token"):
        assert expected in printed


@pytest.mark.parametrize("recipe", sorted(_RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_show_starts_nothing(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["show", str(recipe)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.hiden_size=64"], "did you mean 'model.hidden_size'"),
        (["model.hidden_size=wide"], "model.hidden_size"),
        (["model.num_attention_heads=5"], "model.num_attention_heads=5"),
        (["train.micro_batch_tokens=16"], "train.micro_batch_tokens=16"),
        (["data.sources.text.path=nowhere.jsonl"], "data.sources.text.path=nowhere.jsonl"),
        (["tokenizer.source=nowhere.json"], "tokenizer.source=nowhere.json"),
        (["data.sources.text.text_column=body"], "text_column"),
        (["data.min_characters=1000000"], "data.min_characters"),
        (["seed=-1"], "seed=-1"),
        (["data.sources.text.validation_split=dev"], "data.sources.text.validation_split=dev"),
    ],
    ids=["unknown-key", "type", "heads", "budget", "file", "tokenizer", "column", "empty-corpus", "seed", "split"],
)
def test_bad_input_is_one_line_and_exit_code_2_and_nothing_is_written(overrides, expected, source, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    save_recipe(tiny_recipe(tmp_path / "runs", source), path)
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", str(path), *overrides])
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert printed.startswith("mosaicbert pretrain: ")
    assert expected in printed
    assert not list(tmp_path.glob("runs/**/*"))


def test_a_missing_recipe_is_named(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["show", "recipes/none.yaml"])
    assert ended.value.code == 2
    assert "recipes/none.yaml: no such recipe" in capsys.readouterr().err
