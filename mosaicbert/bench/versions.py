"""Versions that a benchmark compares."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mosaicbert.bench.documents import Workload
from mosaicbert.bench.timing import PhaseClock

MOSAICBERT, BERT, MODERNBERT = "MosaicBERT", "BERT", "ModernBERT"  # the last two are those of Hugging Face


class Subject(ABC):
    """Model that is measured, with its inputs.

    Attributes:
        model: Model on its device.
        device: Device of the model.
        attention: Name of the attention backend.
    """

    model: Any
    device: torch.device
    attention: str

    @abstractmethod
    def load(self, workload: Workload) -> list[Any]:
        """Create the batches of a round on the device. This is not timed, because data loaders do it concurrently."""

    @abstractmethod
    def run(self, batches: list[Any], clock: PhaseClock) -> None:
        """Run the batches of a round."""

    @abstractmethod
    def num_padded_tokens(self, batches: list[Any]) -> int:
        """Count the tokens of the batches, padding included."""

    @abstractmethod
    def flops(self, workload: Workload) -> float:
        """Return the FLOPs of a round without padding."""

    def call(self, workload: Workload, clock: PhaseClock) -> None:
        """Load and run one round. The clock is started after the loading."""
        batches = self.load(workload)
        clock.restart()
        self.run(batches, clock)

    def resident_tensors(self) -> list[torch.Tensor]:
        """Return the tensors that exist between two rounds: weights, gradients and buffers."""
        weights = list(self.model.parameters())
        return [*weights, *(weight.grad for weight in weights if weight.grad is not None), *self.model.buffers()]


@dataclass(frozen=True)
class Version:
    """Version that is measured.

    Attributes:
        family: Name of the model.
        setting: How the model is run.
        dtype: dtype of matrix products.
        start: Function that builds the model.
        is_compiled: Whether the model is compiled.
    """

    family: str
    setting: str
    dtype: torch.dtype
    start: Callable[[], Subject]
    is_compiled: bool = False

    @property
    def precision(self) -> str:
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"

    @property
    def group(self) -> str:
        """Name without the dtype. Of versions that differ in the dtype only, the fastest is compared."""
        return f"{self.family}, {self.setting}"

    @property
    def name(self) -> str:
        return f"{self.group}, {self.precision}"
