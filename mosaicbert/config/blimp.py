"""Settings of a BLiMP evaluation, without torch."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from mosaicbert.config.validators import at_least, validate

OFFICIAL_BLIMP = "nyu-mll/blimp"  # on the Hub
PAIRS_PER_PARADIGM = 1_000  # of the official data
_NOT_IN_FILE_NAMES = re.compile(r"[^\w.-]+")


@dataclass(frozen=True, kw_only=True)
class BlimpConfig:
    """Settings of `mosaicbert blimp MODEL [key=value ...]`. The scores of a run are written to its folder."""

    model: str  # run folder, Hugging Face folder, or name on the Hub
    checkpoints: Literal["newest", "all"] = "newest"  # of a run; all: including those written during the evaluation
    data: str = OFFICIAL_BLIMP  # name on the Hub, or folder with .jsonl or .jsonl.zst files
    revision: str = "main"  # branch, tag or commit of a Hub dataset
    pairs_per_paradigm: Annotated[int | None, at_least(1)] = None  # the first N pairs of each paradigm; None: all
    batch_tokens: Annotated[int, at_least(128)] = 8192  # maximum per forward pass
    num_processes: Annotated[int | None, at_least(1)] = None  # None: one per GPU, or one on a CPU
    runs_folder: str = "runs"  # for the scores of a model that is not a run

    def __post_init__(self) -> None:
        validate(self)

    @property
    def external_folder(self) -> Path:
        """Folder for the scores of a model that is not a run."""
        return Path(self.runs_folder) / _NOT_IN_FILE_NAMES.sub("-", self.model.strip("/."))
