"""Command `export`: Hugging Face folders of runs and of published checkpoints, and their ONNX files."""

import tempfile
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from mosaicbert.config import ConfigError
from mosaicbert.export.composer_checkpoint import convert_composer_checkpoint
from mosaicbert.export.hf_folder import publish
from mosaicbert.export.onnx import export_onnx
from mosaicbert.export.published import save_published
from mosaicbert.model import modeling
from mosaicbert.model.pretrained import first_line, is_mosaicbert, load_pretrained_tokenizer

# Classes by the name in a published config.json, which does not begin with Mosaic.
_CLASSES = {
    "BertModel": modeling.MosaicBertModel,
    "BertForMaskedLM": modeling.MosaicBertForMaskedLM,
    "BertForSequenceClassification": modeling.MosaicBertForSequenceClassification,
    "BertForTokenClassification": modeling.MosaicBertForTokenClassification,
    "BertForQuestionAnswering": modeling.MosaicBertForQuestionAnswering,
    "BertForMultipleChoice": modeling.MosaicBertForMultipleChoice,
}


def export_files(folder: Path, *, file_format: str, task: str | None, output: Path | None) -> Path:
    """Convert a Hugging Face folder, a published MosaicBERT or a Composer checkpoint of one to another format.

    Args:
        folder: Hugging Face folder, folder of a published MosaicBERT, or Composer checkpoint, a .pt file.
        file_format: "onnx" for model.onnx in the folder; "huggingface" for a folder of this package; "published" for
            the layout of published MosaicBERT checkpoints.
        task: Task of the ONNX file, or None for that of the folder.
        output: New folder. Required unless the format is "onnx".

    Returns:
        Path of the new file or folder.

    Raises:
        ConfigError: If the folder cannot be loaded, `output` is missing or exists, or an option does not apply.
    """
    if file_format == "onnx":
        if folder.is_file():
            raise ConfigError(f"`--format onnx` must have a folder, got {folder}. Convert it with `--output` first.")
        if output is not None:
            raise ConfigError("`--output` is not supported with `--format onnx`, which writes beside the weights.")
        latest = folder / "latest"
        if not latest.is_symlink():
            return export_onnx(folder, task)
        newest = latest.resolve()  # of the exports of a run, whose folder has links to the newest
        path = export_onnx(newest, task)
        publish(folder, newest)
        return folder / path.name
    if output is None or output.exists():
        state = "none" if output is None else f"{output}, which exists"
        raise ConfigError(f"`--output` must be a new folder for `--format {file_format}`, got {state}. Set a new path.")
    if task is not None:
        raise ConfigError(f"`--task` is not supported with `--format {file_format}`. Remove it.")
    with tempfile.TemporaryDirectory() as scratch:
        if folder.is_file():
            convert_composer_checkpoint(folder, Path(scratch))
            folder = Path(scratch)
        model, tokenizer = _load(folder), load_pretrained_tokenizer(str(folder))
    if file_format == "published":
        save_published(model, output)
    else:
        model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return output


def _load(folder: Path) -> PreTrainedModel:
    """Load a MosaicBERT with the class that saved it."""
    try:
        config, _ = PreTrainedConfig.get_config_dict(folder)
        if not is_mosaicbert(config):
            raise ValueError(f"model_type {config.get('model_type')!r}")
        name = next(iter(config.get("architectures") or ["MosaicBertModel"]))
        model_class: Any = _CLASSES.get(name.removeprefix("Mosaic"))
        if model_class is None:
            raise ValueError(f"the class {name}")
        return model_class.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder} must be a folder of a MosaicBERT, got {first_line(error)}. Check the path."
        ) from error
