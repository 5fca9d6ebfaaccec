"""Recipe to trained model: the order of a run."""

import json
import warnings
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from composer import Trainer
from composer.optim import DecoupledAdamW
from composer.utils import dist
from rich.console import Console
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from mosaicbert.accounting import count_parameters
from mosaicbert.config import Recipe
from mosaicbert.data.loader import build_eval_loader, build_loader
from mosaicbert.data.prepare import check_store, prepare
from mosaicbert.data.store import StoreRecord
from mosaicbert.export.prompts import fill_masks
from mosaicbert.model.build import build_model, describe_attention
from mosaicbert.train.adapter import MaskedLmTrainee, data_spec
from mosaicbert.train.device import choose_precision, limit_cpu_threads, peak_flops, require_work_for_all
from mosaicbert.train.figure import draw_loss
from mosaicbert.train.monitor import Monitor, SeededSteps, read_metrics
from mosaicbert.train.result import export_run, summarise
from mosaicbert.train.run import RunFolder, check_run, open_run, require_same_store
from mosaicbert.train.schedule import linear_schedule


def pretrain(recipe: Recipe, console: Console) -> RunFolder:
    """Trains `recipe` to its last step and exports it; continues a run that was cut off. One call per process.

    Raises:
        ConfigError: the run folder is another recipe's, or data, tokenizer or device do not fit; nothing is started.
    """
    run = check_run(recipe)
    precision, why = choose_precision(recipe)
    if run.result.exists():
        _say(console, f"{run.path}: this run is finished.")
        _report(recipe, run, console)
        return run
    record = prepare(recipe, console) if dist.get_world_size() == 1 else check_store(recipe)
    require_work_for_all(recipe, record, dist.get_world_size())
    require_same_store(run, record)
    if dist.get_world_size() > 1 and not torch.cuda.is_available():
        limit_cpu_threads(dist.get_local_world_size())
    dist.initialize_dist("gpu" if torch.cuda.is_available() else "cpu")
    if dist.get_global_rank() == 0:
        open_run(recipe, record)
    dist.barrier()

    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model)
    peak, peak_source = peak_flops(precision)
    _introduce(recipe, record, console, f"precision: {str(precision).removeprefix('torch.')} ({why})")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _say(console, describe_attention(recipe.model, device, precision))
    _say(console, f"peak per device: {peak / 1e12:.2f} TFLOP/s ({peak_source})")
    trainer = build_trainer(recipe, run, model, precision, peak, console)
    if trainer.state.timestamp.batch.value < recipe.train.total_steps:
        trainer.fit()
    else:
        trainer.eval()  # cut off between the last checkpoint and the end
    trainer.close()
    if dist.get_global_rank() == 0:
        _finish(recipe, run, model, record, console)
    return run


def build_trainer(
    recipe: Recipe, run: RunFolder, model: PreTrainedModel, precision: torch.dtype, peak: float, console: Console
) -> Trainer:
    """Composer's trainer for `recipe`, at the newest checkpoint of `run` if it has one."""
    rank, world_size = dist.get_global_rank(), dist.get_world_size()
    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    optimizer = DecoupledAdamW(
        model.parameters(),
        lr=recipe.optimizer.peak_lr,
        betas=recipe.optimizer.betas,
        eps=recipe.optimizer.eps,
        weight_decay=recipe.optimizer.weight_decay,
    )
    schedule = partial(
        linear_schedule,
        total_steps=recipe.train.total_steps,
        warmup_steps=recipe.warmup_steps,
        final_fraction=recipe.optimizer.final_lr_fraction,
    )
    latest = run.latest_checkpoint()
    if latest is not None:
        _say(console, f"continuing from {latest}")
    with warnings.catch_warnings():
        # Composer warns that the loss is not averaged over samples, which is what we ask it for.
        warnings.filterwarnings("ignore", category=UserWarning)
        return Trainer(
            model=MaskedLmTrainee(model, cpu_autocast=precision),
            train_dataloader=data_spec(build_loader(recipe, rank, world_size), device),
            eval_dataloader=data_spec(build_eval_loader(recipe, rank, world_size), device),
            eval_interval=f"{recipe.eval.interval_steps}ba",
            max_duration=f"{recipe.train.total_steps}ba",
            optimizers=optimizer,
            schedulers=LambdaLR(optimizer, schedule),
            step_schedulers_every_batch=True,
            callbacks=[SeededSteps(recipe.seed), Monitor(recipe, run.metrics, peak, console)],
            run_name=recipe.run_name,
            progress_bar=False,
            load_path=None if latest is None else str(latest),
            save_folder=str(run.checkpoints),
            save_filename="step-{batch}-rank{rank}.pt",
            save_interval=f"{recipe.train.checkpoint_interval_steps}ba",
            save_overwrite=True,  # a step that is trained again after a crash is the same step
            device="gpu" if on_gpu else "cpu",
            precision="amp_bf16" if on_gpu and precision == torch.bfloat16 else "fp32",
            device_train_microbatch_size=1,  # of no effect: the loader has cut the micro-batches
            accumulate_train_batch_on_tokens=True,
            seed=recipe.seed,
        )


def _finish(recipe: Recipe, run: RunFolder, model: PreTrainedModel, record: StoreRecord, console: Console) -> None:
    metrics = read_metrics(run.metrics)
    draw_loss(metrics, unigram_entropy=record.unigram_entropy, title=recipe.run_name, path=run.figure)
    result = summarise(metrics, record)
    _say(console, "exporting, and comparing with the weights in memory ...")
    export_run(recipe, run, model, result)
    run.result.write_text(json.dumps(asdict(result), indent=2) + "\n")
    _report(recipe, run, console)


def _report(recipe: Recipe, run: RunFolder, console: Console) -> None:
    if dist.get_global_rank() != 0:
        return
    result: dict[str, Any] = json.loads(run.result.read_text())
    lines = {
        "held-out loss": f"{result['eval_loss']:.3f} nats, {result['eval_accuracy']:.1%} of masked tokens right",
        "unigram entropy": f"{result['unigram_entropy']:.3f} nats: all that word frequencies alone can reach",
        "trained": f"{result['tokens']:,} tokens in {result['training_seconds']:.0f} s; "
        f"micro-batches {result['fill_rate']:.1%} full, {result['data_wait_seconds']:.1f} s of waiting for data",
        "loss against time": str(run.figure),
        "Hugging Face folder": str(run.hugging_face),
    }
    for name, value in lines.items():
        _say(console, f"{name + ':':21}{value}")
    if recipe.eval.fill_mask:
        for sentence, guesses in fill_masks(run.hugging_face, recipe.eval.fill_mask):
            words = ", ".join(f"{word} {share:.0%}" for word, share in guesses)
            _say(console, f"  {sentence}\n      {words}")


def _introduce(recipe: Recipe, record: StoreRecord, console: Console, precision: str) -> None:
    train = record.splits["train"]
    epochs = recipe.train.total_steps * recipe.train.global_batch_samples / train.samples
    _say(
        console, f"run: {recipe.run_folder}  {recipe.model.architecture}, {count_parameters(recipe.model):,} parameters"
    )
    _say(
        console,
        f"data: {train.samples:,} samples of {train.tokens:,} tokens, {epochs:.2f} epochs "
        f"in {recipe.train.total_steps:,} steps, {dist.get_world_size()} process(es)",
    )
    _say(console, precision)


def _say(console: Console, line: str) -> None:
    if dist.get_global_rank() == 0:
        console.print(line, highlight=False, soft_wrap=True)
