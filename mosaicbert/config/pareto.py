"""The recipe of a Pareto figure: which runs are compared, and what their devices cost. Imports no torch."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from mosaicbert.config.errors import ConfigError
from mosaicbert.config.glue import TASKS


@dataclass(frozen=True, kw_only=True)
class SeriesConfig:
    """Runs that make one curve."""

    runs: list[str]  # folders of runs that have been scored; each scored checkpoint is a point
    untrained: str | None = None  # folder of a scored run of one step, of the same model: random weights
    devices: int | None = None  # that trained each of them; None: as many as the run began with
    dollars_per_device_hour: float | None = None  # None: no price, and no point among the dollars

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("pareto.series: a series without runs; name the folder of one at least.")
        if self.devices is not None and self.devices < 1:
            raise ConfigError(f"pareto.series: devices={self.devices}; give 1 or more.")
        if self.dollars_per_device_hour is not None and not 0.0 < self.dollars_per_device_hour < math.inf:
            raise ConfigError(
                f"pareto.series: dollars_per_device_hour={self.dollars_per_device_hour}; give a number above zero."
            )


@dataclass(frozen=True, kw_only=True)
class ParetoConfig:
    """What the figure shows."""

    series: dict[str, SeriesConfig]  # by the names that the legend gives
    tasks: list[str] = field(default_factory=list[str])  # that are averaged; empty: those that every point has
    init_from_mnli: bool | None = None  # RTE, MRPC and STS-B fine-tuned from MNLI or not; None: what all points have
    reference: bool = True  # also show the paper's published points

    def __post_init__(self) -> None:
        if not self.series:
            raise ConfigError("pareto.series is empty; name one, e.g. pareto.series.MosaicBERT.runs=[runs/quickstart].")
        named = [os.path.normpath(run) for series in self.series.values() for run in series.runs]
        floors = {os.path.normpath(series.untrained) for series in self.series.values() if series.untrained}
        twice = next((run for run in named if named.count(run) > 1 or run in floors), None)
        if twice is not None:
            raise ConfigError(f"pareto.series names {twice} twice; name each folder once.")
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown:
            raise ConfigError(f"pareto.tasks names {unknown[0]!r}; the tasks are {', '.join(TASKS)}.")
        if len(set(self.tasks)) < len(self.tasks):
            raise ConfigError(f"pareto.tasks={self.tasks}; name each task once.")


@dataclass(frozen=True, kw_only=True)
class ParetoRecipe:
    """Scored runs, compared."""

    run_name: str  # the folder for pareto.png, pareto.jsonl and the table
    runs_folder: str = "runs"
    pareto: ParetoConfig

    def __post_init__(self) -> None:
        if self.run_name in ("", "..") or Path(self.run_name).name != self.run_name:
            raise ConfigError(f"run_name={self.run_name!r} is no folder name; give one without slashes.")

    @property
    def run_folder(self) -> Path:
        return Path(self.runs_folder) / self.run_name
