import pytest

from mosaicbert.config import ConfigError
from mosaicbert.config.load import load_recipe
from mosaicbert.config.pareto import ParetoConfig, ParetoRecipe, SeriesConfig


def test_a_pareto_recipe_is_loaded_from_yaml(tmp_path):
    path = tmp_path / "figure.yaml"
    path.write_text(
        "run_name: figure\npareto:\n  tasks: [mrpc]\n  series:\n    Base:\n      runs: [runs/a, runs/b]\n"
        "      devices: 8\n      dollars_per_device_hour: 2.5\n"
    )
    recipe = load_recipe(path, ["pareto.reference=false"], ParetoRecipe)
    series = SeriesConfig(runs=["runs/a", "runs/b"], devices=8, dollars_per_device_hour=2.5)
    assert recipe.pareto == ParetoConfig(series={"Base": series}, tasks=["mrpc"], reference=False)
    assert str(recipe.run_folder) == "runs/figure"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"runs": []}, r"`pareto\.series\.a\.runs` must be non-empty, got \[\]"),
        ({"devices": 0}, r"`pareto\.series\.a\.devices` must be at least 1, got 0"),
        ({"dollars_per_device_hour": 0.0}, "hour` must be a positive finite number, got 0.0"),
        ({"dollars_per_device_hour": float("nan")}, "hour` must be a positive finite number, got nan"),
    ],
    ids=["no-run", "no-device", "zero-price", "nan-price"],
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
        ({"tasks": ["mrcp"]}, "'mrcp'"),
        ({"tasks": ["mrpc", "mrpc"]}, "must be distinct names among"),
    ],
    ids=[
        "no-series",
        "duplicate-run",
        "duplicate-run-in-two-series",
        "run-as-untrained",
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
