import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mosaicbert.bench.command import bench
from mosaicbert.config import ConfigError
from mosaicbert.config.load import save_recipe

_README = Path(__file__).parents[2] / "docs" / "benchmarks" / "README.md"


def _bench(recipe, console, output, **arguments):
    defaults = {"num_steps": 3, "seconds": 300.0, "embedding_batch": None}
    bench(recipe, console, output=output, **(defaults | arguments))
    path = next(output.glob("*.jsonl"))
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def benchmark(finished, tmp_path_factory):
    """Return records, folder and console output of a benchmark of training steps, without compilation."""
    recipe, _, _ = finished
    console, folder = Console(record=True, width=80), tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)
        records = _bench(recipe, console, folder)
    return records, folder, console.export_text()


@pytest.mark.slow
def test_every_version_has_a_record_with_times_or_a_reason(benchmark):
    records, _, _ = benchmark
    assert len(records) == 10
    for record in records:
        assert record["what"] == "training step, tiny"
        assert ("error" in record) != ("median_us" in record)
    assert records[0]["by"] == "MosaicBERT, eager, fp32"
    assert records[0]["ratio"] == 1.0


@pytest.mark.slow
def test_a_record_has_phases_memory_and_fractions(benchmark):
    for record in benchmark[0]:
        if "error" in record:
            continue
        assert list(record["phases_us"]) == ["forward", "backward", "optimizer"]
        assert 0 < record["matrix_fraction"] < 1
        assert 0 <= record["padding_fraction"] < 0.5
        assert record["peak_mib"] * 2**20 > 16 * record["parameters"]  # weight, gradient and two moments
        assert record["rounds"] == 3


@pytest.mark.slow
def test_the_console_shows_a_row_per_version_and_the_comparison_with_each_peer(benchmark):
    records, folder, output = benchmark
    for record in records:
        assert record["by"] in output
    for peer in ("BERT, as used", "ModernBERT, sorted, compiled"):
        assert re.search(
            rf"MosaicBERT, eager, fp32: \d+\.\d\d times as fast as Hugging Face's {peer}, (fp32|bf16)", output
        )
    assert f"records: {folder / 'training_step.jsonl'}" in output


@pytest.mark.slow
def test_the_chart_is_a_png_file(benchmark):
    assert (benchmark[1] / "training_step.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_every_field_of_a_record_is_documented(benchmark):
    fields = set[str]().union(*benchmark[0])
    documented = set(re.findall(r"`(\w+)`", _README.read_text()))
    assert fields <= documented


def test_without_time_every_version_has_the_reason_and_there_is_no_chart(finished, console, tmp_path):
    records = _bench(finished[0], console, tmp_path, seconds=1e-9)
    assert {record["error"] for record in records} == {"not run: no time was left"}
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.slow
def test_the_compiled_versions_are_measured(finished, console, tmp_path):
    records = _bench(finished[0], console, tmp_path, seconds=1800.0)
    measured = {record["by"] for record in records if "error" not in record}
    for family in ("MosaicBERT", "BERT", "ModernBERT"):
        assert any(re.match(f"{family}, .*compiled", name) for name in measured), records


@pytest.mark.usefixtures("forked")
def test_the_command_measures_embeddings(finished, tmp_path):
    save_recipe(finished[0], tmp_path / "tiny.yaml")
    command = [
        sys.executable,
        "-m",
        "mosaicbert",
        "bench",
        tmp_path / "tiny.yaml",
        "--embeddings",
        "40",
        "--steps",
        "3",
    ]
    process = subprocess.run([*command, "--output", tmp_path / "out"], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    records = [json.loads(line) for line in (tmp_path / "out" / "embeddings.jsonl").read_text().splitlines()]
    assert len(records) == 10
    measured = {record["by"]: record for record in records if "error" not in record}
    assert measured["MosaicBERT, unpadded, fp32"]["documents_per_second"] > 0
    assert list(measured["MosaicBERT, unpadded, fp32"]["phases_us"]) == ["forward"]
    assert measured["MosaicBERT, unpadded, fp32"]["padding_fraction"] == 0.0
    paddings = [measured[f"BERT, padded{suffix}, fp32"]["padding_fraction"] for suffix in ("", ", sorted by length")]
    assert paddings[0] > paddings[1] >= 0.0
    assert all(record["what"].endswith(", batches of 40") for record in records)
    assert all("loader_us" not in record for record in records)
    assert (tmp_path / "out" / "embeddings.png").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_steps": 2}, "`--steps` must be at least 3, got 2"),
        ({"seconds": 0.0}, "`--seconds` must be positive"),
        ({"embedding_batch": 0}, "`--embeddings` must be at least 1, got 0"),
    ],
    ids=["steps", "seconds", "embeddings"],
)
def test_an_invalid_argument_is_an_error(arguments, message, finished, console, tmp_path):
    with pytest.raises(ConfigError, match=message):
        _bench(finished[0], console, tmp_path, **arguments)


def test_a_recipe_of_another_architecture_is_an_error(finished, console, tmp_path):
    recipe, _, _ = finished
    recipe = replace(recipe, model=replace(recipe.model, architecture="bert"))
    with pytest.raises(ConfigError, match=r"`model\.architecture` must be mosaicbert for a benchmark, got bert"):
        _bench(recipe, console, tmp_path)
