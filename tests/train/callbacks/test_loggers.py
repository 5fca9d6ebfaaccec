"""Loggers: TensorBoard and Weights & Biases have the values of metrics.jsonl."""

import importlib.util
import json
import struct

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mosaicbert.report.metrics import read_metrics
from tests.recipes import tiny_recipe
from tests.train.running import train_here

_HAS_WANDB = importlib.util.find_spec("wandb") is not None
_FP32_TOLERANCE = 1e-6  # TensorBoard stores fp32 values


@pytest.fixture(scope="module")
def logged(source, tmp_path_factory):
    """Return the folder of a run with all installed loggers."""
    folder = tmp_path_factory.mktemp("logged")
    loggers = ["tensorboard", *["wandb"] * _HAS_WANDB]
    recipe = tiny_recipe(
        folder,
        source,
        train={"duration": "5 steps"},
        log={"loggers": loggers, "interval_steps": 2},
        checkpoint={"interval": "100 steps"},
        eval={"interval": "2 steps"},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("WANDB_CONFIG_DIR", str(folder / "config"))
        patch.setenv("WANDB_CACHE_DIR", str(folder / "cache"))
        patch.chdir(folder)
        return train_here(recipe)


def _lines(run, key):
    return {line["step"]: line for line in read_metrics(run.metrics) if key in line}


def _events(run):
    events = EventAccumulator(str(run.path / "tensorboard" / "tiny"), size_guidance={"scalars": 0})
    events.Reload()
    return events


def _curve(run, name):
    return [(event.step, event.value) for event in _events(run).Scalars(name)]


def test_tensorboard_has_every_value_of_the_metrics(logged):
    steps = _lines(logged, "loss")
    assert list(steps) == [1, 2, 4, 5]
    names = {name for name, value in steps[5].items() if value is not None}
    assert {f"train/{name}" for name in names} <= set(_events(logged).Tags()["scalars"])
    for name in names:
        values = [value for _, value in _curve(logged, f"train/{name}")]
        assert values == pytest.approx([line[name] for line in steps.values()], rel=_FP32_TOLERANCE), name


def test_tensorboard_has_the_evaluations(logged):
    evaluations = _lines(logged, "eval_loss")
    assert list(evaluations) == [2, 4, 5]
    for name in ("loss", "accuracy"):
        values = [value for _, value in _curve(logged, f"eval/{name}")]
        expected = [line[f"eval_{name}"] for line in evaluations.values()]
        assert values == pytest.approx(expected, rel=_FP32_TOLERANCE)


def test_tensorboard_and_the_metrics_have_the_same_steps(logged):
    assert [step for step, _ in _curve(logged, "train/loss")] == list(_lines(logged, "loss"))
    assert [step for step, _ in _curve(logged, "eval/loss")] == list(_lines(logged, "eval_loss"))


def _wandb_records(path):
    """Yield the records of an offline run: a LevelDB log in blocks of 32 KiB, after a header of 7 bytes."""
    content, offset, record = path.read_bytes(), 7, b""
    while offset + 7 <= len(content):
        if 32768 - offset % 32768 < 7:  # the end of a block is empty if it is too short for a header
            offset += 32768 - offset % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, offset + 4)
        record += content[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # a complete record, or the last fragment of one
            yield record
            record = b""


def _wandb_history(run):
    from wandb.proto.wandb_internal_pb2 import Record  # imported here because wandb is an optional dependency

    (path,) = (run.path / "wandb").glob("offline-run-*/run-*.wandb")
    records = [Record.FromString(content) for content in _wandb_records(path)]
    wandb_run = next(record.run for record in records if record.HasField("run"))
    history = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    return wandb_run, history


@pytest.mark.skipif(not _HAS_WANDB, reason="wandb is not installed")
def test_wandb_has_every_loss_of_the_metrics(logged):
    wandb_run, history = _wandb_history(logged)
    assert (wandb_run.project, wandb_run.display_name) == ("mosaicbert", "tiny")
    for name, key in (("train/loss", "loss"), ("eval/loss", "eval_loss")):
        values = {entry["_step"]: entry[name] for entry in history if name in entry}
        assert list(values.values()) == [line[key] for line in _lines(logged, key).values()]
        assert list(values) == list(_lines(logged, key))


@pytest.mark.skipif(not _HAS_WANDB, reason="wandb is not installed")
def test_wandb_writes_only_into_the_run_folder(logged):
    assert any((logged.path / "wandb").iterdir())
    assert not (logged.path.parent / "wandb").exists()


@pytest.mark.skipif(not _HAS_WANDB, reason="wandb is not installed")
def test_a_resumed_run_has_the_same_wandb_id(logged):
    wandb_run, _ = _wandb_history(logged)
    started = json.loads(logged.environment.read_text())["started"]
    digits, digits_of_id = ("".join(filter(str.isdigit, text)) for text in (started, wandb_run.run_id))
    assert wandb_run.run_id.startswith("tiny-")
    assert digits in digits_of_id
