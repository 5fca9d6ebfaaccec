import pytest

from mosaicbert.config import ConfigError
from mosaicbert.config.load import load_recipe
from mosaicbert.config.pareto import ParetoConfig, ParetoRecipe, SeriesConfig


def test_a_pareto_recipe_is_loaded_from_yaml(tmp_path):
    path = tmp_path / "figure.yaml"
    path.write_text(
        "run_name: figure\npareto:\n  tasks: [mrpc]\n  metrics:\n    mrpc: [f1]\n"
        "  baselines:\n    majority answer: runs/m\n"
        "  series:\n    Base:\n      runs: [runs/a, runs/b]\n      repeats:\n        runs/b: [runs/b-2, runs/b-3]\n"
        "      devices: 8\n      dollars_per_device_hour: 2.5\n"
    )
    recipe = load_recipe(path, ["pareto.reference=false"], ParetoRecipe)
    series = SeriesConfig(
        runs=["runs/a", "runs/b"],
        repeats={"runs/b": ["runs/b-2", "runs/b-3"]},
        devices=8,
        dollars_per_device_hour=2.5,
    )
    assert recipe.pareto == ParetoConfig(
        series={"Base": series},
        tasks=["mrpc"],
        metrics={"mrpc": ["f1"]},
        baselines={"majority answer": "runs/m"},
        reference=False,
    )
    assert series.all_runs == ["runs/a", "runs/b", "runs/b-2", "runs/b-3"]
    assert str(recipe.run_folder) == "runs/figure"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"runs": []}, r"`pareto\.series\.a\.runs` must be non-empty, got \[\]"),
        (
            {"repeats": {"runs/c": []}},
            r"`pareto\.series\.a\.repeats` must be keyed by runs of the series, got 'runs/c'",
        ),
        ({"devices": 0}, r"`pareto\.series\.a\.devices` must be at least 1, got 0"),
        ({"dollars_per_device_hour": 0.0}, "hour` must be a positive finite number, got 0.0"),
        ({"dollars_per_device_hour": float("nan")}, "hour` must be a positive finite number, got nan"),
    ],
    ids=["no-run", "repeats-of-another-run", "no-device", "zero-price", "nan-price"],
)
def test_an_invalid_series_is_rejected(changes, message):
    with pytest.raises(ConfigError, match=message):
        ParetoConfig(series={"a": SeriesConfig(**({"runs": ["runs/a"]} | changes))})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"series": {}}, "`pareto.series` must be non-empty"),
        (
            {"series": {"a": SeriesConfig(runs=["runs/a", "./runs/a/"])}},
            "`pareto.series` must be free of duplicate run folders, got 'runs/a'",
        ),
        (
            {"series": {name: SeriesConfig(runs=["runs/a"]) for name in "ab"}},
            "`pareto.series` must be free of duplicate run folders, got 'runs/a'",
        ),
        ({"series": {"a": SeriesConfig(runs=["runs/a"], untrained="./runs/a")}}, "duplicate run folders, got 'runs/a'"),
        (
            {"series": {"a": SeriesConfig(runs=["runs/a", "runs/b"], repeats={"runs/a": ["./runs/b"]})}},
            "duplicate run folders, got 'runs/b'",
        ),
        (
            {"series": {"a": SeriesConfig(runs=["runs/a"], repeats={"runs/a": ["runs/b"]}, untrained="runs/b")}},
            "duplicate run folders, got 'runs/b'",
        ),
        ({"metrics": {"mrcp": ["f1"]}}, "`pareto.metrics` must be keyed by cola, .*, got 'mrcp'"),
        (
            {"metrics": {"mrpc": ["spearman"]}},
            r"`pareto.metrics.mrpc` must be distinct names among accuracy, f1, got \['spearman'\]",
        ),
        ({"metrics": {"mrpc": []}}, r"`pareto.metrics.mrpc` must be non-empty, got \[\]"),
        ({"metrics": {"mrpc": ["f1", "f1"]}}, "`pareto.metrics.mrpc` must be distinct names among accuracy, f1"),
        ({"tasks": ["mrcp"]}, "'mrcp'"),
        ({"tasks": ["mrpc", "mrpc"]}, "must be distinct names among"),
    ],
    ids=[
        "no-series",
        "duplicate-run",
        "duplicate-run-in-two-series",
        "run-as-untrained",
        "run-as-repeat",
        "repeat-as-untrained",
        "metrics-of-unknown-task",
        "unknown-metric",
        "no-metric",
        "duplicate-metric",
        "unknown-task",
        "duplicate-task",
    ],
)
def test_an_invalid_figure_is_rejected(changes, message):
    with pytest.raises(ConfigError, match=message):
        ParetoConfig(**({"series": {"a": SeriesConfig(runs=["runs/a"])}} | changes))


@pytest.mark.parametrize("name", ["", "..", "a/b"])
def test_a_run_name_that_is_not_a_file_name_is_rejected(name):
    with pytest.raises(ConfigError, match="run_name"):
        ParetoRecipe(run_name=name, pareto=ParetoConfig(series={"a": SeriesConfig(runs=["runs/a"])}))
