"""Results of a version as the fields of its record."""

import statistics
from collections.abc import Sequence
from typing import Any

from mosaicbert.bench.documents import Workload
from mosaicbert.bench.profile import Profile
from mosaicbert.bench.records import median_and_iqr
from mosaicbert.bench.timing import NUM_WARMUP_ROUNDS, Measurement
from mosaicbert.bench.versions import Subject, Version


def make_record(
    version: Version,
    measurement: Measurement,
    *,
    what: str,
    workloads: Sequence[Workload],
    baseline: Measurement | None,
    subject: Subject | None,
    profile: Profile | None,
    peak_flops: float | None,
) -> dict[str, Any]:
    """Make the record of one version.

    Args:
        version: Version.
        measurement: Its times.
        what: Description of the benchmark.
        workloads: Documents of each round, warmup included.
        baseline: Times of the version that `ratio` refers to, or None if no version ran.
        subject: Model of the version, or None if it was not built.
        profile: Profile of one round, or None if the version did not run.
        peak_flops: Peak of the device in FLOP/s for the dtype of the version, or None if the version did not run.
    """
    timed = workloads[NUM_WARMUP_ROUNDS : NUM_WARMUP_ROUNDS + max(1, len(measurement.rounds))]
    record: dict[str, Any] = {
        "what": what,
        "by": version.name,
        "shape": {
            "tokens": round(statistics.median(workload.num_tokens for workload in timed)),
            "documents": round(statistics.median(len(workload.documents) for workload in timed)),
            "steps": max(1, len(timed[-1].steps)),
            "longest": max(int(workload.seqlens.max()) for workload in timed),
        },
        "dtype": str(version.dtype).removeprefix("torch."),
    }
    if measurement.error is not None:
        return record | {"error": measurement.error}
    assert subject is not None and baseline is not None and profile is not None and peak_flops is not None
    seconds = measurement.seconds
    median, iqr = median_and_iqr(seconds)
    pairs = list(zip(timed, seconds, strict=True))
    rate, rate_iqr = median_and_iqr([workload.num_tokens / duration for workload, duration in pairs])
    achieved_flops = statistics.median(subject.flops(workload) / duration for workload, duration in pairs)
    relative_times = [duration / other for duration, other in zip(seconds, baseline.seconds, strict=False)]
    phases = {name: statistics.median(phases[name] for phases in measurement.rounds) for name in measurement.rounds[0]}
    num_documents = statistics.median(len(workload.documents) / duration for workload, duration in pairs)
    return record | {
        "rounds": len(seconds),
        "median_us": round(1e6 * median, 1),
        "iqr_us": round(1e6 * iqr, 1),
        "ratio": round(statistics.median(relative_times), 3),
        "tokens_per_second": round(rate),
        "tokens_per_second_iqr": round(rate_iqr),
        "documents_per_second": round(num_documents, 1),
        "tflops": round(achieved_flops / 1e12, 4),
        "mfu": round(achieved_flops / peak_flops, 4),
        "phases_us": {name: round(1e6 * duration) for name, duration in phases.items()},
        **_loader_fields(timed),
        "matrix_fraction": round(profile.matrix_fraction, 3),
        "operations": {name: round(fraction, 4) for name, fraction in profile.operations.items()},
        "padding_fraction": round(1 - workloads[-1].num_tokens / profile.padded_tokens, 4),
        "peak_mib": round(profile.peak_bytes / 2**20, 1),
        "parameters": sum(weight.numel() for weight in subject.model.parameters()),
        "attention": subject.attention,
        "first_call_seconds": round(measurement.warmup_seconds[0], 2),
    }


def _loader_fields(workloads: Sequence[Workload]) -> dict[str, int]:
    seconds = [workload.loader_seconds for workload in workloads if workload.loader_seconds is not None]
    return {"loader_us": round(1e6 * statistics.median(seconds))} if seconds else {}
