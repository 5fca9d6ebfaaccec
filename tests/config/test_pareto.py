import pytest

from mosaicbert.config import ConfigError
from mosaicbert.config.load import load_recipe
from mosaicbert.config.pareto import ParetoConfig, ParetoRecipe, SeriesConfig


def test_a_recipe_of_a_figure_is_read_from_yaml(tmp_path):
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
    "changes, words",
    [
        ({"runs": []}, r"`pareto\.series\.a\.runs` must be non-empty, got \[\]"),
        ({"devices": 0}, r"`pareto\.series\.a\.devices` must be at least 1, got 0"),
        ({"dollars_per_device_hour": 0.0}, "hour` must be a positive finite number, got 0.0"),
        ({"dollars_per_device_hour": float("nan")}, "hour` must be a positive finite number, got nan"),
    ],
    ids=["no-run", "no-device", "free", "nan"],
)
def test_a_series_that_cannot_be_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        ParetoConfig(series={"a": SeriesConfig(**({"runs": ["runs/a"]} | changes))})


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"series": {}}, "`pareto.series` must be non-empty"),
        (
            {"series": {"a": SeriesConfig(runs=["runs/a", "./runs/a/"])}},
            "`pareto.series` must be free of repeated run folders, got 'runs/a'",
        ),
        (
            {"series": {name: SeriesConfig(runs=["runs/a"]) for name in "ab"}},
            "`pareto.series` must be free of repeated run folders, got 'runs/a'",
        ),
        ({"series": {"a": SeriesConfig(runs=["runs/a"], untrained="./runs/a")}}, "repeated run folders, got 'runs/a'"),
        ({"tasks": ["mrcp"]}, "'mrcp'"),
        ({"tasks": ["mrpc", "mrpc"]}, "must be distinct names out of"),
    ],
    ids=["no-series", "twice", "twice-in-two", "trained-and-not", "unknown-task", "task-twice"],
)
def test_a_figure_that_cannot_be_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        ParetoConfig(**({"series": {"a": SeriesConfig(runs=["runs/a"])}} | changes))


@pytest.mark.parametrize("name", ["", "..", "a/b"])
def test_a_run_name_that_is_no_folder_name_is_refused(name):
    with pytest.raises(ConfigError, match="run_name"):
        ParetoRecipe(run_name=name, pareto=ParetoConfig(series={"a": SeriesConfig(runs=["runs/a"])}))
