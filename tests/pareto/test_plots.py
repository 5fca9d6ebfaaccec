import io
import itertools
from dataclasses import replace

import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Annotation
from PIL import Image

from mosaicbert.pareto.paper_points import PUBLISHED_CURVES
from mosaicbert.pareto.plots import _short_run_names, as_png, draw_pareto
from mosaicbert.pareto.points import Point
from mosaicbert.report.plots import run_color
from tests.pareto.scored import make_pretraining


def _point(step: int, hours: float, average: float, *, run="runs/a", series="Ours", dollars=1.0, width=1.0) -> Point:
    return Point(
        series=series,
        name=f"{run}@{step}",
        folder=run,
        step=step,
        pretraining=make_pretraining(step, 3600 * hours),
        hours=hours,
        num_devices=1,
        dollars=None if dollars is None else hours * dollars,
        scores={},
        average=average,
        interval=(average - width, average + width) if width else None,
    )


_RUN = [_point(100, 0.5, 60.0), _point(1500, 1.0, 72.0), _point(3000, 2.0, 71.0), _point(6000, 4.0, 80.0)]


def _draw(points, published_curves=PUBLISHED_CURVES, **changes):
    arguments = {
        "baselines": {},
        "labels": {point.series: f"{point.series}: 1 device" for point in points},
        "average_name": "mean of 5 GLUE tasks",
        "caption": "Caption.",
        "is_comparable": True,
    }
    return draw_pareto(points, published_curves, **(arguments | changes))


def _legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def _labels(axes) -> list[str]:
    return [text.get_text() for text in axes.texts if isinstance(text, Annotation)]


def _frontier(axes):
    (line,) = [line for line in axes.lines if line.get_gid() == "frontier"]
    return line


def test_scores_are_plotted_against_hours_and_dollars():
    figure = _draw(_RUN)
    hours, dollars = figure.axes
    assert hours.get_xlabel() == "Wall-clock pretraining time (hours)"
    assert dollars.get_xlabel() == "Pretraining cost (US dollars)"
    assert hours.get_ylabel() == "Score: mean of 5 GLUE tasks"
    assert hours.get_xscale() == dollars.get_xscale() == "log"
    assert figure.get_supxlabel() == "Caption."


def test_points_without_a_price_are_only_plotted_against_hours():
    assert len(_draw([_point(1, 1.0, 60.0, dollars=None)]).axes) == 1
    mixed = [*_RUN, _point(9, 3.0, 65.0, run="runs/b", series="Free", dollars=None)]
    hours, dollars = _draw(mixed, published_curves=()).axes
    assert "9" in _labels(hours)
    assert "9" not in _labels(dollars)


def test_published_points_are_gray_and_labeled():
    figure = _draw(_RUN)
    legend = _legend(figure)
    assert "MosaicBERT-Base: 8 x A100, 8 tasks, paper (digitized)" in legend
    assert "BERT-Base: 8 x A100, 8 tasks, paper (digitized)" in legend
    hours, dollars = figure.axes
    for axes, factor in ((hours, 1.0), (dollars, 8 * 2.5)):
        for curve in PUBLISHED_CURVES:
            (line,) = [line for line in axes.lines if tuple(line.get_ydata()) == curve.averages]
            assert line.get_xdata() == pytest.approx([factor * hours for hours in curve.hours])
            red, green, blue = bytes.fromhex(to_hex(line.get_color())[1:])
            assert red == green == blue
    assert not [text for text in _legend(_draw(_RUN, published_curves=())) if "paper" in text]


def test_published_points_of_another_average_have_a_separate_panel():
    hours, dollars, published = _draw(_RUN, is_comparable=False).axes
    for axes in (hours, dollars):
        assert axes.get_ylim()[0] > 50.0  # published scores do not extend the axis
        assert not [line for line in axes.lines if tuple(line.get_ydata()) == PUBLISHED_CURVES[0].averages]
    assert [tuple(line.get_ydata()) for line in published.lines] == [curve.averages for curve in PUBLISHED_CURVES]
    assert published.get_xlabel() == "Pretraining time (hours on 8 A100)"
    assert published.get_ylabel() == "Score: mean of 8 GLUE tasks"
    (dollar_axis,) = published.child_axes
    assert dollar_axis.get_xlabel() == "Pretraining cost (US dollars)"
    assert dollar_axis.get_xlim() == pytest.approx([20.0 * limit for limit in published.get_xlim()])
    assert len(_draw([_point(1, 1.0, 60.0, dollars=None)], is_comparable=False).axes) == 2
    assert len(_draw(_RUN, published_curves=(), is_comparable=False).axes) == 2


def test_the_frontier_is_a_step_line_through_the_undominated_points():
    line = _frontier(_draw(_RUN).axes[0])
    assert line.get_drawstyle() == "steps-post"
    assert list(zip(line.get_xdata()[:-1], line.get_ydata()[:-1], strict=True)) == [
        (0.5, 60.0),
        (1.0, 72.0),
        (4.0, 80.0),
    ]
    assert line.get_ydata()[-1] == 80.0


def test_an_untrained_baseline_is_a_visible_horizontal_line_in_the_color_of_its_series():
    points = [_point(1, 1.0, 60.0, series="a", run="a"), _point(1, 2.0, 61.0, series="b", run="b")]
    figure = _draw(points, baselines={"b": 40.0})
    for axes in figure.axes:
        (baseline,) = [line for line in axes.lines if str(line.get_gid()).startswith("untrained")]
        assert list(baseline.get_ydata()) == [40.0, 40.0]
        assert baseline.get_color() == run_color(1)
        assert axes.get_ylim()[0] < 40.0
    label = "Untrained baseline"
    assert label in _legend(figure) and label not in _legend(_draw(points))


def test_error_bars_have_the_bounds_of_the_intervals():
    points = [_point(100, 1.0, 60.0), _point(200, 2.0, 65.0, width=None)]
    figure = _draw(points)
    (bars,) = figure.axes[0].collections
    bounds = [sorted(path.vertices[:, 1].tolist()) for path in bars.get_paths()]
    assert bounds == [[59.0, 61.0], [65.0, 65.0]]
    assert "Frontier; bars: 95% intervals" in _legend(figure)
    assert "Frontier" in _legend(_draw(points[1:]))


def test_each_series_has_its_own_color_and_marker():
    points = [_point(1, 1.0 + index, 60.0, run=f"runs/{index}", series=str(index)) for index in range(3)]
    axes = _draw(points, published_curves=()).axes[0]
    drawn = {line.get_color(): line.get_marker() for line in axes.lines if line.get_color() in map(run_color, range(3))}
    assert list(drawn) == [run_color(index) for index in range(3)]
    assert len(set(drawn.values())) == 3


def test_checkpoints_are_labeled_by_step_and_runs_by_name():
    assert sorted(_labels(_draw(_RUN, published_curves=()).axes[0])) == ["1.5k", "100", "3k", "6k"]
    runs = [_point(100, 1.0, 60.0, run="runs/short/"), _point(200, 4.0, 70.0, run="runs/long")]
    assert sorted(_labels(_draw(runs, published_curves=()).axes[0])) == ["long", "short"]


def test_run_labels_omit_the_common_parts_of_the_names():
    runs = {5: "runs/bert-cpu-5min", 10: "runs/bert-cpu-10min", 20: "runs/bert-cpu-20min"}
    points = [_point(100, minutes / 60, 50.0 + minutes, run=run) for minutes, run in runs.items()]
    assert sorted(_labels(_draw(points, published_curves=()).axes[0])) == ["10min", "20min", "5min"]
    assert _short_run_names(["runs/a-5-x", "runs/a-10-x"]) == {"runs/a-5-x": "5", "runs/a-10-x": "10"}
    assert _short_run_names(["one/run", "other/run"]) == {"one/run": "one", "other/run": "other"}
    assert _short_run_names(["run", "run-b"]) == {"run": "run", "run-b": "run-b"}


@pytest.mark.parametrize("count", [4, 40])
def test_labels_do_not_overlap_each_other_points_or_the_frame(count):
    points = [_point(100 * index, 0.1 * index, 50.0 + index**0.8) for index in range(1, count + 1)]
    figure = _draw(points)
    renderer = figure.canvas.get_renderer()
    for axes in figure.axes:
        boxes = [text.get_window_extent(renderer) for text in axes.texts]
        assert boxes
        assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
        positions = axes.transData.transform([(point.hours, point.average) for point in points])
        assert not [box for box in boxes for position in positions if box.contains(*position)]
        frame = axes.get_window_extent()
        assert all(frame.containsx(box.x0) and frame.containsx(box.x1) for box in boxes)


@pytest.mark.parametrize("name", ["a", "x" * 300, "a rather long name of a series"])
def test_the_legend_is_above_the_panels_and_inside_the_figure(name):
    figure = _draw([replace(point, series=name) for point in _RUN])
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert box.y0 >= max(axes.get_window_extent().y1 for axes in figure.axes)
    assert box.y1 <= figure.bbox.height


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["$\\frac{1}{", "_hidden"])
def test_special_characters_in_names_are_not_interpreted(name):
    points = [_point(1, 1.0, 60.0, run=f"runs/{name}", series=name), _point(1, 2.0, 70.0, run="runs/b", series=name)]
    figure = _draw(points, caption=name)
    assert _legend(figure)[0].startswith(name)
    assert name in _labels(figure.axes[0])
    assert as_png(figure)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("published_curves", [PUBLISHED_CURVES, ()], ids=["published", "none"])
def test_a_single_point_has_readable_axes(published_curves):
    axes = _draw([_point(500, 0.04, 52.0, width=None)], published_curves).axes[0]
    low, high = axes.get_xlim()
    assert len([tick for tick in axes.get_xticks() if low <= tick <= high]) >= 3
    assert axes.get_ylim()[1] - axes.get_ylim()[0] >= 2.0


def test_the_figure_is_a_reproducible_png_for_print():
    png = as_png(_draw(_RUN))
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        assert image.width == 2160
        assert image.info["dpi"] == pytest.approx((300, 300), abs=1)
    assert as_png(_draw(_RUN)) == png
