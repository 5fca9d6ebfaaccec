"""Console output."""

from rich.console import Console


def print_line(console: Console, line: str) -> None:
    """Print a line without markup, highlighting or line breaks."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)
