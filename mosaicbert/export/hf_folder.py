"""A trained model to a Hugging Face folder: weights, configuration, tokenizer, card, code; and proof that it loads."""

import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mosaicbert.config import Recipe
from mosaicbert.config.load import save_recipe
from mosaicbert.export.model_card import format_model_card
from mosaicbert.export.parity import check_parity
from mosaicbert.export.remote_code import AUTO_MAP, write_remote_code
from mosaicbert.filesystem import atomic_path, partial_path, replace_folder


def export_folder(
    model: PreTrainedModel, tokenizer: Tokenizer, recipe: Recipe, result: dict[str, Any], folder: Path
) -> None:
    """Writes `folder`, replacing an older export, once a copy of it has passed the parity gate.

    Args:
        model: on the CPU, in evaluation mode.
        tokenizer: what it was trained with.
        recipe: what it was trained by.
        result: what it reached, see the card.
        folder: to write.

    Raises:
        ParityError: the export does not give the model's logits; `folder` is left as it was.
    """
    partial = partial_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_recipe(recipe, partial / "recipe.yaml")
    wrap_tokenizer(tokenizer, recipe.data.max_seq_len).save_pretrained(partial)
    (partial / "README.md").write_text(format_model_card(recipe, result, (partial / "recipe.yaml").read_text()))
    modes = ("package",)
    if recipe.model.architecture == "mosaicbert":
        model.config.auto_map = AUTO_MAP
        write_remote_code(partial)
        modes = ("package", "remote_code")
    model.save_pretrained(partial)
    check_parity(model, partial, modes)
    replace_folder(partial, folder)


def publish(parent: Path, newest: Path) -> None:
    """Shows the files of `newest`, a folder in `parent`, in `parent` itself, all at once: by links through one link."""
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
    """The tokenizer as Hugging Face's models take it."""
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
