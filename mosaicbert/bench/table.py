"""Console table and summary of a benchmark."""

import io
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mosaicbert.bench.versions import MOSAICBERT, Version

_MAX_WIDTH = 200  # characters; columns are not folded to the width of the terminal
_HEADERS = ("version", "tokens/s", "IQR", "time", "MFU", "products", "padding", "MiB")
_PHASES = ("forward", "backward", "optimizer")
TABLE_LEGEND = (
    "tokens/s: median of real tokens; IQR: interquartile range; time: relative to the first version, on the same "
    "documents; MFU: of FLOPs without padding; products: time in matrix products and fused attention; padding: of the "
    "tokens that were computed; MiB: peak of weights, gradients, optimizer state and activations; phases in ms."
)


def format_table(records: Sequence[dict[str, Any]]) -> str:
    """Format the table of a benchmark, one row per version with times.

    Args:
        records: Records of the versions.
    """
    phases = [name for name in _PHASES if any(name in record.get("phases_us", {}) for record in records)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in (*_HEADERS, *phases):
        table.add_column(header, justify="left" if header == "version" else "right", no_wrap=True)
    for record in records:
        if "error" not in record:
            table.add_row(
                record["by"],
                f"{record['tokens_per_second']:,}",
                f"{record['tokens_per_second_iqr']:,}",
                f"{record['ratio']:.2f}",
                f"{record['mfu']:.1%}",
                f"{record['matrix_fraction']:.0%}",
                f"{record['padding_fraction']:.1%}",
                f"{record['peak_mib']:,.0f}",
                *(f"{record['phases_us'][phase] / 1e3:,.1f}" for phase in phases),
            )
    console = Console(width=_MAX_WIDTH, file=io.StringIO(), record=True)
    console.print(table)
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


def summarize_comparison(versions: Sequence[Version], records: Sequence[dict[str, Any]]) -> list[str]:
    """Return lines for the console: speed against each peer in its faster precision, and versions without times.

    Args:
        versions: Versions of the benchmark.
        records: Record of each version.
    """
    fastest: dict[str, tuple[Version, dict[str, Any]]] = {}
    for version, record in zip(versions, records, strict=True):
        if "error" not in record:
            other = fastest.get(version.group)
            if other is None or record["ratio"] < other[1]["ratio"]:
                fastest[version.group] = version, record
    ran = [record for record in records if "error" not in record]
    lines = [f"{ran[0]['by']}: {_describe_operations(ran[0]['operations'])}"] if ran else []
    lines += [
        f"{ran[0]['by']}: {record['ratio']:.2f} times as fast as Hugging Face's {version.name}"
        for version, record in fastest.values()
        if version.family != MOSAICBERT
    ]
    return lines + [f"{record['by']}: {record['error']}" for record in records if "error" in record]


def _describe_operations(operations: dict[str, float]) -> str:
    fractions = ", ".join(f"{name} {fraction:.0%}" for name, fraction in operations.items())
    return f"{fractions}, rest {1 - sum(operations.values()):.0%} of the time"
