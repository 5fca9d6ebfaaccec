import importlib.util
import json
import struct
import sys

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mosaicbert.config import ConfigError
from mosaicbert.report.metrics import read_metrics
from mosaicbert.train.resolve import check_loggers
from tests.recipes import tiny_recipe
from tests.train.running import pretrain_here

_WANDB_IS_THERE = importlib.util.find_spec("wandb") is not None
_EXACT_IN_FP32 = 1e-6  # TensorBoard keeps single precision


@pytest.fixture(scope="module")
def logged(source, tmp_path_factory):
    """A run that was logged to all that is installed."""
    folder = tmp_path_factory.mktemp("logged")
    loggers = ["tensorboard", *["wandb"] * _WANDB_IS_THERE]
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
        return pretrain_here(recipe, Console(quiet=True))


def _lines(run, key):
    return {line["step"]: line for line in read_metrics(run.metrics) if key in line}


def _events(run):
    events = EventAccumulator(str(run.path / "tensorboard" / "tiny"), size_guidance={"scalars": 0})
    events.Reload()
    return events


def _curve(run, name):
    return [(event.step, event.value) for event in _events(run).Scalars(name)]


def test_tensorboard_has_every_number_of_the_metrics(logged):
    steps = _lines(logged, "loss")
    assert list(steps) == [1, 2, 4, 5]
    names = {name for name, value in steps[5].items() if value is not None}
    assert {f"train/{name}" for name in names} <= set(_events(logged).Tags()["scalars"])
    for name in names:
        values = [value for _, value in _curve(logged, f"train/{name}")]
        assert values == pytest.approx([line[name] for line in steps.values()], rel=_EXACT_IN_FP32), name


def test_tensorboard_has_the_evaluations(logged):
    evaluations = _lines(logged, "eval_loss")
    assert list(evaluations) == [2, 4, 5]
    for name in ("loss", "accuracy"):
        values = [value for _, value in _curve(logged, f"eval/{name}")]
        wanted = [line[f"eval_{name}"] for line in evaluations.values()]
        assert values == pytest.approx(wanted, rel=_EXACT_IN_FP32)


def test_tensorboard_and_the_metrics_count_steps_alike(logged):
    assert [step for step, _ in _curve(logged, "train/loss")] == list(_lines(logged, "loss"))
    assert [step for step, _ in _curve(logged, "eval/loss")] == list(_lines(logged, "eval_loss"))


def _wandb_records(path):
    """The records of an offline run: a LevelDB log behind a header of its own, in blocks of 32 KiB."""
    content, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # too little for a header: the block's end is left empty
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def _wandb_history(run):
    from wandb.proto.wandb_internal_pb2 import Record  # here, because wandb is an extra

    (path,) = (run.path / "wandb").glob("offline-run-*/run-*.wandb")
    records = [Record.FromString(content) for content in _wandb_records(path)]
    started = next(record.run for record in records if record.HasField("run"))
    history = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    return started, history


@pytest.mark.skipif(not _WANDB_IS_THERE, reason="wandb is not installed")
def test_wandb_has_every_loss_of_the_metrics(logged):
    started, history = _wandb_history(logged)
    assert (started.project, started.display_name) == ("mosaicbert", "tiny")
    for name, key in (("train/loss", "loss"), ("eval/loss", "eval_loss")):
        values = {entry["_step"]: entry[name] for entry in history if name in entry}
        assert list(values.values()) == [line[key] for line in _lines(logged, key).values()]
        assert list(values) == list(_lines(logged, key))


@pytest.mark.skipif(not _WANDB_IS_THERE, reason="wandb is not installed")
def test_wandb_writes_into_the_run_folder_and_nowhere_else(logged):
    assert any((logged.path / "wandb").iterdir())
    assert not (logged.path.parent / "wandb").exists()


@pytest.mark.skipif(not _WANDB_IS_THERE, reason="wandb is not installed")
def test_a_continued_run_would_be_the_same_one_of_wandb(logged):
    started, _ = _wandb_history(logged)
    began = json.loads(logged.environment.read_text())["started"]
    assert started.run_id.startswith("tiny-")
    assert "".join(letter for letter in began if letter.isdigit()) in "".join(
        letter for letter in started.run_id if letter.isdigit()
    )


def _recipe(tmp_path, loggers):
    return tiny_recipe(tmp_path, tmp_path / "text.jsonl", log={"loggers": loggers})


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed_is_refused_with_what_to_install(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # what Python takes for a package that is not there
    with pytest.raises(
        ConfigError, match=rf"`log\.loggers` must name installed packages, got {name}\. Run `pip install {name}`\."
    ):
        check_loggers([name])


def test_a_logger_that_nobody_asked_for_need_not_be_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    require_loggers(_recipe(tmp_path, []))
    require_loggers(_recipe(tmp_path, ["tensorboard"]))
