import io
import math

import pytest
from PIL import Image

from mosaicbert.report.plots import draw_loss, draw_runs, run_colour
from mosaicbert.report.runs import read_runs
from tests.report.folders import ENTROPY, evaluation_lines, training_lines, write_run

_ONE_STEP = [{"step": 1, "tokens": 9, "seconds": 1.0, "loss": 6.0}]


def _colours(png: bytes) -> set[tuple[int, int, int]]:
    with Image.open(io.BytesIO(png)) as image:
        return {colour for _, colour in image.convert("RGB").getcolors(maxcolors=2**24)}


def _rgb(index: int) -> tuple[int, int, int]:
    return tuple(bytes.fromhex(run_colour(index)[1:]))


def _size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        return image.size


def test_every_run_is_drawn_in_its_colour(tmp_path):
    folders = [write_run(tmp_path / f"run{number}", training_lines(30, seed=number)) for number in range(3)]
    colours = _colours(draw_runs(read_runs(folders)))
    assert {_rgb(0), _rgb(1), _rgb(2)} <= colours
    assert _rgb(3) not in colours


@pytest.mark.filterwarnings("error")
def test_a_run_of_one_step_is_drawn(tmp_path):
    (run,) = read_runs([write_run(tmp_path / "run", training_lines(1), finished=False)])
    assert _rgb(0) in _colours(draw_runs([run]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("broken, value", [(slice(2, 3), math.nan), (slice(None), None)], ids=["one-nan", "all-null"])
def test_a_run_with_losses_that_are_no_numbers_is_drawn(tmp_path, broken, value):
    lines = training_lines(8)
    for line in lines[broken]:
        line |= {"loss": value, "grad_norm": value}
    faults = [{"step": line["step"], "kind": "skipped", "reason": "not finite"} for line in lines[broken]]
    (run,) = read_runs([write_run(tmp_path / "run", lines, faults=faults)])
    assert _rgb(0) in _colours(draw_runs([run]))


def test_skipped_steps_and_rollbacks_are_marked(tmp_path):
    plain, *marked = [
        draw_runs(read_runs([write_run(tmp_path / kind, _ONE_STEP, run_name="run", faults=[fault])]))
        for kind in ("checkpoint", "skipped", "rollback")
        for fault in [{"step": 1, "kind": kind}]
    ]
    assert len({plain, *marked}) == 3


def test_panels_that_no_run_has_values_for_are_left_out(tmp_path):
    names = ("step", "tokens", "seconds", "loss", "lr")
    lines = [{name: line[name] for name in names} for line in training_lines(5)]
    heights = []
    for added in ({}, {"mfu": 0.5, "mask_rate": 0.3, "memory_gib": 2.0, "accuracy": 0.5, "fill_rate": 0.9}):
        run = write_run(tmp_path / str(len(added)), [line | added for line in lines])
        heights.append(_size(draw_runs(read_runs([run])))[1])
    assert heights[0] < heights[1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["$\\frac{1}{", "_hidden"])
def test_a_name_is_written_as_it_is_whatever_it_looks_like(tmp_path, name):
    pictures = {
        draw_runs(read_runs([write_run(tmp_path / str(length), _ONE_STEP, run_name=name[:length])]))
        for length in (len(name), len(name) - 1)
    }
    assert len(pictures) == 2
    draw_loss(_ONE_STEP, unigram_entropy=ENTROPY, title=name, path=tmp_path / "loss.png")


def test_long_names_do_not_make_the_picture_wider(tmp_path):
    long = [write_run(tmp_path / f"{number}{'x' * 200}", _ONE_STEP) for number in range(3)]
    short = write_run(tmp_path / "short", _ONE_STEP)
    assert _size(draw_runs(read_runs(long))) == _size(draw_runs(read_runs([short])))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("evaluated", [True, False], ids=["evaluated", "not-evaluated"])
def test_the_loss_of_one_run_is_drawn_against_time(tmp_path, evaluated):
    lines = training_lines(40)
    lines[3]["loss"] = math.nan
    metrics = [*lines, *evaluation_lines(lines, 10)] if evaluated else lines
    path = tmp_path / "loss.png"
    draw_loss(metrics, unigram_entropy=ENTROPY, title="tiny", path=path)
    colours = _colours(path.read_bytes())
    assert _rgb(0) in colours
    assert (_rgb(1) in colours) == evaluated
