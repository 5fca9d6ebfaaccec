"""Export of a fine-tuned classifier as a Hugging Face folder, with a check of its logits."""

import shutil
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from mosaicbert.config import TrainingFault
from mosaicbert.filesystem import partial_path, replace_folder
from mosaicbert.finetune.collator import ClassificationCollator, encode
from mosaicbert.finetune.model import max_input_length, pad_token_id_of
from mosaicbert.finetune.tables import Examples
from mosaicbert.finetune.task.dataset import TaskDataset

_NUM_PROBES = 8  # examples whose logits are compared
_MAX_PROBE_LENGTH = 256  # tokens
_MAX_DIFFERENCE = 1e-4  # of logits that are both computed on the CPU, relative to the largest one if it exceeds 1


def export_classifier(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: TaskDataset, folder: Path, max_length: int
) -> None:
    """Write a fine-tuned classifier and its tokenizer as a Hugging Face folder.

    Args:
        model: Classifier; it is moved to the CPU.
        tokenizer: Tokenizer of the model.
        data: Dataset that the model was trained on. It provides class names and probe inputs.
        folder: Path of the folder; an existing folder is replaced.
        max_length: Number of tokens at which the examples were truncated, and at which the tokenizer will truncate.

    Raises:
        TrainingFault: If the logits of the written folder differ from those of the model.
    """
    partial = partial_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    model = model.cpu().eval()
    names = data.label_set.names
    if names:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: index for index, name in enumerate(names)}
    model.save_pretrained(partial)
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(partial)
    _check_logits(model, partial, tokenizer, data.validation)
    replace_folder(partial, folder)


def _check_logits(model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase, examples: Examples) -> None:
    reloaded = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    encoded = encode(tokenizer, examples, max_input_length(model, _MAX_PROBE_LENGTH))[:_NUM_PROBES]
    # Padded, because users of the folder pass padded batches.
    batch = ClassificationCollator(is_unpadded=False, pad_token_id=pad_token_id_of(tokenizer))(encoded)
    del batch["labels"]
    with torch.no_grad():
        expected = model(**batch).logits
        difference = float((expected - reloaded(**batch).logits).abs().max())
    limit = _MAX_DIFFERENCE * max(1.0, float(expected.abs().max()))
    if not difference <= limit:
        raise TrainingFault(
            f"Logits of the exported model in {folder} must differ by at most {limit:.2g} from those of the "
            f"trained model, got a difference of {difference}. Report this as a bug."
        )
