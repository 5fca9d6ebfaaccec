"""Pareto recipe: runs to compare and device prices, without torch."""

import os
from dataclasses import dataclass, field
from typing import Annotated

from mosaicbert.config.glue import TASKS
from mosaicbert.config.run import RunRecipe
from mosaicbert.config.validators import NOT_EMPTY, POSITIVE, at_least, check_value, distinct, must_be, validate


@dataclass(frozen=True, kw_only=True)
class SeriesConfig:
    """Runs of one curve."""

    runs: Annotated[list[str], NOT_EMPTY]  # folders of scored runs; every scored checkpoint is a point
    repeats: dict[str, list[str]] = field(default_factory=dict[str, list[str]])  # of a run: runs with other seeds
    untrained: str | None = None  # folder of a scored one-step run of the same model: the untrained baseline
    devices: Annotated[int | None, at_least(1)] = None  # number of devices per run; None: that of the first session
    dollars_per_device_hour: Annotated[float | None, POSITIVE] = None  # None: not in the plot against dollars

    @property
    def all_runs(self) -> list[str]:
        """Runs and their repeats."""
        return [folder for run in self.runs for folder in (run, *self.repeats.get(run, []))]


@dataclass(frozen=True, kw_only=True)
class ParetoConfig:
    """Series and tasks of the figure."""

    series: dict[str, SeriesConfig]  # by legend label
    tasks: Annotated[list[str], distinct(TASKS)] = field(default_factory=list[str])  # empty: the tasks of all points
    metrics: dict[str, list[str]] = field(default_factory=dict[str, list[str]])  # to average, by task; default: all
    # Folders of scored models without pretraining time by label, plotted as horizontal lines
    baselines: dict[str, str] = field(default_factory=dict[str, str])
    init_from_mnli: bool | None = None  # initialization of RTE, MRPC and STS-B; None: that of all points
    reference: bool = True  # plot the published results of the paper

    def __post_init__(self) -> None:
        validate(self, "pareto")
        check_value("pareto.series", self.series, NOT_EMPTY)
        for name, series in self.series.items():
            validate(series, f"pareto.series.{name}")
            missing = next((run for run in series.repeats if run not in series.runs), None)
            if missing is not None:
                raise must_be(f"pareto.series.{name}.repeats", "keyed by runs of the series", missing)
        for task, metrics in self.metrics.items():
            if task not in TASKS:
                raise must_be("pareto.metrics", f"keyed by {', '.join(TASKS)}", task)
            for rule in (NOT_EMPTY, distinct(TASKS[task].metrics)):
                check_value(f"pareto.metrics.{task}", metrics, rule)
        runs = [os.path.normpath(run) for series in self.series.values() for run in series.all_runs]
        untrained = {os.path.normpath(series.untrained) for series in self.series.values() if series.untrained}
        duplicate = next((run for run in runs if runs.count(run) > 1 or run in untrained), None)
        if duplicate is not None:
            raise must_be("pareto.series", "free of duplicate run folders", duplicate)


@dataclass(frozen=True, kw_only=True)
class ParetoRecipe(RunRecipe):
    """Comparison of scored runs: pareto.png, pareto.jsonl and a table."""

    pareto: ParetoConfig
