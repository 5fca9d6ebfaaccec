"""Fields common to all recipes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mosaicbert.config.validators import FILE_NAME, validate


@dataclass(frozen=True, kw_only=True)
class RunRecipe:
    """Base class of all recipes, with the folder of the results."""

    run_name: Annotated[str, FILE_NAME]
    runs_folder: str = "runs"

    def __post_init__(self) -> None:
        validate(self)

    @property
    def run_folder(self) -> Path:
        return Path(self.runs_folder) / self.run_name
