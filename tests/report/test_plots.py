import io
import math

import pytest
from PIL import Image

from mosaicbert.report.plots import draw_loss, draw_runs, run_color
from mosaicbert.report.runs import read_runs
from tests.report.folders import ENTROPY, evaluation_lines, training_lines, write_run

_ONE_STEP = [{"step": 1, "tokens": 9, "seconds": 1.0, "loss": 6.0}]


def _colors(png: bytes) -> set[tuple[int, int, int]]:
    with Image.open(io.BytesIO(png)) as image:
        return {color for _, color in image.convert("RGB").getcolors(maxcolors=2**24)}


def _rgb(index: int) -> tuple[int, int, int]:
    return tuple(bytes.fromhex(run_color(index)[1:]))


def _size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        return image.size


def test_every_run_is_plotted_in_its_color(tmp_path):
    folders = [write_run(tmp_path / f"run{number}", training_lines(30, seed=number)) for number in range(3)]
    colors = _colors(draw_runs(read_runs(folders)))
    assert {_rgb(0), _rgb(1), _rgb(2)} <= colors
    assert _rgb(3) not in colors


@pytest.mark.filterwarnings("error")
def test_a_run_of_one_step_is_plotted(tmp_path):
    (run,) = read_runs([write_run(tmp_path / "run", training_lines(1), is_finished=False)])
    assert _rgb(0) in _colors(draw_runs([run]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "invalid_lines, value", [(slice(2, 3), math.nan), (slice(None), None)], ids=["one-nan", "all-null"]
)
def test_a_run_with_non_finite_losses_is_plotted(tmp_path, invalid_lines, value):
    lines = training_lines(8)
    for line in lines[invalid_lines]:
        line |= {"loss": value, "grad_norm": value}
    faults = [{"step": line["step"], "kind": "skipped", "reason": "not finite"} for line in lines[invalid_lines]]
    (run,) = read_runs([write_run(tmp_path / "run", lines, faults=faults)])
    assert _rgb(0) in _colors(draw_runs([run]))


def test_skipped_steps_and_rollbacks_have_markers(tmp_path):
    without_markers, *with_markers = [
        draw_runs(read_runs([write_run(tmp_path / kind, _ONE_STEP, run_name="run", faults=[fault])]))
        for kind in ("checkpoint", "skipped", "rollback")
        for fault in [{"step": 1, "kind": kind}]
    ]
    assert len({without_markers, *with_markers}) == 3


def test_panels_without_values_are_omitted(tmp_path):
    names = ("step", "tokens", "seconds", "loss", "lr")
    lines = [{name: line[name] for name in names} for line in training_lines(5)]
    heights = []
    for added in ({}, {"mfu": 0.5, "mask_rate": 0.3, "memory_gib": 2.0, "accuracy": 0.5, "fill_rate": 0.9}):
        run = write_run(tmp_path / str(len(added)), [line | added for line in lines])
        heights.append(_size(draw_runs(read_runs([run])))[1])
    assert heights[0] < heights[1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["$\\frac{1}{", "_hidden"])
def test_a_run_name_is_plotted_literally(tmp_path, name):
    images = {
        draw_runs(read_runs([write_run(tmp_path / str(length), _ONE_STEP, run_name=name[:length])]))
        for length in (len(name), len(name) - 1)
    }
    assert len(images) == 2
    draw_loss(_ONE_STEP, unigram_entropy=ENTROPY, title=name, path=tmp_path / "loss.png")


def test_long_names_do_not_change_the_size_of_the_figure(tmp_path):
    long = [write_run(tmp_path / f"{number}{'x' * 200}", _ONE_STEP) for number in range(3)]
    short = write_run(tmp_path / "short", _ONE_STEP)
    assert _size(draw_runs(read_runs(long))) == _size(draw_runs(read_runs([short])))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("has_evaluations", [True, False], ids=["evaluated", "not-evaluated"])
def test_the_loss_of_one_run_is_plotted_against_time(tmp_path, has_evaluations):
    lines = training_lines(40)
    lines[3]["loss"] = math.nan
    metrics = [*lines, *evaluation_lines(lines, 10)] if has_evaluations else lines
    path = tmp_path / "loss.png"
    draw_loss(metrics, unigram_entropy=ENTROPY, title="tiny", path=path)
    colors = _colors(path.read_bytes())
    assert _rgb(0) in colors
    assert (_rgb(1) in colors) == has_evaluations
