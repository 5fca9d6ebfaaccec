"""How much the frozen states of pretrained models tell about GLUE's tasks: a linear probe, without fine-tuning.

    python scripts/probing.py GLUE RUN [RUN ...]

A sentence is the mean of its tokens' last hidden states; of pairs u, v the features are u, v, |u - v| and u * v
(InferSent, Conneau et al. 2017, arXiv:1705.02364). On them, standardised, stands a ridge regression, whose penalty is
chosen on the training data by leaving each example out. There are no seeds. For STS-B there is also the cosine of u and
v, which learns nothing. The output has a line per run and task.
"""

import argparse
import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifierCV, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, AutoTokenizer

from mosaicbert.config.glue import TASKS, GlueConfig
from mosaicbert.finetune.glue.dataset import read_task
from mosaicbert.finetune.metrics import compute_metrics, problem_of
from mosaicbert.finetune.tables import Examples
from mosaicbert.train.run_folder import RunFolder, describe_environment, newest_export

_TASKS = ("cola", "sst2", "mrpc", "stsb", "rte")
_MOST_TRAINED = 10_000  # of SST-2's 67,349 phrases: the first so many
_LENGTH = 128
_BATCH = 128
_PENALTIES = np.logspace(0, 6, 13)

Features = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description="A linear probe of frozen models on GLUE's tasks.")
    parser.add_argument("glue", type=Path, help="folder of the tasks, see docs/glue.md")
    parser.add_argument("runs", type=Path, nargs="+", help="their folders")
    parser.add_argument("--output", type=Path, default=Path("probing.jsonl"), help="it is written anew")
    asked = parser.parse_args()
    tasks = {name: read_task(GlueConfig(model="", data=str(asked.glue)), name) for name in _TASKS}
    common = {"environment": describe_environment(), "date": date.today().isoformat()}
    lines: list[dict[str, Any]] = []
    for path in asked.runs:
        export = newest_export(RunFolder(path))
        if export is None:
            parser.error(f"{path}: no checkpoint has been exported.")
        encoder = Encoder(export)
        for name, data in tasks.items():
            metrics = probe(name, encoder, beginning(data.train), data.validation[""])
            print(
                f"{path.name} {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in metrics.items()), flush=True
            )
            lines.append({"run": path.name, "task": name, "metrics": metrics, **common})
    asked.output.write_text("".join(json.dumps(line) + "\n" for line in lines))


class Encoder:
    """A frozen model that turns sentences into the mean of their last hidden states."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModel.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def __call__(self, sentences: list[str]) -> Features:
        """(N, C)."""
        found = np.empty((len(sentences), self.model.config.hidden_size))
        order = sorted(range(len(sentences)), key=lambda number: len(sentences[number]))
        for start in range(0, len(order), _BATCH):
            numbers = order[start : start + _BATCH]
            batch = self.tokenizer(
                [sentences[number] for number in numbers],
                padding=True,
                truncation=True,
                max_length=_LENGTH,
                return_tensors="pt",
            )
            mask = batch["attention_mask"][..., None]
            with torch.no_grad():
                states = self.model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            found[numbers] = ((states * mask).sum(1) / mask.sum(1)).double().numpy()
        return found


def probe(task: str, encoder: Encoder, train: Examples, validation: Examples) -> dict[str, float]:
    """The task's metrics on the development set, as fractions."""
    num_labels = TASKS[task].num_labels
    sides = [[encoder(column) for column in examples.texts] for examples in (train, validation)]
    ridge = RidgeCV(_PENALTIES) if num_labels == 1 else RidgeClassifierCV(_PENALTIES)
    fitted = make_pipeline(StandardScaler(), ridge).fit(join(sides[0]), np.array(train.labels))
    predicted = fitted.predict(join(sides[1]))
    labels = torch.tensor(validation.labels)

    def measure(logits: Features) -> dict[str, float]:
        return compute_metrics(TASKS[task].metrics, problem_of(num_labels), torch.tensor(logits), labels)

    metrics = measure(predicted[:, None] if num_labels == 1 else np.eye(num_labels)[predicted])
    if num_labels == 1:
        u, v = sides[1]
        cosines = (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
        metrics |= {f"cosine_{name}": value for name, value in measure(cosines[:, None]).items()}
    return metrics


def beginning(examples: Examples) -> Examples:
    """The first examples, as many as a probe is trained on."""
    return replace(
        examples,
        texts=tuple(column[:_MOST_TRAINED] for column in examples.texts),
        labels=examples.labels and examples.labels[:_MOST_TRAINED],
    )


def join(columns: list[Features]) -> Features:
    """Features of one sentence or of a pair."""
    if len(columns) == 1:
        return columns[0]
    u, v = columns
    return np.concatenate([u, v, np.abs(u - v), u * v], axis=1)


if __name__ == "__main__":
    main()
