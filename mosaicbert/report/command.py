"""The command `report`: one PNG and one HTML page about one or several runs."""

from collections.abc import Sequence
from pathlib import Path

from mosaicbert.config import ConfigError
from mosaicbert.filesystem import atomic_path
from mosaicbert.report.html import write_page
from mosaicbert.report.plots import draw_runs
from mosaicbert.report.runs import read_runs


def report(folders: Sequence[Path], output: Path) -> tuple[Path, Path]:
    """Draws the curves of runs, finished or not, into report.png and report.html.

    Args:
        folders: of the runs.
        output: folder that the two files are written to; an older report in it is replaced.

    Returns:
        The paths of the PNG and of the page, which holds the PNG as well.

    Raises:
        ConfigError: a folder is no run's, has no training line yet or holds a damaged file, or `output` cannot be
            written.
    """
    runs = read_runs(folders)
    png = draw_runs(runs)
    page = write_page(runs, png)
    picture_path, page_path = output / "report.png", output / "report.html"
    try:
        output.mkdir(parents=True, exist_ok=True)
        for path, content in ((picture_path, png), (page_path, page.encode("utf-8", "replace"))):
            with atomic_path(path) as partial:
                partial.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written ({error}); choose another folder for the report.") from error
    return picture_path, page_path
