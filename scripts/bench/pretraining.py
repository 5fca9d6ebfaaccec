"""Summary of a pretraining run as one benchmark record: steps, tokens, throughput after warmup, and losses.

Run: python scripts/bench/pretraining.py RUN_FOLDER
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from harness import write_lines

MIN_LINES = 5  # the second half of the lines is used for throughput


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    run: Path = parser.parse_args().run
    metrics = run / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    steps = [line for line in lines if "loss" in line]
    if len(steps) < MIN_LINES:
        print(f"{metrics} must have at least {MIN_LINES} lines of steps, got {len(steps)}.", file=sys.stderr)
        return 1
    line = summarize(run.name, steps)
    write_lines("pretraining", [line], "cuda" if torch.cuda.is_available() else "cpu")
    print(json.dumps(line))
    return 0


def summarize(name: str, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarize a run. Throughput is that of the second half of its lines."""
    measured, last = steps[len(steps) // 2 :], steps[-1]
    return {
        "what": "pretraining",
        "run": name,
        "steps": last["step"],
        "tokens": last["tokens"],
        "seconds": last["wall_seconds"],
        "tokens_per_second": round(statistics.median(line["tokens_per_second"] for line in measured)),
        "mfu": round(statistics.median(line["mfu"] for line in measured), 4),
        "fill_rate": round(statistics.mean(line["fill_rate"] for line in measured), 4),
        "data_wait_seconds": round(sum(line["data_wait_seconds"] for line in measured), 3),
        "memory_gib": last["memory_gib"],
        "first_loss": steps[0]["loss"],
        "last_loss": last["loss"],
        "skipped_steps": last["skipped_steps"],
    }


if __name__ == "__main__":
    sys.exit(main())
