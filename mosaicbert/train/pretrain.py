"""Recipe to trained model: the order of a run."""

import json
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import torch
from rich.console import Console

from mosaicbert.config import Duration, Recipe, TrainingFault, parse_duration
from mosaicbert.data.loading.collator import TrainDataset
from mosaicbert.data.loading.loader import build_eval_loader, build_train_loader, plan_run
from mosaicbert.data.prepare.pipeline import check_store, prepare
from mosaicbert.data.prepare.sources import TRAIN
from mosaicbert.data.store import StoreRecord, write_file
from mosaicbert.estimate import count_parameters
from mosaicbert.export.fill_mask import fill_masks
from mosaicbert.filesystem import lock
from mosaicbert.model.factory import build_model, describe_attention, describe_fusion
from mosaicbert.report.metrics import read_metrics
from mosaicbert.report.plots import draw_loss
from mosaicbert.train.callbacks.checkpointer import Checkpointer, find_restart, require_room, restore, roll_back
from mosaicbert.train.callbacks.loggers import build_loggers, require_loggers
from mosaicbert.train.callbacks.metrics import Monitor, SeededSteps
from mosaicbert.train.checkpoint.export_worker import Exporter
from mosaicbert.train.checkpoint.format import list_checkpoints, read_state, step_of
from mosaicbert.train.compile import GRAPHED_ATTENTION, choose_compilation, compile_model
from mosaicbert.train.composer import Event, State, dist
from mosaicbert.train.composer_model import MaskedLmTrainee, data_spec
from mosaicbert.train.device import choose_precision, limit_cpu_threads, peak_flops, release_memory
from mosaicbert.train.distributed import prepare_sharded, sharding_config
from mosaicbert.train.faults.log import FaultLog, SkippedSteps
from mosaicbert.train.faults.spike_detector import Guard, RollBack
from mosaicbert.train.optimizers import build_optimizer
from mosaicbert.train.processes import require_work_for_all
from mosaicbert.train.progress import Clock, Course
from mosaicbert.train.results import summarise
from mosaicbert.train.run_folder import RunFolder, check_run, open_run, require_same_store
from mosaicbert.train.signals import Stopped, StopRequest
from mosaicbert.train.trainer import StepTrainer
from mosaicbert.train_plan import has_passed

_PATIENCE_SECONDS = 1800.0  # of a rank for another, which may be writing a large checkpoint to a slow disk
_WITHOUT_END = "1000000000ba"  # the course says when the run ends
Say = Callable[[str], None]


def pretrain(recipe: Recipe, console: Console, command: str = "the same call") -> RunFolder:
    """Trains `recipe` to its end and exports it; continues a run that was cut off. One call per process.

    Asked to stop by SIGTERM or SIGINT, it finishes the step, writes a checkpoint and returns.

    Args:
        recipe: to train.
        console: to print to; only rank 0 does.
        command: that continues the run if it is stopped, as it is said then.

    Raises:
        ConfigError: the run folder is another recipe's or in use, or data, tokenizer or device do not fit; nothing is
            started.
        TrainingFault: the numbers go wrong again and again, or the result cannot be exported.
    """
    run = check_run(recipe)
    require_loggers(recipe)
    precision, why = choose_precision(recipe.train.precision)
    say = partial(_say, console)
    if run.result.exists():
        say(f"{run.path}: this run is finished.")
        _report(recipe, run, say)
        return run
    record = prepare(recipe, console) if dist.get_world_size() == 1 else check_store(recipe)
    require_work_for_all(recipe, record, dist.get_world_size())
    require_same_store(run, record)
    if dist.get_world_size() > 1 and not torch.cuda.is_available():
        limit_cpu_threads(dist.get_local_world_size())
    dist.initialize_dist(_composer_device(), timeout=_PATIENCE_SECONDS)
    with ExitStack() as held:
        exporter = None
        if dist.get_global_rank() == 0:
            open_run(recipe, record)
            held.enter_context(lock(run.path, f"{run.path}: another process is training this run; wait, or stop it."))
            require_room(run, count_parameters(recipe.model), recipe.checkpoint.keep_last)
            exporter = Exporter(run, say)
        dist.barrier()
        peak, peak_source = peak_flops(precision)
        _introduce(recipe, record, say)
        say(f"precision: {str(precision).removeprefix('torch.')} ({why})")
        place, compilation = "cuda" if torch.cuda.is_available() else "cpu", choose_compilation(recipe)
        rung = GRAPHED_ATTENTION if compilation.has_graphs else "auto"
        say(describe_attention(recipe.model, place, precision, rung))
        say(str(compilation))
        say(describe_fusion(place))
        say(f"peak per device: {peak / 1e12:.2f} TFLOP/s ({peak_source})")
        with StopRequest() as stop:
            sitting = Sitting(recipe, run, precision, peak, stop, Clock(), exporter, console)
            try:
                train(sitting, say)
            except Stopped as stopped:
                if exporter is not None:
                    exporter.stop()
                end = "with a checkpoint" if stopped.has_checkpoint else "without a checkpoint of the last steps"
                say(f"stopped by {stop.signal or 'another process'}, {end}; to continue: {command}")
                return run
        if exporter is not None:
            _finish(recipe, run, exporter, record, say)
    return run


@dataclass(frozen=True)
class Sitting:
    """What a run has at hand from its start, or from a continuation, to its end.

    Attributes:
        recipe: to train.
        run: its folder.
        precision: dtype of matrix products.
        peak: of one process' device, FLOP/s.
        stop: what this process was asked.
        clock: of this process, which goes on while the run goes back.
        exporter: of checkpoints; None on all ranks but the first.
        console: to print to.
    """

    recipe: Recipe
    run: RunFolder
    precision: torch.dtype
    peak: float
    stop: StopRequest
    clock: Clock
    exporter: Exporter | None
    console: Console


def train(sitting: Sitting, say: Say) -> None:
    """Trains to the end of the run, going back to a checkpoint where the numbers demand it."""
    while True:
        trainer = build_trainer(sitting, say)
        try:
            if not trainer.course.is_done:
                trainer.fit()
            trainer.close()
            return
        except Stopped:
            trainer.close()
            raise
        except RollBack as cause:
            trainer.close()
            _go_back(sitting, trainer, cause, say)
        del trainer
        release_memory()


def _go_back(sitting: Sitting, trainer: StepTrainer, cause: RollBack, say: Say) -> None:
    faults = FaultLog(sitting.run.faults)
    limit = sitting.recipe.faults.max_rollbacks
    if len(faults.rollbacks()) >= limit:
        raise TrainingFault(
            f"{sitting.run.path}: step {cause.step}: {cause.reason}, after going back {limit} times "
            "(faults.max_rollbacks). Lower optimizer.peak_lr or lengthen optimizer.warmup_fraction under another "
            f"run_name, or look at the samples in {sitting.run.faults}."
        )
    dist.barrier()  # all have counted before one more is noted
    if dist.get_global_rank() == 0:
        samples_of = trainer.steps.samples_of
        fault = roll_back(sitting.run, faults, cause, sitting.recipe.faults.window_steps, samples_of)
        say(
            f"step {cause.step}: {cause.reason}. Going back to step {fault.resumed_step}, "
            f"leaving out {len(cause.batches)} batch(es); see {sitting.run.faults}."
        )
    dist.barrier()


def build_trainer(sitting: Sitting, say: Say) -> StepTrainer:
    """Composer's trainer for a recipe, at the newest checkpoint of its run that is whole. All ranks call it."""
    recipe, run = sitting.recipe, sitting.run
    rank, world_size = dist.get_global_rank(), dist.get_world_size()
    faults = FaultLog(run.faults)
    restart, checkpoint = find_restart(run, faults, sitting.exporter, say)
    if sitting.exporter is not None:
        sitting.exporter.follow()  # what the last sitting left
    if restart.path is not None:
        say(f"continuing from {restart.path}")
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model)
    compilation = choose_compilation(recipe)
    if compilation.is_on:
        compile_model(model, graphs=compilation.has_graphs)
    trainee = MaskedLmTrainee(model, cpu_autocast=sitting.precision)
    is_sharded = recipe.train.sharding == "fsdp" and world_size > 1
    eval_interval = parse_duration("eval.interval", recipe.eval.interval)
    course = Course(
        plan_run(recipe),
        Guard(recipe.faults),
        recipe.optimizer,
        recipe.log.interval_steps,
        [eval_interval, parse_duration("checkpoint.interval", recipe.checkpoint.interval)],
    )
    clock = sitting.clock
    train_loader = build_train_loader(recipe, rank, world_size, first_step=restart.step, skipped=restart.skipped)
    steps = cast(TrainDataset, train_loader.dataset)
    callbacks = [
        SeededSteps(recipe.seed),
        Monitor(recipe, run.metrics, course, clock, len(faults.rollbacks()), sitting.peak, sitting.console),
        Checkpointer(recipe.checkpoint, run, course, model, faults, sitting.exporter, say),
    ]
    device, on_gpu = _composer_device(), torch.cuda.is_available()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)
        trainer = StepTrainer(
            course=course,
            clock=clock,
            stop=sitting.stop,
            steps=steps,
            skipped=SkippedSteps(faults, steps.samples_of),
            trainee=trainee,
            keeps_gradients=compilation.has_graphs,
            train_dataloader=data_spec(train_loader, "cuda" if on_gpu else "cpu"),
            eval_dataloader=data_spec(build_eval_loader(recipe, rank, world_size), "cuda" if on_gpu else "cpu"),
            eval_interval=partial(_is_evaluated, course, eval_interval),
            max_duration=_WITHOUT_END,
            optimizers=build_optimizer(model, recipe.optimizer, "cuda" if on_gpu else "cpu"),
            callbacks=callbacks,
            loggers=build_loggers(recipe, run),
            run_name=recipe.run_name,
            progress_bar=False,
            spin_dataloaders=False,
            device=device,
            precision="amp_bf16" if on_gpu and sitting.precision == torch.bfloat16 else "fp32",
            device_train_microbatch_size=1,  # of no effect: the loader has cut the micro-batches
            seed=recipe.seed,
            parallelism_config=sharding_config(model) if is_sharded else None,
        )
    if is_sharded:
        prepare_sharded(model)
    restore(trainer, restart, checkpoint)
    return trainer


def _is_evaluated(course: Course, interval: Duration, _state: State, event: Event) -> bool:
    is_settled = event == Event.BATCH_END and course.is_settled
    return is_settled and (course.is_done or has_passed(interval, course.before, course.position))


def _composer_device() -> str:
    return "gpu" if torch.cuda.is_available() else "cpu"


def _finish(recipe: Recipe, run: RunFolder, exporter: Exporter, record: StoreRecord, say: Say) -> None:
    newest = list_checkpoints(run.checkpoints)[-1:]
    state = read_state(newest[0]) if newest else {}
    if not state.get("is_done"):
        raise TrainingFault(f"{run.path}: the last checkpoint could not be written; make room, and run again.")
    say("exporting, and comparing with the weights of the checkpoint ...")
    exporter.finish()
    step = step_of(newest[0])
    if step in exporter.failures:
        raise TrainingFault(f"{run.path}: the result could not be exported: {exporter.failures[step]}")
    metrics = read_metrics(run.metrics)
    draw_loss(metrics, unigram_entropy=record.unigram_entropy, title=recipe.run_name, path=run.figure)
    result = summarise(metrics, state, record)
    write_file(run.result, (json.dumps(asdict(result), indent=2) + "\n").encode())
    _report(recipe, run, say)


def _report(recipe: Recipe, run: RunFolder, say: Say) -> None:
    if dist.get_global_rank() != 0:
        return
    result: dict[str, Any] = json.loads(run.result.read_text())
    lines = {
        "held-out loss": "not measured"
        if result["eval_loss"] is None
        else f"{result['eval_loss']:.3f} nats, {result['eval_accuracy']:.1%} of masked tokens right",
        "unigram entropy": f"{result['unigram_entropy']:.3f} nats: all that word frequencies alone can reach",
        "trained": f"{result['tokens']:,} tokens in {result['training_seconds']:.0f} s; "
        f"micro-batches {result['fill_rate'] or 0:.1%} full, {result['data_wait_seconds']:.1f} s of waiting for data",
        "loss against time": str(run.figure),
        "Hugging Face folder": str(run.hugging_face),
    }
    if result["skipped_steps"] or result["rollbacks"]:
        lines["faults"] = (
            f"{result['skipped_steps']} steps skipped, {result['rollbacks']} times gone back: {run.faults}"
        )
    if recipe.train.length.unit == "seconds":
        lines["the same elsewhere"] = f"train.duration='{result['steps']} steps', on a machine of another speed"
    for name, value in lines.items():
        say(f"{name + ':':21}{value}")
    if recipe.eval.fill_mask:
        for sentence, guesses in fill_masks(run.hugging_face, recipe.eval.fill_mask):
            words = ", ".join(f"{word} {share:.0%}" for word, share in guesses)
            say(f"  {sentence}\n      {words}")


def _introduce(recipe: Recipe, record: StoreRecord, say: Say) -> None:
    train = record.splits[TRAIN]
    say(f"run: {recipe.run_folder}  {recipe.model.architecture}, {count_parameters(recipe.model):,} parameters")
    plan = plan_run(recipe)
    length = recipe.train.duration
    if plan.num_steps is not None:
        epochs = plan.first_sample(plan.num_steps) / train.samples
        length = f"{epochs:.2f} epochs in {plan.num_steps:,} steps"
    say(f"data: {train.samples:,} samples of {train.tokens:,} tokens, {length}, {dist.get_world_size()} process(es)")


def _say(console: Console, line: str) -> None:
    if dist.get_global_rank() == 0:
        console.print(line, highlight=False, soft_wrap=True)
