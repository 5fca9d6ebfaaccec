"""Command `bench`: a recipe's training step or embeddings against those of Hugging Face's BERT and ModernBERT."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mosaicbert.bench.documents import Workload, read_embedding_workloads, read_workloads
from mosaicbert.bench.inference import embedding_versions
from mosaicbert.bench.plots import draw_comparison
from mosaicbert.bench.profile import Profile, profile_call
from mosaicbert.bench.records import append_records, benchmark_environment
from mosaicbert.bench.results import make_record
from mosaicbert.bench.table import TABLE_LEGEND, format_table, summarize_comparison
from mosaicbert.bench.timing import (
    NUM_WARMUP_ROUNDS,
    PhaseClock,
    TimeLimitExceeded,
    describe_error,
    measure_in_turn,
    time_limit,
)
from mosaicbert.bench.training import training_versions
from mosaicbert.bench.versions import Subject, Version
from mosaicbert.config import ConfigError, Recipe
from mosaicbert.console import print_line
from mosaicbert.data.prepare.pipeline import prepare
from mosaicbert.train.compile import choose_compilation
from mosaicbert.train.device import PRECISIONS, choose_precision, peak_flops
from mosaicbert.train.measure.precision import measure_precisions
from mosaicbert.train.resolve import resolve_precision
from mosaicbert.train.run_folder import RunFolder

_MIN_STEPS = 3  # for an interquartile range
_CLEARLY_SLOW_RATIO = 4.0  # time of a step in a precision relative to the other, above which it is not measured


def bench(
    recipe: Recipe,
    console: Console,
    *,
    num_steps: int,
    seconds: float,
    output: Path | None,
    embedding_batch: int | None,
) -> None:
    """Measure MosaicBERT, Hugging Face's BERT and ModernBERT in turn on the same documents of a recipe.

    The token store is prepared if it is missing. The table is printed, records are appended to training_step.jsonl or
    embeddings.jsonl, and a bar chart is written next to them.

    Args:
        recipe: Recipe of a pretraining run.
        console: Console to print to.
        num_steps: Number of timed rounds of each version.
        seconds: Approximate total time in seconds, without the preparation of the store.
        output: Folder of the records and the chart, or None for the folder `bench` in the run folder.
        embedding_batch: Documents of a batch to measure embeddings, None to measure training steps.

    Raises:
        ConfigError: If an argument is invalid, the recipe does not train MosaicBERT, or the store cannot be prepared.
    """
    _check(recipe, num_steps, seconds, embedding_batch)
    recipe, _ = resolve_precision(recipe, RunFolder(recipe.run_folder))
    dtype, _ = choose_precision(recipe.train.precision)
    compilation = choose_compilation(recipe.model, recipe.train, dtype)
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    record = prepare(recipe, console)
    num_rounds = NUM_WARMUP_ROUNDS + num_steps
    if embedding_batch is not None:
        name, workloads = "embeddings", read_embedding_workloads(recipe, record, num_rounds)
        versions = embedding_versions(recipe, dtype, device_type, embedding_batch)
    else:
        name, workloads = "training_step", read_workloads(recipe, record, num_rounds)
        versions = training_versions(recipe, dtype, compilation, device_type)
    if device_type == "cpu":
        versions = _drop_slow_precision(versions, recipe, dtype, console)
    print_line(console, f"{len(versions)} versions, at most {num_rounds} rounds and about {seconds:.0f} s ...")
    what = f"{name.replace('_', ' ')}, {recipe.run_name}"
    if embedding_batch is not None:
        what += f", batches of {embedding_batch}"
    records = _measure(versions, workloads, what, seconds, device_type)
    folder = recipe.run_folder / "bench" if output is None else output
    _report(versions, records, folder, name, recipe, console, device_type)


def _check(recipe: Recipe, num_steps: int, seconds: float, embedding_batch: int | None) -> None:
    if embedding_batch is not None and embedding_batch < 1:
        raise ConfigError(f"`--embeddings` must be at least 1, got {embedding_batch}. Set e.g. 32.")
    if num_steps < _MIN_STEPS:
        raise ConfigError(f"`--steps` must be at least {_MIN_STEPS}, got {num_steps}. Raise it.")
    if not seconds > 0:
        raise ConfigError(f"`--seconds` must be positive, got {seconds:g}. Raise it.")
    if recipe.model.architecture != "mosaicbert":
        raise ConfigError(
            f"`model.architecture` must be mosaicbert for a benchmark, got {recipe.model.architecture}. "
            "Set `model.architecture=mosaicbert`: Hugging Face's BERT is measured too."
        )


def _measure(
    versions: Sequence[Version],
    workloads: Sequence[Workload],
    what: str,
    seconds: float,
    device_type: str,
) -> list[dict[str, Any]]:
    subjects: dict[str, Subject] = {}

    def make_call(version: Version) -> Callable[[int, PhaseClock], None]:
        def call(index: int, clock: PhaseClock) -> None:
            if version.name not in subjects:
                subjects[version.name] = version.start()
            subjects[version.name].call(workloads[index], clock)

        return call

    measurements = measure_in_turn(
        {version.name: make_call(version) for version in versions},
        num_rounds=len(workloads) - NUM_WARMUP_ROUNDS,
        seconds=seconds,
        device_type=device_type,
        alternatives={version.name: version.group for version in versions},
        compiled={version.name: _find_uncompiled(version, versions) for version in versions if version.is_compiled},
    )
    profiles: dict[str, Profile] = {}
    for version_name, measurement in measurements.items():
        if measurement.error is None:
            try:
                with time_limit(seconds):
                    profiles[version_name] = profile_call(subjects[version_name], workloads[-1])
            except (Exception, TimeLimitExceeded) as error:  # any failure of a version is its result
                measurement.error = describe_error(error)
    baseline = next((measurement for measurement in measurements.values() if measurement.error is None), None)
    measured_dtypes = {version.dtype for version in versions if measurements[version.name].error is None}
    peaks = {dtype: peak_flops(dtype)[0] for dtype in measured_dtypes}
    return [
        make_record(
            version,
            measurements[version.name],
            what=what,
            workloads=workloads,
            baseline=baseline,
            subject=subjects.get(version.name),
            profile=profiles.get(version.name),
            peak_flops=peaks.get(version.dtype),
        )
        for version in versions
    ]


def _drop_slow_precision(
    versions: Sequence[Version], recipe: Recipe, dtype: torch.dtype, console: Console
) -> list[Version]:
    """Return the versions without the other precision, if this CPU is clearly slower in it. They would take hours."""
    seconds = measure_precisions(recipe)
    fastest = min(seconds.values())
    slow = {
        name: value / fastest
        for name, value in seconds.items()
        if PRECISIONS[name] != dtype and value > _CLEARLY_SLOW_RATIO * fastest
    }
    for name, ratio in slow.items():
        print_line(console, f"{name} is not measured: a step of the recipe takes {ratio:.1f} times as long")
    return [version for version in versions if version.precision not in slow]


def _find_uncompiled(compiled: Version, versions: Sequence[Version]) -> str | None:
    """Return the name of the uncompiled version of the same model and dtype."""
    model = compiled.family, compiled.dtype
    names = [
        version.name for version in versions if not version.is_compiled and (version.family, version.dtype) == model
    ]
    return names[0] if names else None


def _report(
    versions: Sequence[Version],
    records: Sequence[dict[str, Any]],
    folder: Path,
    name: str,
    recipe: Recipe,
    console: Console,
    device_type: str,
) -> None:
    environment, shape, model = benchmark_environment(device_type), records[0]["shape"], recipe.model
    headlines = [
        f"{records[0]['what']}: {model.num_hidden_layers} layers of {model.hidden_size}, "
        f"vocabulary {model.vocab_size:,}",
        f"{shape['documents']:,} documents of up to {shape['longest']} tokens, {shape['tokens']:,} tokens per round",
        f"{environment['device']}, {environment['num_cores']} cores, torch {environment['torch']}",
    ]
    print_line(console, "\n".join(headlines))
    print_line(console, format_table(records))
    print_line(console, TABLE_LEGEND)
    loader_us = next((record["loader_us"] for record in records if "loader_us" in record), None)
    if loader_us is not None:
        print_line(console, f"loader: {loader_us / 1e3:.1f} ms per step in one process, not part of the times above")
    for line in summarize_comparison(versions, records):
        print_line(console, line)
    folder.mkdir(parents=True, exist_ok=True)
    append_records(folder / f"{name}.jsonl", records, device_type)
    print_line(console, f"records: {folder / name}.jsonl")
    if any("error" not in record for record in records):
        draw_comparison(records, "\n".join(headlines), folder / f"{name}.png")
        print_line(console, f"chart: {folder / name}.png")
