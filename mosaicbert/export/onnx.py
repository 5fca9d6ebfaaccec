"""Export of a Hugging Face folder to ONNX, for onnxruntime and OpenVINO."""

import importlib.util
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from mosaicbert.config import ConfigError
from mosaicbert.export.parity import TOLERANCE, ParityError
from mosaicbert.filesystem import atomic_path
from mosaicbert.model.configuration import MosaicBertConfig
from mosaicbert.model.pretrained import first_line

ONNX_FILE = "model.onnx"  # the name that optimum and sentence-transformers expect
_OPSET = 18
_MAX_SIZE = 2**31 - 1  # torch.export does not accept dimensions without a maximum for this model
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# Documents of the probe batches: batch sizes and lengths that the export has not seen.
_PROBE_SEQLENS = ((5,), (1, 17, 9), (40, 3, 64, 2, 31))
_EXAMPLE_SEQLENS = (7, 12)


@dataclass(frozen=True)
class OnnxTask:
    """Task of an exported model.

    Attributes:
        auto_class: Hugging Face class that loads the model.
        outputs: Names of the outputs.
    """

    auto_class: str
    outputs: tuple[str, ...]


TASKS = {
    "feature-extraction": OnnxTask("AutoModel", ("last_hidden_state",)),
    "fill-mask": OnnxTask("AutoModelForMaskedLM", ("logits",)),
    "text-classification": OnnxTask("AutoModelForSequenceClassification", ("logits",)),
    "token-classification": OnnxTask("AutoModelForTokenClassification", ("logits",)),
    "question-answering": OnnxTask("AutoModelForQuestionAnswering", ("start_logits", "end_logits")),
}
_TASK_OF_SUFFIX = {
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "Model": "feature-extraction",
}


class _Outputs(nn.Module):
    """Model with positional inputs and a tuple of outputs."""

    def __init__(self, model: nn.Module, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, ...]:
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return tuple(output[name] for name in self.outputs)


def export_onnx(folder: Path, task: str | None = None) -> Path:
    """Write `model.onnx` beside the weights of a Hugging Face folder, with dynamic batch size and length.

    The file is kept only if onnxruntime reproduces the outputs of the model on batches of other sizes.

    Args:
        folder: Hugging Face folder of a MosaicBERT.
        task: Key of TASKS, or None for the task of the class that saved the folder, or `feature-extraction` if it is a
            folder of sentence-transformers.

    Returns:
        Path of the file.

    Raises:
        ConfigError: If the folder is not that of a MosaicBERT, its class has no task, or a package is not installed.
        ParityError: If onnxruntime computes other outputs. An older file is kept.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"{package} is not installed. Run `pip install 'mosaicbert[deploy]'`.")
    config = _read_config(folder)
    spec = TASKS[_task_of(folder, config) if task is None else task]
    model = _load(folder, spec.auto_class)
    wrapped = _Outputs(model, spec.outputs)
    vocab_size: int = model.config.vocab_size
    sizes = {0: torch.export.Dim("batch", max=_MAX_SIZE), 1: torch.export.Dim("sequence", max=_MAX_SIZE)}
    path = folder / ONNX_FILE
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's own use of deprecated functions
        program: Any = torch.onnx.export(
            wrapped,
            kwargs=_make_inputs(_EXAMPLE_SEQLENS, vocab_size),
            input_names=list(_INPUTS),
            output_names=list(spec.outputs),
            opset_version=_OPSET,
            dynamic_shapes={name: sizes for name in _INPUTS},
            dynamo=True,
            verbose=False,
        )
    with atomic_path(path) as partial:
        program.save(partial)
        _check_outputs(wrapped, partial, folder, vocab_size)
    return path


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} must be a Hugging Face folder, got no valid config.json ({error}).") from error
    if config.get("model_type") != MosaicBertConfig.model_type:
        raise ConfigError(
            f"{folder} must be a folder of a MosaicBERT, got model_type {config.get('model_type')!r}. Export other "
            "models with the package optimum."
        )
    return config


def _load(folder: Path, auto_class: str) -> PreTrainedModel:
    try:
        model, info = getattr(transformers, auto_class).from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        if info["missing_keys"]:
            raise ValueError(f"no weights of {', '.join(sorted(info['missing_keys'])[:3])}")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder} must be a folder of {auto_class.removeprefix('Auto')}, got {first_line(error)}. Fine-tune the "
            "model for this task first, or set a different --task."
        ) from error
    return model.eval()


def _task_of(folder: Path, config: dict[str, Any]) -> str:
    if (folder / "modules.json").exists():  # of sentence-transformers
        return "feature-extraction"
    name = next(iter(config.get("architectures") or [""]))
    for suffix, task in _TASK_OF_SUFFIX.items():
        if name.endswith(suffix):
            return task
    raise ConfigError(
        f"`architectures` in {folder / 'config.json'} must name a class that ends with {', '.join(_TASK_OF_SUFFIX)}, "
        f"got {name!r}. Set --task."
    )


def _make_inputs(seqlens: tuple[int, ...], vocab_size: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(max(seqlens)) < torch.tensor(seqlens)[:, None]).long()
    ids = torch.randint(vocab_size, mask.shape, generator=generator)
    return dict(zip(_INPUTS, (ids, mask, torch.zeros_like(ids)), strict=True))


def _check_outputs(model: _Outputs, path: Path, folder: Path, vocab_size: int) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for seqlens in _PROBE_SEQLENS:
        inputs = _make_inputs(seqlens, vocab_size)
        with torch.no_grad():
            expected: tuple[Tensor, ...] = model(**inputs)
        feeds: Mapping[str, NDArray[Any]] = {name: tensor.numpy() for name, tensor in inputs.items()}
        actual: Any = session.run(None, dict(feeds))
        is_token = feeds["attention_mask"].astype(bool)
        for name, output, reference in zip(model.outputs, actual, expected, strict=True):
            values = reference.numpy()
            if values.shape[:2] == is_token.shape:
                output, values = output[is_token], values[is_token]
            difference = float(np.abs(output - values).max())
            if not difference <= TOLERANCE:  # this form of the condition also rejects NaN
                raise ParityError(
                    f"{ONNX_FILE} of {folder} must reproduce `{name}` within {TOLERANCE:g}, got a difference of "
                    f"{difference:.3g}. The file was not written."
                )
