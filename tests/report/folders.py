"""Run folders with synthetic metrics."""

import json
import math
from pathlib import Path

import numpy as np

from mosaicbert.config.load import save_recipe
from tests.recipes import tiny_recipe

ENTROPY = 6.5


def training_lines(
    num_steps: int, *, seed: int = 0, tokens_per_second: float = 9000.0, num_total_steps: int | None = None
) -> list[dict]:
    """Create one training line per step, with a decreasing loss, a warmup and a slow first step."""
    random = np.random.default_rng(seed)
    noise = random.normal(size=(6, num_steps)).tolist()
    num_total_steps = num_total_steps or num_steps
    lines, tokens, seconds = [], 0, 0.0
    for index in range(num_steps):
        progress = (index + 1) / num_total_steps
        loss = 1.8 + 8.0 / (1 + 0.15 * index) ** 0.45 + 0.06 * noise[0][index]
        fill = min(1.0, 0.97 + 0.004 * noise[1][index])
        batch = 16 if progress < 0.3 else 32
        speed = tokens_per_second * (1 + 0.03 * noise[2][index]) * (0.2 if index == 0 else 1.0)
        tokens += batch * 90
        wait = abs(0.01 * noise[3][index]) * batch * 90 / speed
        seconds += batch * 90 / speed
        lines.append(
            {
                "step": index + 1,
                "samples": batch * (index + 1),
                "tokens": tokens,
                "seconds": round(seconds, 3),
                "wall_seconds": round(1.1 * seconds, 3),
                "progress": progress,
                "loss": loss,
                "accuracy": max(0.0, 0.62 - 0.06 * loss + 0.01 * noise[4][index]),
                "grad_norm": math.exp(0.3 * noise[5][index]) * (0.5 + 4 / (1 + 0.1 * index)),
                "lr": 1e-3 * min(1.0, progress / 0.06) * (1.0 - 0.98 * progress),
                "mask_rate": 0.3 - 0.15 * progress,
                "num_masked": 400,
                "batch_samples": batch,
                "fill_rate": fill,
                "padding_rate": 1 - fill,
                "data_wait_seconds": wait,
                "memory_gib": 11.5,
                "tokens_per_second": speed,
                "mfu": 0.45 * speed / 9000,
                "skipped_steps": 0,
                "rollbacks": 0,
            }
        )
    return lines


def evaluation_lines(training: list[dict], every: int) -> list[dict]:
    """Create an evaluation line after every Nth training line."""
    return [
        {key: line[key] for key in ("step", "tokens", "seconds", "wall_seconds")}
        | {"eval_loss": line["loss"] - 0.1, "eval_accuracy": line["accuracy"] + 0.01}
        for line in training[every - 1 :: every]
    ]


def write_run(folder: Path, metrics: list[dict], *, faults=(), is_finished=True, **changes) -> Path:
    """Write a run folder. The changes are recipe fields, as for `tiny_recipe`."""
    folder.mkdir(parents=True)
    recipe = tiny_recipe(folder.parent, folder / "docs.jsonl", **({"run_name": folder.name} | changes))
    save_recipe(recipe, folder / "recipe.yaml")
    write_lines(folder / "metrics.jsonl", metrics)
    if faults:
        write_lines(folder / "faults.jsonl", faults)
    environment = {
        "started": "2025-01-02T03:04:05+00:00",
        "commit": "0123abcd",
        "gpus": [],
        "cpu": "Example CPU",
        "num_cores": 1,
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "store.json").write_text(json.dumps({"splits": {}, "unigram_entropy": ENTROPY}))
    if is_finished:
        (folder / "result.json").write_text(json.dumps({"steps": len(metrics), "unigram_entropy": ENTROPY}))
    return folder


def write_lines(path: Path, lines) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
