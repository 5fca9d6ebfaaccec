"""Command `report`: training curves of one or more runs as a PNG file and an HTML page."""

from collections.abc import Sequence
from pathlib import Path

from mosaicbert.config import ConfigError
from mosaicbert.filesystem import atomic_path
from mosaicbert.report.html import render_page
from mosaicbert.report.plots import draw_runs
from mosaicbert.report.runs import read_runs


def report(folders: Sequence[Path], output: Path) -> tuple[Path, Path]:
    """Write report.png and report.html with the training curves of finished or unfinished runs.

    Args:
        folders: Run folders.
        output: Folder for the two files. Existing reports are replaced.

    Returns:
        Path of the PNG file, and path of the HTML page, which includes the PNG.

    Raises:
        ConfigError: If a folder is not a run folder, has no training metrics or contains an invalid file, or if the
            output cannot be written.
    """
    runs = read_runs(folders)
    png = draw_runs(runs)
    page = render_page(runs, png)
    png_path, page_path = output / "report.png", output / "report.html"
    try:
        output.mkdir(parents=True, exist_ok=True)
        for path, content in ((png_path, png), (page_path, page.encode("utf-8", "replace"))):
            with atomic_path(path) as partial:
                partial.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"{output} cannot be written ({error}). Set a different folder with --output.") from error
    return png_path, page_path
