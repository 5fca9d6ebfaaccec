"""Export of a trained model to a Hugging Face folder: weights, configuration, tokenizer, model card and code."""

import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mosaicbert.config import Recipe
from mosaicbert.config.load import save_recipe
from mosaicbert.export.model_card import format_model_card, truncation_length
from mosaicbert.export.parity import check_parity
from mosaicbert.filesystem import atomic_path, partial_path, replace_folder


def export_folder(
    model: PreTrainedModel, tokenizer: Tokenizer, recipe: Recipe, result: dict[str, Any], folder: Path
) -> None:
    """Write a model to a Hugging Face folder, and replace an older export after the parity check.

    Args:
        model: Trained model on the CPU, in evaluation mode.
        tokenizer: Tokenizer of the training data.
        recipe: Training recipe.
        result: Metrics of the run for the model card, see `format_model_card`.
        folder: Folder to write.

    Raises:
        ParityError: If the exported folder does not reproduce the logits of the model. The older export is kept.
    """
    partial = partial_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_recipe(recipe, partial / "recipe.yaml")
    wrap_tokenizer(tokenizer, truncation_length(recipe)).save_pretrained(partial)
    (partial / "README.md").write_text(format_model_card(recipe, result, (partial / "recipe.yaml").read_text()))
    modes = ("package",)
    if recipe.model.architecture == "mosaicbert":
        modes = ("package", "remote_code")
    model.save_pretrained(partial)
    check_parity(model, partial, modes)
    replace_folder(partial, folder)


def publish(parent: Path, newest: Path) -> None:
    """Link the files of the newest export into the parent folder.

    Each file is a symbolic link through the link `latest`, so all files switch to a new export at once. Links to files
    that the newest export does not have are removed.

    Args:
        parent: Folder of the exports, in which the links are created.
        newest: Folder of the newest export, inside parent.
    """
    latest = parent / "latest"
    _link(latest, newest.name)
    names = {path.name for path in newest.iterdir()}
    for name in names:
        if not (parent / name).is_symlink():
            _link(parent / name, f"{latest.name}/{name}")
    for link in parent.iterdir():
        if link.is_symlink() and link != latest and link.name not in names:
            link.unlink()


def _link(link: Path, target: str) -> None:
    with atomic_path(link) as partial:
        partial.unlink(missing_ok=True)
        partial.symlink_to(target)


def wrap_tokenizer(tokenizer: Tokenizer, max_seq_len: int) -> PreTrainedTokenizerFast:
    """Wrap a tokenizer for use with Hugging Face models.

    Args:
        tokenizer: WordPiece tokenizer with the special tokens of BERT.
        max_seq_len: Maximum number of tokens of a sequence.

    Returns:
        A Hugging Face tokenizer that gives input_ids, token_type_ids and attention_mask.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=max_seq_len,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
