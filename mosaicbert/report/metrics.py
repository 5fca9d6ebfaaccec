"""Reader of metrics.jsonl."""

import json
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics.jsonl file, except for a truncated last line."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]
