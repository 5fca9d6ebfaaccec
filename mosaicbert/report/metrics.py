"""Reading metrics.jsonl: the lines of a run, as it wrote them."""

import json
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without a last one that a crash cut off."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]
