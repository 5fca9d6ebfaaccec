"""Metrics: the values of a line of metrics.jsonl for each step."""

import numpy as np

from mosaicbert.report.metrics import read_metrics
from tests.data.loaders import train_loader_of


def test_every_step_logs_loss_throughput_and_mfu(finished):
    _, run, _ = finished
    steps = [line for line in read_metrics(run.metrics) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 7))
    for line in steps:
        assert np.isfinite(line["loss"])
        assert line["tokens_per_second"] > 0
        assert 0 < line["mfu"] < 1.5


def test_every_step_logs_fill_rate_masked_tokens_and_data_wait(finished):
    recipe, run, _ = finished
    lines = [line for line in read_metrics(run.metrics) if "loss" in line]
    steps = train_loader_of(recipe, 0, 1)
    assert [line["num_masked"] for line in lines] == [
        sum(int((batch.labels != -100).sum()) for batch in step.micro_batches) for step in steps
    ]
    for line, step in zip(lines, steps, strict=True):
        num_tokens = sum(int(batch.cu_seqlens[batch.num_sequences]) for batch in step.micro_batches)
        capacity = sum(len(batch.input_ids) for batch in step.micro_batches)
        assert line["fill_rate"] == round(num_tokens / capacity, 4)
        assert 0 < line["data_wait_seconds"] < line["seconds"]


def test_tokens_and_samples_are_counted_without_padding(finished):
    recipe, run, _ = finished
    lines = [line for line in read_metrics(run.metrics) if "loss" in line]
    steps = [step.micro_batches for step in train_loader_of(recipe, 0, 1)]
    tokens = np.cumsum([sum(int(batch.cu_seqlens[batch.num_sequences]) for batch in step) for step in steps])
    assert [line["tokens"] for line in lines] == tokens.tolist()
    assert [line["samples"] for line in lines] == [16 * step for step in range(1, len(steps) + 1)]


def test_a_last_line_that_a_crash_truncated_is_ignored(finished, tmp_path):
    _, run, _ = finished
    truncated = tmp_path / "metrics.jsonl"
    truncated.write_text(run.metrics.read_text() + '{"step": 7, "lo')
    assert read_metrics(truncated) == read_metrics(run.metrics)
