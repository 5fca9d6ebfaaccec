"""The first thirty steps of the quickstart recipe, on text that is the same everywhere. Run as a module, it trains them
and prints the losses; with --record, it writes them into quickstart.json for this torch on this processor."""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).with_suffix(".json")
NUM_STEPS = 30

# Products and sums in an order that does not depend on the number of threads, and hardly on the processor: kernels for
# AVX2, which every x86-64 server has, and MKL's conditional numerical reproducibility. An EPYC and a Xeon still differ.
REPRODUCIBLE = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "AVX2,STRICT",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


def documents() -> list[str]:
    """Three thousand documents of made-up words, of which some follow one another more often than others."""
    dice = random.Random(17)
    syllables = [first + second for first in "bdfgklmnprstv" for second in "aeiou"]
    words = ["".join(dice.choices(syllables, k=dice.randint(1, 4))) for _ in range(2_000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    favourites = {word: dice.choices(words, weights, k=3) for word in words}
    found: list[str] = []
    for _ in range(3_000):
        text = dice.choices(words, weights)
        while len(text) < dice.randint(10, 160):
            text.append(dice.choice(favourites[text[-1]]) if dice.random() < 0.6 else dice.choices(words, weights)[0])
        found.append(" ".join(text))
    return found


def where() -> tuple[str, str]:
    """What the bits depend on: the version of torch, and the processor."""
    import torch

    from mosaicbert.environment import describe_environment

    return torch.__version__.split("+")[0], describe_environment()["cpu"]


def train(folder: Path) -> list[float]:
    """Trains the steps in this process; returns their losses."""
    import torch

    from mosaicbert.config.load import load_recipe
    from mosaicbert.report.metrics import read_metrics
    from tests.data.corpus import write_jsonl
    from tests.train.running import train_here

    torch.set_num_threads(1)
    source = write_jsonl(folder / "text.jsonl", documents())
    overrides = [f"runs_folder={folder}", f"data.sources.text.path={source}", "train.precision=fp32"]
    run = train_here(load_recipe(ROOT / "recipes" / "quickstart.yaml", overrides), stop_after=NUM_STEPS)
    return [line["loss"] for line in read_metrics(run.metrics) if "loss" in line]


def train_apart(environment: dict[str, str]) -> list[float]:
    """Trains them in a process of their own, whose libraries see these variables when they are loaded."""
    command = [sys.executable, "-m", "tests.golden.quickstart"]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


if __name__ == "__main__":
    if "--record" in sys.argv:
        import os

        version, processor = where()
        record = json.loads(RECORD.read_text())
        record.setdefault(version, {})[processor] = train_apart(os.environ | REPRODUCIBLE)
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    else:
        with tempfile.TemporaryDirectory() as scratch:
            losses = train(Path(scratch))
        print(json.dumps(losses))
