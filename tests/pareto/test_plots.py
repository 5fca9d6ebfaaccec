import io
import itertools
from dataclasses import replace
from functools import cache

import pytest
from matplotlib.colors import to_hex
from matplotlib.path import Path
from matplotlib.text import Text
from PIL import Image

from mosaicbert.pareto.checkpoints import ScoredCheckpoint
from mosaicbert.pareto.measures import PointEstimate
from mosaicbert.pareto.paper_points import PUBLISHED_CURVES
from mosaicbert.pareto.plots import _short_run_names, as_png, draw_pareto
from mosaicbert.pareto.points import Baseline, Point
from mosaicbert.report.plots import run_color
from mosaicbert.scores.statistics import VarianceTerm
from tests.pareto.scored import make_pretraining

_HOURS, _DOLLARS = "Wall-clock pretraining time (hours)", "Pretraining cost (US dollars)"
_LOSS, _BLIMP, _GLUE = "Validation loss\n(nats per masked token)", "BLiMP (%)", "Mean of 5 GLUE tasks"


def _estimate(value: float | None, has_interval: bool) -> PointEstimate | None:
    if value is None:
        return None
    terms = (VarianceTerm(0.09, 4),) if has_interval else ()
    return PointEstimate(value=value, values=(value,), seed_terms=terms, example_terms=())


def _point(
    step: int,
    hours: float,
    glue: float | None = None,
    *,
    run="runs/a",
    series="Ours",
    price: float | None = 1.0,
    loss: float | None = None,
    blimp: float | None = None,
    tokens: float | None = None,
    has_interval=True,
) -> Point:
    pretraining = make_pretraining(step, 3600 * hours)
    checkpoint = ScoredCheckpoint(
        folder=run, step=step, pretraining=pretraining, scores={}, predictions={}, blimp={}, num_outdated_scores=0
    )
    return Point(
        series=series,
        checkpoints=(checkpoint,),
        hours=hours,
        tokens=pretraining.tokens if tokens is None else tokens,
        num_devices=1,
        dollars=None if price is None else hours * price,
        scores=(),
        loss=_estimate(loss, False),
        blimp=_estimate(blimp, has_interval),
        glue=_estimate(glue, has_interval),
    )


_RUN = [_point(100, 0.5, 60.0), _point(1500, 1.0, 72.0), _point(3000, 2.0, 71.0), _point(6000, 4.0, 80.0)]
_ALL = [  # two series with all measures
    _point(
        step,
        hours,
        50 + 5 * hours,
        series=series,
        run=f"runs/{series}-{step}",
        price=0.05,
        loss=6 - hours,
        blimp=50 + 3 * hours,
        tokens=1e6 * step * factor,
    )
    for series, factor in (("a", 1.0), ("b", 1.1))
    for step, hours in ((100, 0.5 * factor), (200, 1.0 * factor), (300, 2.0 * factor))
]


def _draw(points, published_curves=PUBLISHED_CURVES, **changes):
    arguments = {
        "baselines": [],
        "labels": {point.series: f"{point.series}: 1 device" for point in points},
        "average_name": "mean of 5 GLUE tasks",
        "caption": "Caption.",
        "is_comparable": True,
    }
    return draw_pareto(points, published_curves, **(arguments | changes))


@cache
def _figure_of_all_measures():
    """Return a figure that tests must not modify."""
    return _draw(_ALL)


def _panels(figure):
    return [axes for axes in figure.axes if axes.axison]


def _titles(figure) -> list[tuple[str, str]]:
    return [(axes.get_ylabel(), axes.get_xlabel()) for axes in _panels(figure)]


def _legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def _labels(axes) -> list[str]:
    return [text.get_text() for text in axes.texts if text.get_gid() != "tokens"]


def _token_labels(axes):
    """Return pairs of hours and label, by series color."""
    labels = [text for text in axes.texts if text.get_gid() == "tokens" and text.get_text() != "tokens"]
    return {
        color: [(text.xy[0], text.get_text()) for text in labels if text.get_color() == color]
        for color in {text.get_color() for text in labels}
    }


def _dollar_axes(axes):
    return [axis for axis in axes.child_axes if axis.get_xlabel() == _DOLLARS]


def _lines(axes, name: str):
    return [line for line in axes.lines if str(line.get_gid()).startswith(name)]


def test_each_measure_has_a_panel_against_hours():
    figure = _figure_of_all_measures()
    assert _titles(figure) == [(_LOSS, _HOURS), (_BLIMP, _HOURS), (_GLUE, _HOURS)]
    assert {axes.get_xscale() for axes in _panels(figure)} == {"log"}
    assert figure.get_supxlabel() == "Caption."
    assert _titles(_draw(_RUN)) == [(_GLUE, _HOURS)]
    only_blimp = [_point(1, 1.0, blimp=60.0)]
    assert _titles(_draw(only_blimp, published_curves=())) == [(_BLIMP, _HOURS)]


def test_panels_have_at_most_two_columns():
    figure = _draw(_ALL, is_comparable=False)
    boxes = [axes.get_position() for axes in _panels(figure)]
    assert len(boxes) == 4
    assert len({round(box.x0, 3) for box in boxes}) == 2
    assert len({round(box.y0, 3) for box in boxes}) == 2


def test_equal_prices_give_a_second_axis_in_dollars():
    figure = _figure_of_all_measures()
    for axes in _panels(figure):
        (dollars,) = _dollar_axes(axes)
        assert dollars.get_xlim() == pytest.approx([0.05 * limit for limit in axes.get_xlim()])
        low, high = dollars.get_xlim()
        assert len([tick for tick in dollars.get_xticks() if low <= tick <= high]) >= 2


def test_unequal_prices_give_panels_against_dollars_beside_those_against_hours():
    points = [replace(point, dollars=point.hours * (1.0 if point.series == "a" else 2.0)) for point in _ALL]
    figure = _draw(points, published_curves=())
    assert _titles(figure) == [(title, cost) for title in (_LOSS, _BLIMP, _GLUE) for cost in (_HOURS, _DOLLARS)]
    assert not [axis for axes in _panels(figure) for axis in _dollar_axes(axes)]
    assert not any(map(_token_labels, _panels(figure)[1::2]))


def test_points_without_a_price_are_only_plotted_against_hours():
    (axes,) = _panels(_draw([replace(point, dollars=None) for point in _RUN]))
    assert (axes.get_xlabel(), _dollar_axes(axes)) == (_HOURS, [])
    mixed = [*_RUN, *(_point(step, 3.0 * step, 65.0, run="runs/b", series="Free", price=None) for step in (9, 99))]
    hours, dollars = _panels(_draw(mixed, published_curves=()))
    assert "9" in _labels(hours)
    assert "9" not in _labels(dollars)


def test_a_measure_without_a_priced_point_has_no_panel_against_dollars():
    points = [*_RUN, _point(9, 3.0, loss=4.0, series="Free", price=None)]
    assert _titles(_draw(points)) == [(_LOSS, _HOURS), (_GLUE, _HOURS), (_GLUE, _DOLLARS)]


def test_token_labels_are_at_the_hours_of_the_points_of_each_series():
    expected = {
        run_color(index): [(point.hours, f"{point.tokens / 1e6:.3g} M") for point in _ALL[::-1] if point.series == name]
        for index, name in enumerate("ab")
    }
    for axes in _panels(_figure_of_all_measures()):
        assert _token_labels(axes) == expected


def test_points_that_are_not_in_a_panel_have_no_token_label_there():
    points = [*_RUN, _point(7, 50.0, series="b", run="runs/b", loss=5.0, tokens=9e9)]
    loss, glue = _panels(_draw(points, published_curves=()))
    assert _token_labels(loss) == {run_color(1): [(50.0, "9 B")]}
    assert list(_token_labels(glue)) == [run_color(0)]


def _visible_tick_labels(axis):
    low, high = axis.get_view_interval()
    return [
        label for label, tick in zip(axis.get_ticklabels(), axis.get_ticklocs(), strict=True) if low <= tick <= high
    ]


@pytest.mark.parametrize("num_series, num_checkpoints", [(4, 1), (3, 3), (2, 10), (1, 40)])
def test_texts_outside_of_the_panels_do_not_overlap(num_series, num_checkpoints):
    points = [
        _point(
            7000 * index,
            index * factor,
            50 + index**0.5,
            series=series,
            run=f"runs/{series}",
            tokens=123e6 * index,
            loss=9 - index**0.3,
        )
        for series, factor in list(zip("abcd", (1.0, 1.3, 0.6, 2.0), strict=True))[:num_series]
        for index in range(1, num_checkpoints + 1)
    ]
    figure = _draw(points, is_comparable=False)
    texts = [figure.legends[0], *figure.findobj(lambda artist: artist is figure._supxlabel)]
    for axes in _panels(figure):
        texts += [axes.title, *(text for text in axes.texts if text.get_gid() == "tokens")]
        for axis in (axes.xaxis, axes.yaxis, *(child.xaxis for child in axes.child_axes)):
            texts += [axis.label, *_visible_tick_labels(axis)]
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in texts if not isinstance(text, Text) or text.get_text()]
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    assert all(0 <= box.x0 and box.x1 <= figure.bbox.width for box in boxes)
    assert all(0 <= box.y0 and box.y1 <= figure.bbox.height for box in boxes)


def test_published_points_are_gray_and_labeled():
    figure = _draw([*_RUN, _point(9, 3.0, 65.0, run="runs/b", series="Cheap", price=0.5)])
    legend = _legend(figure)
    assert "MosaicBERT-Base: 8 x A100, 8 tasks, paper (digitized)" in legend
    assert "BERT-Base: 8 x A100, 8 tasks, paper (digitized)" in legend
    hours, dollars = _panels(figure)
    for axes, factor in ((hours, 1.0), (dollars, 8 * 2.5)):
        for curve in PUBLISHED_CURVES:
            (line,) = [line for line in axes.lines if tuple(line.get_ydata()) == curve.averages]
            assert line.get_xdata() == pytest.approx([factor * hours for hours in curve.hours])
            red, green, blue = bytes.fromhex(to_hex(line.get_color())[1:])
            assert red == green == blue
    assert not [text for text in _legend(_draw(_RUN, published_curves=())) if "paper" in text]


def test_published_points_are_only_in_the_panel_of_glue():
    loss, blimp, glue = _panels(_figure_of_all_measures())
    averages = [curve.averages for curve in PUBLISHED_CURVES]
    assert [tuple(line.get_ydata()) for line in glue.lines if tuple(line.get_ydata()) in averages] == averages
    assert not [line for axes in (loss, blimp) for line in axes.lines if tuple(line.get_ydata()) in averages]


def test_published_points_of_another_average_have_a_separate_panel():
    ours, published = _panels(_draw(_RUN, is_comparable=False))
    assert ours.get_ylim()[0] > 50.0  # published scores do not extend the axis
    assert not [line for line in ours.lines if tuple(line.get_ydata()) == PUBLISHED_CURVES[0].averages]
    assert [tuple(line.get_ydata()) for line in published.lines] == [curve.averages for curve in PUBLISHED_CURVES]
    assert published.get_xlabel() == "Pretraining time (hours on 8 A100)"
    assert published.get_ylabel() == "Mean of 8 GLUE tasks"
    (dollar_axis,) = published.child_axes
    assert dollar_axis.get_xlabel() == _DOLLARS
    assert dollar_axis.get_xlim() == pytest.approx([20.0 * limit for limit in published.get_xlim()])
    unpriced = _panels(_draw([_point(1, 1.0, 60.0, price=None)], is_comparable=False))
    assert [axes.child_axes for axes in unpriced[1:]] == [[]]
    assert len(_panels(_draw(_RUN, published_curves=(), is_comparable=False))) == 1


@pytest.mark.parametrize("is_loss", [False, True], ids=["score", "loss"])
def test_the_frontier_is_a_step_line_through_the_undominated_points(is_loss):
    points = (
        [replace(point, loss=_estimate(-point.glue.value, False), glue=None) for point in _RUN] if is_loss else _RUN
    )
    (line,) = _lines(_panels(_draw(points))[0], "frontier")
    assert line.get_drawstyle() == "steps-post"
    sign = -1 if is_loss else 1
    assert list(zip(line.get_xdata()[:-1], line.get_ydata()[:-1], strict=True)) == [
        (0.5, sign * 60.0),
        (1.0, sign * 72.0),
        (4.0, sign * 80.0),
    ]
    assert line.get_ydata()[-1] == sign * 80.0


def test_an_untrained_baseline_is_a_visible_horizontal_line_in_the_color_of_its_series():
    figure = _draw(_ALL, baselines=[Baseline(series="b", loss=9.0, blimp=50.0, glue=40.0)])
    for axes, value in zip(_panels(figure), (9.0, 50.0, 40.0), strict=True):
        (baseline,) = _lines(axes, "untrained")
        assert list(baseline.get_ydata()) == [value, value]
        assert baseline.get_color() == run_color(1)
        low, high = axes.get_ylim()
        assert low < value < high
    label = "Random weights of the series"
    assert label in _legend(figure)
    assert label not in _legend(_figure_of_all_measures())


def test_a_labeled_baseline_is_a_gray_line_in_the_panels_of_its_measures():
    figure = _draw(_ALL, baselines=[Baseline(series=None, label="majority answer", glue=40.0)])
    loss, blimp, glue = _panels(figure)
    (line,) = _lines(glue, "baseline majority answer")
    assert list(line.get_ydata()) == [40.0, 40.0]
    assert _labels(glue).count("majority answer") == 1
    assert not [axes for axes in (loss, blimp) if _lines(axes, "baseline") or "majority answer" in _labels(axes)]
    assert "Random weights of the series" not in _legend(figure)


@pytest.mark.parametrize("values", [(60.0, 60.5), (60.0, 60.0), (51.0, 59.9), (70.0, 40.0)], ids=str)
def test_labels_of_baselines_do_not_overlap_each_other_or_points(values):
    baselines = [Baseline(series=None, label=f"baseline {index}", glue=value) for index, value in enumerate(values)]
    points = [replace(point, loss=None, blimp=None) for point in _ALL]
    figure = _draw(points, published_curves=(), baselines=baselines)
    (glue,) = _panels(figure)
    assert {"baseline 0", "baseline 1"} <= set(_labels(glue))
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in glue.texts if text.get_gid() != "tokens"]
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    positions = glue.transData.transform([(point.hours, point.glue.value) for point in _ALL])
    assert not [box for box in boxes for position in positions if box.contains(*position)]


def test_error_bars_have_the_bounds_of_the_intervals():
    points = [_point(100, 1.0, 60.0), _point(200, 2.0, 65.0, has_interval=False)]
    figure = _draw(points)
    (bars,) = _panels(figure)[0].collections
    bounds = [bound for path in bars.get_paths() for bound in sorted(path.vertices[:, 1].tolist())]
    assert bounds == pytest.approx([*points[0].glue.interval, 65.0, 65.0])
    assert "Frontier; bars: 95% intervals" in _legend(figure)
    assert "Frontier" in _legend(_draw(points[1:]))


def test_each_series_has_its_own_color_and_marker():
    points = [_point(1, 1.0 + index, 60.0, run=f"runs/{index}", series=str(index)) for index in range(3)]
    axes = _panels(_draw(points, published_curves=()))[0]
    drawn = {line.get_color(): line.get_marker() for line in axes.lines if line.get_color() in map(run_color, range(3))}
    assert list(drawn) == [run_color(index) for index in range(3)]
    assert len(set(drawn.values())) == 3


def test_a_series_keeps_its_color_in_a_panel_without_the_first_series():
    points = [_point(1, 1.0, 60.0, series="a"), _point(1, 1.0, 60.0, series="b", run="runs/b", loss=5.0)]
    loss, _ = _panels(_draw(points, published_curves=()))
    assert run_color(1) in [line.get_color() for line in loss.lines]
    assert run_color(0) not in [line.get_color() for line in loss.lines]


def test_checkpoints_are_labeled_by_step_and_runs_by_name():
    assert sorted(_labels(_panels(_draw(_RUN, published_curves=()))[0])) == ["1.5k", "100", "3k", "6k"]
    runs = [_point(100, 1.0, 60.0, run="runs/short/"), _point(200, 4.0, 70.0, run="runs/long")]
    assert sorted(_labels(_panels(_draw(runs, published_curves=()))[0])) == ["long", "short"]


def test_the_only_point_of_a_series_has_no_label():
    points = [*_RUN, _point(874, 0.6, 50.0, series="Control", run="runs/control")]
    assert "874" not in _labels(_panels(_draw(points, published_curves=()))[0])


def test_run_labels_omit_the_common_parts_of_the_names():
    runs = {5: "runs/bert-cpu-5min", 10: "runs/bert-cpu-10min", 20: "runs/bert-cpu-20min"}
    points = [_point(100, minutes / 60, 50.0 + minutes, run=run) for minutes, run in runs.items()]
    assert sorted(_labels(_panels(_draw(points, published_curves=()))[0])) == ["10min", "20min", "5min"]
    assert _short_run_names(["runs/a-5-x", "runs/a-10-x"]) == {"runs/a-5-x": "5", "runs/a-10-x": "10"}
    assert _short_run_names(["one/run", "other/run"]) == {"one/run": "one", "other/run": "other"}
    assert _short_run_names(["run", "run-b"]) == {"run": "run", "run-b": "run-b"}


@pytest.mark.parametrize("count", [4, 40])
def test_labels_do_not_overlap_each_other_points_or_the_frame(count):
    points = [_point(100 * index, 0.1 * index, 50.0 + index**0.8) for index in range(1, count + 1)]
    figure = _draw(points)
    renderer = figure.canvas.get_renderer()
    for axes in _panels(figure):
        boxes = [text.get_window_extent(renderer) for text in axes.texts if text.get_gid() != "tokens"]
        assert boxes
        assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
        positions = axes.transData.transform([(point.hours, point.glue.value) for point in points])
        assert not [box for box in boxes for position in positions if box.contains(*position)]
        frame = axes.get_window_extent()
        assert all(frame.containsx(box.x0) and frame.containsx(box.x1) for box in boxes)


def test_labels_do_not_cross_the_frontier():
    # The second point of the second series is close to a step of the frontier.
    points = [
        _point(step, hours, loss=loss, series=series, run=f"runs/{series}")
        for series, pairs in (("a", ((1.0, 6.0), (2.0, 5.0), (4.0, 4.0))), ("b", ((0.6, 9.0), (1.9, 6.05))))
        for step, (hours, loss) in enumerate(pairs, start=101)
    ]
    figure = _draw(points, published_curves=())
    (axes,) = _panels(figure)
    (line,) = _lines(axes, "frontier")
    corners = list(zip(line.get_xdata(), line.get_ydata(), strict=True))
    assert corners[:-1] == [(0.6, 9.0), (1.0, 6.0), (2.0, 5.0), (4.0, 4.0)]
    steps = [corner for (x, y), (next_x, _) in itertools.pairwise(corners) for corner in ((x, y), (next_x, y))]
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts if text.get_gid() != "tokens"]
    assert len(boxes) >= 3
    assert not [box for box in boxes if Path(axes.transData.transform(steps)).intersects_bbox(box, filled=False)]


@pytest.mark.parametrize("name", ["a", "x" * 300, "a rather long name of a series"])
def test_the_legend_is_above_the_panels_and_inside_the_figure(name):
    figure = _draw([replace(point, series=name) for point in _RUN])
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert box.y0 >= max(axes.get_window_extent().y1 for axes in _panels(figure))
    assert box.y1 <= figure.bbox.height


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["$\\frac{1}{", "_hidden"])
def test_special_characters_in_names_are_not_interpreted(name):
    points = [_point(1, 1.0, 60.0, run=f"runs/{name}", series=name), _point(1, 2.0, 70.0, run="runs/b", series=name)]
    figure = _draw(points, caption=name, baselines=[Baseline(series=None, label=name, glue=65.0)])
    assert _legend(figure)[0].startswith(name)
    assert _labels(_panels(figure)[0]).count(name) == 2
    assert as_png(figure)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("published_curves", [PUBLISHED_CURVES, ()], ids=["published", "none"])
def test_a_single_point_has_readable_axes(published_curves):
    point = _point(500, 0.04, 52.0, loss=7.0, blimp=51.0, has_interval=False)
    for axes, min_range in zip(_panels(_draw([point], published_curves)), (0.5, 2.0, 2.0), strict=True):
        low, high = axes.get_xlim()
        assert len([tick for tick in axes.get_xticks() if low <= tick <= high]) >= 3
        assert axes.get_ylim()[1] - axes.get_ylim()[0] >= min_range - 1e-9


def test_the_figure_is_a_reproducible_png_for_print():
    png = as_png(_draw(_RUN, is_comparable=False))
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        assert image.width == 2280
        assert image.info["dpi"] == pytest.approx((300, 300), abs=1)
    assert as_png(_draw(_RUN, is_comparable=False)) == png
