"""Console output."""

from rich.console import Console


def print_line(console: Console, line: str) -> None:
    """Print a line as it is: without markup, colors of numbers or line breaks."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)
