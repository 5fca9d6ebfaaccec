"""Versions of the training step: MosaicBERT as the trainer runs it, and its peers as their users run them."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mosaicbert.batch import MicroBatch
from mosaicbert.bench.documents import Document, Workload, cut_by_tokens, cut_in_order, pad_documents, sort_by_length
from mosaicbert.bench.peers import (
    bert_sizes,
    build_bert,
    build_modernbert,
    compile_layers,
    fastest_attention,
    modernbert_config,
    modernbert_flops,
    step_flops,
)
from mosaicbert.bench.timing import PhaseClock
from mosaicbert.bench.versions import BERT, MODERNBERT, MOSAICBERT, Subject, Version
from mosaicbert.config import Recipe
from mosaicbert.model.factory import build_model
from mosaicbert.ops.attention import choose_attention
from mosaicbert.train.compile import CompileChoice, compile_model
from mosaicbert.train.optimizers import build_optimizer, update_unless

_LEARNING_RATE = 1e-5  # small, so that losses stay finite; the time of a step does not depend on it


class TrainingStep(Subject, ABC):
    """Training steps of a model: forward and backward passes of the micro-batches, and a step of the optimizer each.

    `load` returns the micro-batches of each step.

    Args:
        model: Model in training mode, on its device.
        optimizer: Optimizer of the model.
        dtype: dtype of matrix products.
    """

    def __init__(self, model: Any, optimizer: torch.optim.Optimizer, dtype: torch.dtype) -> None:
        self.model = model
        self.optimizer = optimizer
        self.dtype = dtype
        self.device = next(model.parameters()).device

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """Compute the loss of a micro-batch as a part of the mean loss of the step, ()."""

    @abstractmethod
    def update(self, loss: Tensor) -> None:
        """Update the weights.

        Args:
            loss: Mean loss of the step, ().
        """

    def run(self, batches: list[Any], clock: PhaseClock) -> None:
        for micro_batches in batches:
            self.optimizer.zero_grad(set_to_none=not self.keeps_gradients)
            loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
            for micro_batch in micro_batches:
                with self._autocast():
                    loss = self.loss(micro_batch)
                clock.lap("forward")
                loss.backward()
                clock.lap("backward")
                loss_sum += loss.detach()
            self.update(loss_sum)
            clock.lap("optimizer")

    def resident_tensors(self) -> list[Tensor]:
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        return super().resident_tensors() + [value for value in states if isinstance(value, Tensor)]

    @property
    def keeps_gradients(self) -> bool:
        """Whether gradients keep their memory from step to step."""
        return False

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)


class MosaicBertStep(TrainingStep):
    """Training step of MosaicBERT, as `train.trainer.StepTrainer` runs it on one device.

    Args:
        recipe: Recipe of the run.
        dtype: dtype of matrix products.
        device_type: Device, "cuda" or "cpu".
        compilation: Parts of the step that are compiled.
    """

    def __init__(self, recipe: Recipe, dtype: torch.dtype, device_type: str, compilation: CompileChoice) -> None:
        torch.manual_seed(recipe.seed)
        model: Any = build_model(recipe.model).train()
        model.to(device_type)
        if compilation.is_enabled:
            compile_model(model, cuda_graphs=compilation.uses_cuda_graphs)
        optimizer = build_optimizer(model, recipe.optimizer, dtype)
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE
        super().__init__(model, optimizer, dtype)
        self.uses_cuda_graphs = compilation.uses_cuda_graphs
        self.sizes = recipe.model
        backend = choose_attention(compilation.attention_backend, device_type, dtype, recipe.model.head_dim)
        self.attention = backend.name

    @property
    def keeps_gradients(self) -> bool:
        return self.uses_cuda_graphs

    def load(self, workload: Workload) -> list[Any]:
        return [
            [(micro_batch.to(self.device), step.global_num_masked) for micro_batch in step.micro_batches]
            for step in workload.steps
        ]

    def loss(self, batch: tuple[MicroBatch, int]) -> Tensor:
        micro_batch, global_num_masked = batch
        return self.model.masked_lm_loss(micro_batch)[0] / max(1, global_num_masked)

    def update(self, loss: Tensor) -> None:
        gradients = [weight.grad for weight in self.model.parameters() if weight.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        update_unless((loss + norm).isfinite().logical_not().float(), self.optimizer)

    def num_padded_tokens(self, batches: list[Any]) -> int:
        return sum(micro_batch.shape[0] for micro_batches in batches for micro_batch, _ in micro_batches)

    def flops(self, workload: Workload) -> float:
        return step_flops(self.sizes, workload.seqlens, workload.num_masked)


class HuggingFaceStep(TrainingStep):
    """Training step of a Hugging Face model with PyTorch's fused AdamW.

    If a micro-batch does not fit into the memory of a GPU, the micro-batches of this and later steps are halved.

    Args:
        model: Model for masked language modeling, in training mode on its device.
        dtype: dtype of matrix products.
        flops: Function from document lengths and number of masked tokens to the FLOPs of a step.
        max_tokens: Maximum number of tokens of a micro-batch with padding, for documents sorted by length; None for
            unsorted documents in micro-batches of equal size, as many as MosaicBERT has.
    """

    def __init__(
        self, model: Any, dtype: torch.dtype, flops: Callable[[Tensor, int], float], max_tokens: int | None
    ) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, fused=True)
        super().__init__(model, optimizer, dtype)
        self.max_tokens = max_tokens
        self.division = 1
        self.attention = model.config._attn_implementation
        self._flops = flops

    def load(self, workload: Workload) -> list[Any]:
        documents, num_steps = workload.documents, len(workload.steps)
        if self.max_tokens is not None:
            documents = sort_by_length(documents)
        return [
            self._load_step(step_documents, -(-workload.num_micro_batches // num_steps))
            for step_documents in cut_in_order(documents, num_steps)
        ]

    def _load_step(self, documents: list[Document], num_micro_batches: int) -> list[Any]:
        if self.max_tokens is None:
            batches = cut_in_order(documents, self.division * num_micro_batches)
        else:
            batches = cut_by_tokens(documents, self.max_tokens // self.division)
        num_masked = sum(int((document.labels >= 0).sum()) for document in documents)
        loaded: list[Any] = []
        for batch in batches:
            inputs = {
                name: tensor.to(self.device)
                for name, tensor in pad_documents(batch, self.model.config.pad_token_id).items()
            }
            num_labels = sum(int((document.labels >= 0).sum()) for document in batch)
            if num_labels:  # the loss of Hugging Face is NaN otherwise
                loaded.append((inputs, num_labels / num_masked))
        return loaded

    def call(self, workload: Workload, clock: PhaseClock) -> None:
        while True:
            try:
                super().call(workload, clock)
                return
            except torch.OutOfMemoryError:
                self.division *= 2
                if self.division > len(workload.documents):
                    raise
            torch.cuda.empty_cache()  # outside of the except clause, whose error refers to the tensors of the step

    def loss(self, batch: tuple[Mapping[str, Tensor], float]) -> Tensor:
        inputs, weight = batch
        return self.model(**inputs).loss * weight

    def update(self, loss: Tensor) -> None:  # noqa: ARG002
        self.optimizer.step()

    def num_padded_tokens(self, batches: list[Any]) -> int:
        return sum(inputs["input_ids"].numel() for micro_batches in batches for inputs, _ in micro_batches)

    def flops(self, workload: Workload) -> float:
        return self._flops(workload.seqlens, workload.num_masked)


def training_versions(
    recipe: Recipe, dtype: torch.dtype, compilation: CompileChoice, device_type: str
) -> list[Version]:
    """Return the versions of the training step, most important first. The first is that of the recipe.

    Args:
        recipe: Recipe of the run, with `model.architecture=mosaicbert`.
        dtype: dtype of matrix products of the recipe.
        compilation: Parts of the step of the recipe that are compiled.
        device_type: Device of all versions, "cuda" or "cpu".
    """
    other_compilation = CompileChoice(not compilation.is_enabled, False, "for comparison")

    def mosaicbert(choice: CompileChoice) -> Version:
        setting = "compiled" if choice.is_enabled else "eager"
        start = partial(MosaicBertStep, recipe, dtype, device_type, choice)
        return Version(MOSAICBERT, setting, dtype, start, is_compiled=choice.is_enabled)

    def peers(peer_dtype: torch.dtype) -> list[Version]:
        return [
            Version(family, setting, peer_dtype, _start_peer(family, recipe, peer_dtype, device_type, is_best), is_best)
            for setting, is_best in (("as used", False), ("sorted, compiled", True))
            for family in (BERT, MODERNBERT)
        ]

    other_dtype = torch.float32 if dtype == torch.bfloat16 else torch.bfloat16
    return [mosaicbert(compilation), *peers(dtype), mosaicbert(other_compilation), *peers(other_dtype)]


def _start_peer(
    family: str, recipe: Recipe, dtype: torch.dtype, device_type: str, is_best: bool
) -> Callable[[], HuggingFaceStep]:
    sizes = recipe.model

    def start() -> HuggingFaceStep:
        torch.manual_seed(recipe.seed)
        if family == BERT:
            model = build_bert(sizes, recipe.data.max_seq_len)
            flops = lambda seqlens, num_masked: step_flops(bert_sizes(sizes), seqlens, num_masked)  # noqa: E731
        else:
            model = build_modernbert(sizes, sparse_prediction=is_best)
            config = modernbert_config(sizes, sparse_prediction=is_best)
            flops = lambda seqlens, num_masked: modernbert_flops(config, seqlens, num_masked)  # noqa: E731
        model.set_attn_implementation(fastest_attention(device_type) if is_best and dtype != torch.float32 else "sdpa")
        model.to(device_type).train()
        if is_best:
            compile_layers(model)
        return HuggingFaceStep(model, dtype, flops, recipe.train.micro_batch_tokens if is_best else None)

    return start
