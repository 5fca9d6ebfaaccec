"""Fine-tuning of sentence embeddings with sentence-transformers, by `mosaicbert finetune`."""

import importlib
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from mosaicbert.config import ConfigError
from mosaicbert.config.finetune import FinetuneConfig, FinetuneRecipe
from mosaicbert.config.load import save_recipe
from mosaicbert.console import print_line
from mosaicbert.environment import describe_environment
from mosaicbert.filesystem import partial_path, replace_folder, write_file
from mosaicbert.finetune.metrics import REGRESSION, compute_metrics
from mosaicbert.finetune.tables import Examples
from mosaicbert.finetune.task.command import check_finetune_folder
from mosaicbert.finetune.task.dataset import read_text_pairs
from mosaicbert.scoring.checkpoints import newest_model

_LOSSES = {"similarity": "CoSENTLoss", "pairs": "MultipleNegativesRankingLoss"}
_WARMUP_FRACTION = 0.06


def finetune_embeddings(recipe: FinetuneRecipe, console: Console) -> Path:
    """Fine-tune a pretrained encoder for sentence embeddings, and write it as a sentence-transformers folder.

    "similarity" trains the cosine of two embeddings to have the order of the labels (CoSENTLoss). "pairs" trains the
    second text of a pair to be the nearest among those of a batch (MultipleNegativesRankingLoss).

    Args:
        recipe: Recipe of the fine-tuning, whose `data.kind` is "similarity" or "pairs".
        console: Console for progress and metrics.

    Returns:
        Run folder with recipe.yaml, hf/ and metrics.json.

    Raises:
        ConfigError: If the model or the data cannot be used, sentence-transformers is not installed, or the folder
            contains a different kind of run or a finished run of a different recipe.
    """
    folder = recipe.run_folder
    metrics_path = folder / "metrics.json"
    check_finetune_folder(recipe, folder / "recipe.yaml", is_finished=metrics_path.exists())
    if metrics_path.exists():
        print_line(console, f"{folder}: this run is finished.")
        _print_metrics(folder, console)
        return folder
    try:
        library: Any = importlib.import_module("sentence_transformers")
        importlib.import_module("accelerate")
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed. Run `pip install 'mosaicbert[embeddings]'`.") from error
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    train, validation = read_text_pairs(recipe.data)
    name = newest_model(recipe.model)
    folder.mkdir(parents=True, exist_ok=True)
    save_recipe(recipe, folder / "recipe.yaml")
    print_line(console, f"{name}: {len(train):,} training pairs, {len(validation):,} validation pairs")
    metrics: dict[str, Any] = {}
    if recipe.train.compare_with_random_weights:
        console.print("Fine-tuning from random weights ...")
        random = _load(library, name, recipe.train, recipe.seed, random_weights=True)
        _fit(library, random, train, recipe)
        metrics["random_weights"] = evaluate_embeddings(random, validation)
    model = _load(library, name, recipe.train, recipe.seed)
    metrics["before_fine_tuning"] = evaluate_embeddings(model, validation)
    console.print("Fine-tuning from pretrained weights ...")
    start = time.monotonic()
    _fit(library, model, train, recipe)
    metrics |= {
        "validation": evaluate_embeddings(model, validation),
        "examples": {"train": len(train), "validation": len(validation)},
        "seconds": round(time.monotonic() - start, 2),
        "environment": describe_environment(),
    }
    partial = partial_path(folder / "hf")
    model.save(str(partial))
    replace_folder(partial, folder / "hf")
    # Written last, because the file marks the run as finished.
    write_file(metrics_path, (json.dumps(metrics, indent=2) + "\n").encode())
    _print_metrics(folder, console)
    return folder


def evaluate_embeddings(model: Any, examples: Examples) -> dict[str, float]:
    """Evaluate sentence embeddings on pairs of texts.

    Args:
        model: SentenceTransformer.
        examples: Pairs, with or without labels.

    Returns:
        With labels, the Spearman and Pearson correlation of the cosine with the label. Otherwise the fraction of first
        texts whose second text is the nearest of all, `accuracy_at_1`, and the mean of its reciprocal rank.
    """
    first, second = (
        model.encode(texts, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False).cpu()
        for texts in examples.texts
    )
    if examples.labels is not None:
        cosines: Tensor = (first * second).sum(1)
        return compute_metrics(("spearman", "pearson"), REGRESSION, cosines[:, None], torch.tensor(examples.labels))
    similarity = first @ second.T
    ranks = (similarity >= similarity.diagonal()[:, None]).sum(1)  # equal texts count as wrong
    return {
        "accuracy_at_1": float((ranks == 1).double().mean()),
        "mean_reciprocal_rank": float((1 / ranks.double()).mean()),
    }


def _load(library: Any, name: str, config: FinetuneConfig, seed: int, *, random_weights: bool = False) -> Any:
    base: Any = importlib.import_module("sentence_transformers.base.modules")
    modules: Any = importlib.import_module("sentence_transformers.sentence_transformer.modules")
    torch.manual_seed(seed)
    try:
        encoder = base.Transformer(name, max_seq_length=config.max_seq_len)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ConfigError(f"Model {name} cannot be loaded as an encoder ({reason}). Check the name.") from error
    if random_weights:
        encoder.model = type(encoder.model)(encoder.model.config)
    pooling = modules.Pooling(encoder.get_embedding_dimension(), pooling_mode=config.pooling)
    return library.SentenceTransformer(modules=[encoder, pooling], device=_device())


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _fit(library: Any, model: Any, train: Examples, recipe: FinetuneRecipe) -> None:
    datasets: Any = importlib.import_module("datasets")
    losses: Any = importlib.import_module("sentence_transformers.sentence_transformer.losses")
    columns: dict[str, Sequence[Any]] = dict(zip(("first", "second"), train.texts, strict=True))
    if train.labels is not None:
        columns["score"] = [float(label) for label in train.labels if isinstance(label, (int, float))]
    config = recipe.train
    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as scratch:
        arguments = library.SentenceTransformerTrainingArguments(
            output_dir=scratch,
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch_size,
            learning_rate=config.peak_lr,
            weight_decay=config.weight_decay / config.peak_lr,
            warmup_steps=_WARMUP_FRACTION,  # below 1: a fraction of the steps
            bf16=on_gpu and config.precision != "fp32",
            use_cpu=not on_gpu,
            seed=recipe.seed,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = library.SentenceTransformerTrainer(
            model=model,
            args=arguments,
            train_dataset=datasets.Dataset.from_dict(columns),
            loss=getattr(losses, _LOSSES[recipe.data.kind])(model),
        )
        trainer.remove_callback(PrinterCallback)  # prints a dictionary per logged step
        trainer.train()


def _print_metrics(folder: Path, console: Console) -> None:
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    for name, value in metrics["validation"].items():
        others = {
            "before fine-tuning": metrics["before_fine_tuning"][name],
            "random weights": metrics.get("random_weights", {}).get(name),
        }
        comparison = ", ".join(f"{label}: {other:.4f}" for label, other in others.items() if other is not None)
        print_line(console, f"{name + ':':22}{value:.4f}   ({comparison})")
    print_line(console, str(folder / "hf"))
