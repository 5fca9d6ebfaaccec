"""The first thirty steps of the quickstart recipe on a fixed synthetic text.

Run: python -m tests.golden.quickstart [--record]
This prints the losses. With --record they are written to quickstart.json, for this version of torch and this CPU.
"""

import json
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).with_suffix(".json")
NUM_STEPS = 30

# The order of sums must not depend on the number of threads, and as little as possible on the CPU: kernels for AVX2,
# which every x86-64 server supports, and MKL's conditional numerical reproducibility. Some CPUs still differ.
REPRODUCIBLE = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "AVX2,STRICT",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


def make_documents() -> list[str]:
    """Return three thousand documents of synthetic words, some of which often follow each other."""
    rng = random.Random(17)
    syllables = [first + second for first in "bdfgklmnprstv" for second in "aeiou"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(2_000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    frequent_successors = {word: rng.choices(words, weights, k=3) for word in words}
    documents: list[str] = []
    for _ in range(3_000):
        text = rng.choices(words, weights)
        while len(text) < rng.randint(10, 160):
            is_frequent = rng.random() < 0.6
            text.append(rng.choice(frequent_successors[text[-1]]) if is_frequent else rng.choices(words, weights)[0])
        documents.append(" ".join(text))
    return documents


def describe_machine() -> tuple[str, str]:
    """Return the version of torch and the CPU, on which the losses depend.

    The name of a CPU is not enough: "AMD EPYC" of different generations differ in rounding. So its family and model,
    as Linux gives them, follow the name.
    """
    import torch

    from mosaicbert.environment import describe_environment

    numbers = dict(re.findall(r"^(cpu family|model)\s*: (\d+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE))
    cpu = ", ".join([describe_environment()["cpu"], *(f"{name} {number}" for name, number in numbers.items())])
    return torch.__version__.split("+")[0], cpu


def train(folder: Path) -> list[float]:
    """Train the steps in this process, and return their losses."""
    import torch

    from mosaicbert.config.load import load_recipe
    from mosaicbert.report.metrics import read_metrics
    from tests.data.corpus import write_jsonl
    from tests.train.running import train_here

    torch.set_num_threads(1)
    source = write_jsonl(folder / "text.jsonl", make_documents())
    overrides = [f"runs_folder={folder}", f"data.sources.text.path={source}", "train.precision=fp32"]
    run = train_here(load_recipe(ROOT / "recipes" / "quickstart.yaml", overrides), stop_after=NUM_STEPS)
    return [line["loss"] for line in read_metrics(run.metrics) if "loss" in line]


def train_in_new_process(environment: dict[str, str]) -> list[float]:
    """Train the steps in a new process, whose libraries read environment variables when they are loaded."""
    command = [sys.executable, "-m", "tests.golden.quickstart"]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


if __name__ == "__main__":
    if "--record" in sys.argv:
        import os

        version, cpu = describe_machine()
        record = json.loads(RECORD.read_text())
        record.setdefault(version, {})[cpu] = train_in_new_process(os.environ | REPRODUCIBLE)
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    else:
        with tempfile.TemporaryDirectory() as scratch:
            losses = train(Path(scratch))
        print(json.dumps(losses))
