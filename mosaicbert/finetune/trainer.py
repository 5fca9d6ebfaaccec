"""Fine-tuning of a classifier with Composer's training loop."""

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mosaicbert.config import OptimizerConfig, TrainingFault
from mosaicbert.config.glue import Protocol
from mosaicbert.finetune.collator import ClassificationCollator, EncodedExample, encode
from mosaicbert.finetune.composer_model import ClassifierComposerModel
from mosaicbert.finetune.loader import build_classification_loader
from mosaicbert.finetune.model import is_unpadded, max_input_length, pad_token_id_of
from mosaicbert.finetune.tables import Examples
from mosaicbert.train.composer import Callback, DataSpec, Logger, State, Trainer
from mosaicbert.train.optimizers import build_optimizer
from mosaicbert.train.progress.lr_schedule import learning_rate_fraction

_EVALUATION_BATCH_SIZE = 64
_LOG_INTERVAL_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Settings of a fine-tuning, without the model and the data.

    Attributes:
        protocol: Number of epochs, batch size, learning rate and weight decay.
        problem_type: Hugging Face problem type.
        seed: Seed of the example order and of dropout.
        shuffle: True to shuffle the training data in each epoch.
        max_seq_len: Maximum number of tokens of an example.
        precision: Dtype of matrix products.
        class_weights: Weight of each class in the loss, see `ClassifierComposerModel`; None for equal weights.
    """

    protocol: Protocol
    problem_type: str
    seed: int
    shuffle: bool
    max_seq_len: int
    precision: torch.dtype
    class_weights: tuple[float, ...] | None = None


class _LearningRateScheduler(Callback):
    """Linear warmup, then linear decay to zero after the last step."""

    def __init__(self, config: OptimizerConfig, num_steps: int) -> None:
        self.config = config
        self.num_steps = num_steps

    def batch_start(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        fraction = learning_rate_fraction(self.config, (state.timestamp.batch.value + 1) / (self.num_steps + 1))
        for group in state.optimizers[0].param_groups:
            group["lr"] = group["peak_lr"] * fraction


class _ProgressLogger(Callback):
    """Log of step, loss and remaining time every few seconds.

    The loss is read only for a logged line, because reading it synchronizes the GPU.
    """

    def __init__(self, num_steps: int, log: Callable[[str], None]) -> None:
        self.num_steps = num_steps
        self.log = log
        self._start_time = self._last_log_time = 0.0

    def fit_start(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        self._start_time = self._last_log_time = time.monotonic()

    def batch_end(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        now, step = time.monotonic(), state.timestamp.batch.value
        if now - self._last_log_time < _LOG_INTERVAL_SECONDS:
            return
        self._last_log_time = now
        remaining = timedelta(seconds=round((now - self._start_time) / step * (self.num_steps - step)))
        loss = float(cast(Tensor, state.loss))
        self.log(f"step {step:,}/{self.num_steps:,}  loss {loss:.3f}  {remaining} remaining")


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Examples,
    evaluation_sets: Sequence[Examples],
    settings: FinetuneSettings,
    log: Callable[[str], None] | None = None,
) -> list[Tensor]:
    """Fine-tune a classifier in place on the device of this process, and evaluate it.

    Args:
        model: Classifier returned by `load_classifier`.
        tokenizer: Tokenizer of the model.
        train: Labeled training examples.
        evaluation_sets: Sets of examples whose logits are computed after training.
        settings: Settings of the fine-tuning.
        log: Function that receives a progress line every 10 seconds; None for no progress lines.

    Returns:
        Logits (N, L) of each evaluation set, fp32, on the CPU.

    Raises:
        TrainingFault: If a logit is not finite.
    """
    on_gpu = torch.cuda.is_available()
    protocol, max_length = settings.protocol, max_input_length(model, settings.max_seq_len)
    collator = ClassificationCollator(is_unpadded=is_unpadded(model), pad_token_id=pad_token_id_of(tokenizer))
    loader = build_classification_loader(
        encode(tokenizer, train, max_length),
        collator,
        protocol.batch_size,
        num_epochs=protocol.epochs,
        seed=settings.seed if settings.shuffle else None,
    )
    optimizer = OptimizerConfig(
        peak_lr=protocol.peak_lr, weight_decay=protocol.weight_decay, warmup_fraction=0.06, final_lr_fraction=0.0
    )
    callbacks: list[Callback] = [_LearningRateScheduler(optimizer, len(loader))]
    if log is not None:
        callbacks.append(_ProgressLogger(len(loader), log))
    logging.getLogger("composer").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)
        trainer = Trainer(
            model=ClassifierComposerModel(model, settings.problem_type, settings.precision, settings.class_weights),
            train_dataloader=_data_spec(loader),
            max_duration=f"{len(loader)}ba",
            optimizers=build_optimizer(model, optimizer),
            callbacks=callbacks,
            progress_bar=False,
            device="gpu" if on_gpu else "cpu",
            precision="amp_bf16" if on_gpu and settings.precision == torch.bfloat16 else "fp32",
            device_train_microbatch_size=protocol.batch_size,
            seed=settings.seed,
        )
        try:
            trainer.fit()
            logits = [
                _compute_logits(trainer, encode(tokenizer, examples, max_length), collator)
                for examples in evaluation_sets
            ]
        finally:
            trainer.close()
    if not all(bool(set_logits.isfinite().all()) for set_logits in logits):
        raise TrainingFault(
            "Logits after fine-tuning must be finite, got NaN or infinity. Decrease the peak learning rate "
            f"{protocol.peak_lr}."
        )
    return logits


def _compute_logits(trainer: Trainer, examples: list[EncodedExample], collator: ClassificationCollator) -> Tensor:
    loader = build_classification_loader(examples, collator, _EVALUATION_BATCH_SIZE)
    return torch.cat([logits.float() for logits in trainer.predict(_data_spec(loader))])


def _data_spec(loader: torch.utils.data.DataLoader[EncodedExample]) -> DataSpec:
    return DataSpec(
        loader,
        split_batch=lambda batch, _size: [batch],
        get_num_samples_in_batch=lambda batch: (
            len(batch["cu_seqlens"]) - 1 if "cu_seqlens" in batch else len(batch["input_ids"])
        ),
        get_num_tokens_in_batch=lambda batch: batch["input_ids"].numel(),
    )
