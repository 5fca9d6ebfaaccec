"""Evaluate frozen pretrained models on GLUE tasks with a linear probe, without fine-tuning.

    python scripts/probing.py GLUE RUN [RUN ...]

The vector of a sentence is the mean of the last hidden states of its tokens. The features of a pair of vectors u, v are
u, v, |u - v| and u * v (InferSent, Conneau et al. 2017, arXiv:1705.02364). The probe is a ridge regression on
standardized features, whose penalty is selected by leave-one-out cross-validation. It does not depend on a seed. For
STS-B, the cosine of u and v is evaluated too, which needs no training. The output has one line per run and task.
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
from mosaicbert.environment import describe_environment
from mosaicbert.finetune.glue.dataset import read_glue_task
from mosaicbert.finetune.metrics import compute_metrics, problem_type_of
from mosaicbert.finetune.tables import Examples
from mosaicbert.train.run_folder import RunFolder, newest_export

_TASKS = ("cola", "sst2", "mrpc", "stsb", "rte")
_MAX_TRAIN_EXAMPLES = 10_000  # the first ones of the 67,349 of SST-2
_MAX_SEQ_LEN = 128
_BATCH_SIZE = 128
_PENALTIES = np.logspace(0, 6, 13)

Features = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("glue", type=Path, help="folder of the GLUE tasks, see docs/glue.md")
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument("--output", type=Path, default=Path("probing.jsonl"), help="file to write")
    arguments = parser.parse_args()
    tasks = {name: read_glue_task(GlueConfig(model="", data=str(arguments.glue)), name) for name in _TASKS}
    common = {"environment": describe_environment(), "date": date.today().isoformat()}
    lines: list[dict[str, Any]] = []
    for path in arguments.runs:
        export = newest_export(RunFolder(path))
        if export is None:
            parser.error(f"{path} must contain an exported checkpoint, got none.")
        encoder = Encoder(export)
        for name, data in tasks.items():
            metrics = probe(name, encoder, limit_examples(data.train), data.validation[""])
            print(
                f"{path.name} {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in metrics.items()), flush=True
            )
            lines.append({"run": path.name, "task": name, "metrics": metrics, **common})
    arguments.output.write_text("".join(json.dumps(line) + "\n" for line in lines))


class Encoder:
    """Frozen model that returns the mean of the last hidden states of each sentence."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModel.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def __call__(self, sentences: list[str]) -> Features:
        """Return the vectors of N sentences, (N, C)."""
        vectors = np.empty((len(sentences), self.model.config.hidden_size))
        order = sorted(range(len(sentences)), key=lambda index: len(sentences[index]))
        for start in range(0, len(order), _BATCH_SIZE):
            indices = order[start : start + _BATCH_SIZE]
            batch = self.tokenizer(
                [sentences[index] for index in indices],
                padding=True,
                truncation=True,
                max_length=_MAX_SEQ_LEN,
                return_tensors="pt",
            )
            mask = batch["attention_mask"][..., None]
            with torch.no_grad():
                states = self.model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            vectors[indices] = ((states * mask).sum(1) / mask.sum(1)).double().numpy()
        return vectors


def probe(task: str, encoder: Encoder, train: Examples, validation: Examples) -> dict[str, float]:
    """Return the metrics of a task on the validation set, as fractions."""
    num_labels = TASKS[task].num_labels
    train_vectors, validation_vectors = (
        [encoder(column) for column in examples.texts] for examples in (train, validation)
    )
    ridge = RidgeCV(_PENALTIES) if num_labels == 1 else RidgeClassifierCV(_PENALTIES)
    regression = make_pipeline(StandardScaler(), ridge).fit(make_features(train_vectors), np.array(train.labels))
    predictions = regression.predict(make_features(validation_vectors))
    labels = torch.tensor(validation.labels)

    def measure(logits: Features) -> dict[str, float]:
        return compute_metrics(TASKS[task].metrics, problem_type_of(num_labels), torch.tensor(logits), labels)

    metrics = measure(predictions[:, None] if num_labels == 1 else np.eye(num_labels)[predictions])
    if num_labels == 1:
        u, v = validation_vectors
        cosines = (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
        metrics |= {f"cosine_{name}": value for name, value in measure(cosines[:, None]).items()}
    return metrics


def limit_examples(examples: Examples) -> Examples:
    """Return the first examples, at most as many as a probe is trained on."""
    return replace(
        examples,
        texts=tuple(column[:_MAX_TRAIN_EXAMPLES] for column in examples.texts),
        labels=examples.labels and examples.labels[:_MAX_TRAIN_EXAMPLES],
    )


def make_features(vectors: list[Features]) -> Features:
    """Return the features of single sentences or of pairs."""
    if len(vectors) == 1:
        return vectors[0]
    u, v = vectors
    return np.concatenate([u, v, np.abs(u - v), u * v], axis=1)


if __name__ == "__main__":
    main()
