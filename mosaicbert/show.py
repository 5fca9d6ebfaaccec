"""What a run would do, said without starting anything."""

from rich.console import Console
from rich.table import Table

from mosaicbert.accounting import ACCELERATORS, plan
from mosaicbert.config import Recipe, SourceConfig

_ASSUMED_MFU = 0.30  # what MosaicBERT's own run reached on A100s


_SAMPLING = {"truncate": "the beginnings of texts", "chunk": "whole texts in pieces"}


def show(recipe: Recipe, console: Console) -> None:
    """Prints the size, the work, the memory, the time and the price of `recipe`."""
    expected = plan(recipe)
    model, data, train = recipe.model, recipe.data, recipe.train
    rows = {
        "run": f"{recipe.run_name}, into {recipe.run_folder}",
        "model": f"{model.architecture}, {expected.parameters:,} parameters: {model.num_hidden_layers} layers of "
        f"{model.hidden_size}, {model.num_attention_heads} heads of {model.head_dim}, vocabulary {model.vocab_size:,}",
        "data": f"{', '.join(map(_describe, data.sources.values()))}; token store {recipe.store_folder}",
        "samples": f"{_SAMPLING[data.sampling]}, up to {data.max_seq_len} tokens each, {data.mask_rate:.0%}"
        f"{'' if data.final_mask_rate is None else f' falling to {data.final_mask_rate:.0%}'} of them masked",
        "tokenizer": "trained on the corpus" if recipe.tokenizer.source == "train" else recipe.tokenizer.source,
        "training": f"{expected.samples:,} samples in {expected.steps:,} steps of {train.global_batch_samples:,}; "
        f"at most {expected.tokens:,} tokens",
        "learning rate": f"{recipe.optimizer.peak_lr:g} after {recipe.warmup_steps:,} steps, then linearly to "
        f"{recipe.optimizer.peak_lr * recipe.optimizer.final_lr_fraction:g}",
        "work": f"{expected.flops:.3g} FLOP, {expected.flops / expected.tokens / 1e6:,.0f} MFLOP per token",
        "memory": f"about {expected.memory_bytes / 2**30:.1f} GiB per device, "
        f"micro-batches of {train.micro_batch_tokens:,} tokens, {train.precision}",
    }
    for name, value in rows.items():
        console.print(f"{name + ':':15}{value}", highlight=False, soft_wrap=True)
    table = Table("device", "device-hours", "hours on 8", "dollars per device-hour", "dollars")
    for accelerator in ACCELERATORS:
        hours = expected.flops / (accelerator.peak_flops * _ASSUMED_MFU) / 3600
        table.add_row(
            accelerator.name,
            f"{hours:,.2f}",
            f"{hours / 8:,.2f}",
            f"{accelerator.dollars_per_hour:.2f}",
            f"{hours * accelerator.dollars_per_hour:,.2f}",
        )
    console.print(table)
    console.print(
        f"At {_ASSUMED_MFU:.0%} of the bf16 peak, every sample full. Prices are assumptions: mosaicbert/accounting.py.",
        highlight=False,
        soft_wrap=True,
    )


def _describe(source: SourceConfig) -> str:
    subset = "" if source.subset is None else f" ({source.subset})"
    return f"{source.path}{subset}{'' if source.weight is None else f', weight {source.weight:g}'}"
