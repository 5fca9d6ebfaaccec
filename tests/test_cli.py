import subprocess
import sys
from pathlib import Path

import pytest

import mosaicbert
from mosaicbert.cli import _COMMANDS, main
from mosaicbert.config import TrainingFault
from mosaicbert.config.load import save_recipe
from tests.pareto.scored import make_score, write_scores
from tests.recipes import tiny_recipe
from tests.report.folders import training_lines, write_run

_RECIPES = Path(__file__).parents[1] / "recipes"


_INSTANT = [([*command, "--help"], "usage: mosaicbert") for command in ([], *([name] for name in _COMMANDS))]
_INSTANT += [(["--version"], f"mosaicbert {mosaicbert.__version__}"), (["recipes"], "mosaicbert pretrain RECIPE")]


@pytest.mark.parametrize(("arguments", "expected"), _INSTANT, ids=[" ".join(arguments) for arguments, _ in _INSTANT])
def test_help_version_and_recipes_do_not_import_slow_modules(arguments, expected):
    code = (
        "import sys\nfrom mosaicbert.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "slow = {'torch', 'transformers', 'composer', 'datasets', 'omegaconf', 'numpy'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert expected in finished.stdout


def test_version_prints_the_package_version(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"mosaicbert {mosaicbert.__version__}\n"


def test_show_accepts_the_name_of_a_shipped_recipe_in_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        main(["show", "quickstart", "run_name=renamed"])
    assert exit_info.value.code == 0
    assert "runs/renamed" in capsys.readouterr().out


def test_an_unknown_recipe_prints_one_line_with_the_nearest_name(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["show", "quikstart"])
    assert exit_info.value.code == 2
    output = capsys.readouterr().err
    assert output.count("\n") == 1
    assert "got 'quikstart'" in output
    assert "'quickstart'" in output and "mosaicbert recipes" in output


def test_the_launcher_does_not_import_composer():
    code = "import sys, mosaicbert.train.launch\nassert 'composer' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_show_prints_the_cost_of_the_run_of_the_paper(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["show", str(_RECIPES / "mosaicbert-base-c4.yaml")])
    assert exit_info.value.code == 0
    output = capsys.readouterr().out
    for expected in (
        "137,400,384 parameters",
        "286,720,000 samples in 70,000 steps of 4,096",
        "at most 36,700,160,000 tokens",
        "737 MFLOPs per token",
    ):
        assert expected in output


@pytest.mark.parametrize("recipe", sorted(_RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_show_does_not_write_files(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        main(["show", str(recipe)])
    assert exit_info.value.code == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.hiden_size=64"], "Did you mean `model.hidden_size`?"),
        (["model.hidden_size=wide"], "model.hidden_size"),
        (["model.num_attention_heads=5"], "model.num_attention_heads=5"),
        (["train.micro_batch_tokens=16"], "`train.micro_batch_tokens` must be at least `data.max_seq_len=32`, got 16."),
        (["data.sources.text.path=nowhere.jsonl"], "`data.sources.text.path` must be an existing file"),
        (["tokenizer.source=nowhere.json"], "`tokenizer.source` must be an existing file"),
        (["data.sources.text.text_column=body"], "text_column"),
        (["data.min_characters=1000000"], "data.min_characters"),
        (["seed=-1"], "`seed` must be in [0, 2147483647], got -1."),
        (["train.duration=96"], "`train.duration` must be a positive whole number"),
        (["train.duration=15 samples"], "`train.duration` must be at least one step of 16 samples, got '15 samples'."),
        (["checkpoint.interval=sometimes"], "`checkpoint.interval` must be a positive whole number"),
        (["train.initial_batch_samples=4"], "must be set if `train.initial_batch_samples=4` is set, got None."),
        (["data.sources.text.validation_split=dev"], "`data.sources.text.validation_split` must be null"),
    ],
    ids=[
        "unknown-key",
        "type",
        "heads",
        "budget",
        "file",
        "tokenizer",
        "column",
        "empty-corpus",
        "seed",
        "no-unit",
        "below-one-step",
        "interval",
        "half-a-warmup",
        "split",
    ],
)
def test_invalid_input_prints_one_line_exits_with_code_2_and_writes_nothing(
    overrides, expected, source, tmp_path, capsys
):
    path = tmp_path / "recipe.yaml"
    save_recipe(tiny_recipe(tmp_path / "runs", source), path)
    with pytest.raises(SystemExit) as exit_info:
        main(["pretrain", str(path), *overrides])
    assert exit_info.value.code == 2
    output = capsys.readouterr().err
    assert output.count("\n") == 1
    assert output.startswith("mosaicbert pretrain: ")
    assert expected in output
    assert not list(tmp_path.glob("runs/**/*"))


def test_a_missing_recipe_file_is_named(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["show", "recipes/none.yaml"])
    assert exit_info.value.code == 2
    assert "got 'recipes/none.yaml'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "folder"), [([], "first"), (["--output", "elsewhere"], "elsewhere")], ids=["default", "output"]
)
def test_report_writes_to_the_first_run_folder_or_to_the_output_folder(options, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        write_run(tmp_path / name, training_lines(20))
    with pytest.raises(SystemExit) as exit_info:
        main(["report", "first", "second", *options])
    assert exit_info.value.code == 0
    written = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("report.*")]
    assert (
        sorted(written) == sorted(capsys.readouterr().out.split()) == [f"{folder}/report.html", f"{folder}/report.png"]
    )


def test_report_names_a_missing_run_folder(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["report", str(tmp_path / "none")])
    assert exit_info.value.code == 2
    output = capsys.readouterr().err
    assert output.count("\n") == 1
    assert output.startswith(f"mosaicbert report: {tmp_path / 'none'}")


@pytest.mark.parametrize("overrides_last", [False, True], ids=["overrides-first", "overrides-last"])
def test_pareto_compare_accepts_overrides_before_and_after_it(overrides_last, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, value in (("a", 60.0), ("b", 50.0)):
        seeds = [make_score(task, value + seed % 3, seed=seed) for task in ("rte", "cola") for seed in range(3)]
        write_scores(tmp_path / name, seeds)
    overrides, comparison = ["pareto.tasks=[rte]", "pareto.init_from_mnli=true"], ["--compare", "a", "b"]
    words = [*comparison, *overrides] if overrides_last else [*overrides, *comparison]
    with pytest.raises(SystemExit) as exit_info:
        main(["pareto", str(_RECIPES / "pareto" / "pareto-cpu.yaml"), *words])
    assert exit_info.value.code == 0
    output = capsys.readouterr().out
    assert "RTE acc" in output and "CoLA M" not in output


def test_pareto_writes_a_plot(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_scores(tmp_path / "a", [make_score("rte", 60.0), make_score("cola", 50.0)])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("run_name: figure\npareto:\n  series:\n    Series:\n      runs: [a]\n")
    with pytest.raises(SystemExit) as exit_info:
        main(["pareto", str(recipe)])
    assert exit_info.value.code == 0
    assert "runs/figure/pareto.png" in capsys.readouterr().out
    assert (tmp_path / "runs" / "figure" / "pareto.png").exists()


@pytest.mark.parametrize(
    "words", [["pareto", "x.yaml", "--compare", "a", "b", "stray"], ["report", "a", "b=c", "--new"]]
)
def test_an_unrecognized_argument_is_rejected(words, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(words)
    assert exit_info.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def test_a_training_fault_prints_one_line_and_exits_with_code_1(source, tmp_path, monkeypatch, capsys):
    def fail(*_arguments):
        raise TrainingFault("runs/tiny: step 3: the loss is not finite.")

    monkeypatch.setattr("mosaicbert.train.launch.launch", fail)
    save_recipe(tiny_recipe(tmp_path / "runs", source), tmp_path / "recipe.yaml")
    with pytest.raises(SystemExit) as exit_info:
        main(["pretrain", str(tmp_path / "recipe.yaml")])
    assert exit_info.value.code == 1
    assert capsys.readouterr().err == "mosaicbert pretrain: runs/tiny: step 3: the loss is not finite.\n"
