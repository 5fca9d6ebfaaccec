"""Command `show`: parameters, FLOPs, memory, time and cost of a run before it starts."""

from rich.console import Console
from rich.table import Table

from mosaicbert.config import OptimizerConfig, Recipe, SourceConfig, TrainConfig
from mosaicbert.console import print_line
from mosaicbert.estimate import ACCELERATORS, Estimate, estimate
from mosaicbert.train_plan import TrainPlan

_ASSUMED_MFU = 0.30  # measured by the paper on A100s

_SAMPLING = {"truncate": "first tokens of each text", "chunk": "each text in chunks"}


def show(recipe: Recipe, console: Console) -> None:
    """Print the parameters, FLOPs, memory, time and cost of a run."""
    model, data, train = recipe.model, recipe.data, recipe.train
    plan = TrainPlan(data, train, tokens_per_sample=data.max_seq_len)
    expected = estimate(recipe, plan.num_samples)
    rows = {
        "run": f"{recipe.run_name}, in {recipe.run_folder}",
        "model": f"{model.architecture}, {expected.num_parameters:,} parameters: {model.num_hidden_layers} layers of "
        f"{model.hidden_size}, {model.num_attention_heads} heads of {model.head_dim}, vocabulary {model.vocab_size:,}",
        "data": f"{', '.join(map(_describe, data.sources.values()))}; token store {recipe.store_folder}",
        "samples": f"{_SAMPLING[data.sampling]}, up to {data.max_seq_len} tokens each, {data.mask_rate:.0%}"
        f"{'' if data.final_mask_rate is None else f' changing to {data.final_mask_rate:.0%}'} of them masked",
        "tokenizer": "trained on the corpus" if recipe.tokenizer.source == "train" else recipe.tokenizer.source,
        "training": _describe_length(train, plan, expected),
        "optimizer": f"{recipe.optimizer.name}, {_describe_schedule(recipe.optimizer)}",
        "compute": f"{expected.flops_per_token / 1e6:,.0f} MFLOPs per token"
        f"{'' if expected.flops is None else f', {expected.flops:.3g} FLOPs in total'}",
        "memory": f"about {expected.memory_bytes / 2**30:.1f} GiB per device"
        f"{', less with several devices, which shard weights and optimizer' if train.sharding == 'fsdp' else ''}; "
        f"micro-batches of {train.micro_batch_tokens:,} tokens, {train.precision}",
    }
    for name, value in rows.items():
        print_line(console, f"{name + ':':15}{value}")
    console.print(_device_table(recipe, expected))
    print_line(
        console,
        f"Assumed: {_ASSUMED_MFU:.0%} of the bf16 peak, samples of maximum length, prices in mosaicbert/estimate.py.",
    )


def _device_table(recipe: Recipe, expected: Estimate) -> Table:
    if expected.flops is None:
        hours = recipe.train.length.amount / 3600
        table = Table("device", "tokens on 1", "tokens on 8", "dollars per device-hour", "dollars for 1")
        for device in ACCELERATORS:
            tokens = hours * 3600 * device.peak_flops * _ASSUMED_MFU / expected.flops_per_token
            prices = f"{device.dollars_per_hour:.2f}", f"{hours * device.dollars_per_hour:,.2f}"
            table.add_row(device.name, f"{tokens:,.2g}", f"{8 * tokens:,.2g}", *prices)
        return table
    table = Table("device", "device-hours", "hours on 8", "dollars per device-hour", "dollars")
    for device in ACCELERATORS:
        hours = expected.flops / (device.peak_flops * _ASSUMED_MFU) / 3600
        prices = f"{device.dollars_per_hour:.2f}", f"{hours * device.dollars_per_hour:,.2f}"
        table.add_row(device.name, f"{hours:,.2f}", f"{hours / 8:,.2f}", *prices)
    return table


def _describe_length(train: TrainConfig, plan: TrainPlan, expected: Estimate) -> str:
    batch_samples = f"{train.global_batch_samples:,}"
    if train.initial_batch_samples is not None:
        batch_samples = (
            f"{train.initial_batch_samples:,}, growing to {batch_samples} over {train.batch_warmup_tokens:,} tokens"
        )
    if plan.num_steps is None:
        return f"{train.duration}, in steps of {batch_samples} samples"
    return (
        f"{train.duration}: {plan.num_samples:,} samples in {plan.num_steps:,} steps of {batch_samples}; "
        f"at most {expected.num_tokens:,} tokens"
    )


def _describe_schedule(optimizer: OptimizerConfig) -> str:
    warmup = f"warmup to {optimizer.peak_lr:g} in {optimizer.warmup_fraction:.0%} of the run"
    final_lr = f"{optimizer.peak_lr * optimizer.final_lr_fraction:g}"
    if optimizer.schedule == "linear":
        return f"{warmup}, then linear decay to {final_lr}"
    return f"{warmup}, then constant, decay to {final_lr} in the last {optimizer.decay_fraction:.0%}"


def _describe(source: SourceConfig) -> str:
    subset = "" if source.subset is None else f" ({source.subset})"
    return f"{source.path}{subset}{'' if source.weight is None else f', weight {source.weight:g}'}"
