"""Recipe of a Pareto figure: the runs to compare, and the price of their devices, without torch."""

import os
from dataclasses import dataclass, field
from typing import Annotated

from mosaicbert.config.glue import TASKS
from mosaicbert.config.run import RunRecipe
from mosaicbert.config.validators import NOT_EMPTY, POSITIVE, at_least, check_value, distinct, must_be, validate


@dataclass(frozen=True, kw_only=True)
class SeriesConfig:
    """Runs that make one curve."""

    runs: Annotated[list[str], NOT_EMPTY]  # folders of scored runs; each scored checkpoint is a point
    untrained: str | None = None  # folder of a scored run of one step, of the same model: random weights
    devices: Annotated[int | None, at_least(1)] = None  # per run; None: as many as the run began with
    dollars_per_device_hour: Annotated[float | None, POSITIVE] = None  # None: no point in the plot against dollars


@dataclass(frozen=True, kw_only=True)
class ParetoConfig:
    """Contents of the figure."""

    series: dict[str, SeriesConfig]  # by the labels of the legend
    tasks: Annotated[list[str], distinct(TASKS)] = field(default_factory=list[str])  # empty: those that all points have
    init_from_mnli: bool | None = None  # RTE, MRPC and STS-B fine-tuned from MNLI or not; None: what all points have
    reference: bool = True  # also plot the paper's published points

    def __post_init__(self) -> None:
        validate(self, "pareto")
        check_value("pareto.series", self.series, NOT_EMPTY)
        for name, series in self.series.items():
            validate(series, f"pareto.series.{name}")
        runs = [os.path.normpath(run) for series in self.series.values() for run in series.runs]
        untrained = {os.path.normpath(series.untrained) for series in self.series.values() if series.untrained}
        repeated = next((run for run in runs if runs.count(run) > 1 or run in untrained), None)
        if repeated is not None:
            raise must_be("pareto.series", "free of repeated run folders", repeated)


@dataclass(frozen=True, kw_only=True)
class ParetoRecipe(RunRecipe):
    """A comparison of scored runs: pareto.png, pareto.jsonl and the table."""

    pareto: ParetoConfig
