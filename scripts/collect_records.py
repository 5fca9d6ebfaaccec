"""Collect the records of several runs in one folder, or write them back to run folders to plot them again.

    python scripts/collect_records.py FOLDER RUN [RUN ...]
    python scripts/collect_records.py --restore FOLDER

FOLDER/scores.jsonl and FOLDER/predictions.jsonl.zst have the lines of scores.jsonl and predictions.jsonl of all runs,
and FOLDER/pretraining.jsonl has their results, recipes and environments. Each line has the field "run", the folder that
it belongs to. Of a result that is not a run, only the scores exist.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

from mosaicbert.config.load import load_recipe
from mosaicbert.scores.predictions import PREDICTIONS_FILE
from mosaicbert.scores.records import SCORES_FILE
from mosaicbert.train.run_folder import RunFolder

_LEVEL = 19
_WINDOW_LOG = 27  # bits; labels recur in every record of a task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--restore", action="store_true", help="write the records back to the run folders")
    parser.add_argument("folder", type=Path, help="folder of the collected records")
    parser.add_argument("runs", type=Path, nargs="*", help="folders with score records")
    arguments = parser.parse_args()
    if arguments.restore:
        restore(arguments.folder)
    else:
        collect(arguments.folder, arguments.runs)


def collect(folder: Path, runs: list[Path]) -> None:
    """Write the records of runs to a folder. Existing files are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    scores = [line for run in runs for line in _lines(run, SCORES_FILE)]
    (folder / SCORES_FILE).write_text("".join(scores))
    parameters = zstandard.ZstdCompressionParameters.from_level(_LEVEL, window_log=_WINDOW_LOG, enable_ldm=True)
    predictions = "".join(line for run in runs for line in _lines(run, PREDICTIONS_FILE))
    compressed = zstandard.ZstdCompressor(compression_params=parameters).compress(predictions.encode())
    (folder / f"{PREDICTIONS_FILE}.zst").write_bytes(compressed)
    (folder / "pretraining.jsonl").write_text("".join(_describe(run) for run in runs if RunFolder(run).is_finished))


def _lines(run: Path, name: str) -> Iterator[str]:
    path = run / name
    for line in path.read_text().splitlines() if path.exists() else ():
        yield json.dumps({"run": str(run)} | json.loads(line)) + "\n"


def _describe(run: Path) -> str:
    folder = RunFolder(run)
    recipe = load_recipe(folder.recipe)
    settings: dict[str, Any] = {
        "seed": recipe.seed,
        "architecture": recipe.model.architecture,
        "mask_rate": recipe.data.mask_rate,
        "optimizer": recipe.optimizer.name,
        "peak_lr": recipe.optimizer.peak_lr,
        "duration": recipe.train.duration,
        "num_attention_heads": recipe.model.num_attention_heads,
    }
    environment = json.loads(folder.environment.read_text())
    result = json.loads(folder.result.read_text())
    return json.dumps({"run": str(run)} | settings | result | {"environment": environment}) + "\n"


def restore(folder: Path) -> None:
    """Append the records of a folder to scores.jsonl and predictions.jsonl of their run folders."""
    content = (folder / f"{PREDICTIONS_FILE}.zst").read_bytes()
    predictions = zstandard.ZstdDecompressor(max_window_size=2**_WINDOW_LOG).decompress(content).decode()
    for name, text in ((SCORES_FILE, (folder / SCORES_FILE).read_text()), (PREDICTIONS_FILE, predictions)):
        for line in text.splitlines():
            record = json.loads(line)
            run = Path(record.pop("run"))
            run.mkdir(parents=True, exist_ok=True)
            with (run / name).open("a") as file:
                file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
