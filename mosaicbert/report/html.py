"""The report as one HTML file that needs nothing else: the runs side by side, their curves, faults and recipes."""

import base64
import math
from collections import Counter
from collections.abc import Callable
from html import escape
from typing import Any, cast

import numpy as np

from mosaicbert.config.load import recipe_differences
from mosaicbert.report.curves import column
from mosaicbert.report.plots import run_colour
from mosaicbert.report.runs import Run, describe_cpu

_UNKNOWN = "\N{EN DASH}"
_LONGEST_VALUE = 100  # characters of what else is known of a fault, e.g. the samples of its batches
_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1500px; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
.wide { overflow-x: auto; } .long { max-height: 24rem; overflow: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem; text-align: left; border-bottom: 1px solid #e3e3e3; vertical-align: top; }
th { font-weight: 600; } thead th { border-bottom: 2px solid #999; overflow-wrap: anywhere; }
tbody th { font-weight: 400; color: #666; white-space: nowrap; } td { overflow-wrap: anywhere; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .45em; }
img { width: 100%; height: auto; } .none { color: #666; }
"""


def write_page(runs: list[Run], png: bytes) -> str:
    """The page's HTML.

    Args:
        runs: of the report.
        png: their curves.
    """
    names = ", ".join(run.label for run in runs)
    picture = base64.b64encode(png).decode()
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(names)}</title>
<style>{_CSS}</style>
</head>
<body>
<h1>Pretraining: {escape(names)}</h1>
{_table(runs, [(name, [write(run) for run in runs]) for name, write in _MEASURES])}
<h2>Curves</h2>
<img alt="curves of {escape(names)}" src="data:image/png;base64,{picture}">
{_recipes(runs)}
<h2>Faults</h2>
{"".join(_faults(index, run) for index, run in enumerate(runs))}
</body>
</html>
"""


def _table(runs: list[Run], rows: list[tuple[str, list[str]]]) -> str:
    heads = "".join(f"<th>{_heading(index, run)}</th>" for index, run in enumerate(runs))
    body = "\n".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(value)}</td>' for value in values)}</tr>"
        for name, values in rows
    )
    return (
        f'<div class="wide"><table>\n<thead><tr><th></th>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
    )


def _heading(index: int, run: Run) -> str:
    return f'<span class="swatch" style="background:{run_colour(index)}"></span>{escape(run.label)}'


def _recipes(runs: list[Run]) -> str:
    first, *others = runs
    if not others:
        return ""
    differences = [recipe_differences(first.recipe, run.recipe) for run in others]
    keys = dict.fromkeys(key for found in differences for key in found if key != "run_name")
    rows: list[tuple[str, list[str]]] = []
    for key in keys:
        before = next(found[key][0] for found in differences if key in found)
        values = [before, *(found[key][1] if key in found else before for found in differences)]
        rows.append((key, [_UNKNOWN if value is None else str(value) for value in values]))
    content = _table(runs, rows) if rows else '<p class="none">none</p>'
    return f"<h2>Keys in which the recipes differ</h2>\n{content}"


def _faults(index: int, run: Run) -> str:
    head = f"<h3>{_heading(index, run)}</h3>\n"
    if not run.faults:
        return f'{head}<p class="none">none</p>\n'
    rows = "\n".join(
        f"<tr>{''.join(f'<td>{escape(str(fault.get(key, _UNKNOWN)))}</td>' for key in ('step', 'kind', 'reason'))}"
        f"<td>{escape(_remainder(fault))}</td></tr>"
        for fault in run.faults
    )
    return (
        f'{head}<div class="long"><table>\n<thead><tr><th>step</th><th>what</th><th>reason</th><th></th></tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>\n"
    )


def _remainder(fault: dict[str, Any]) -> str:
    shown = {key: value for key, value in fault.items() if key not in ("step", "kind", "reason") and value is not None}
    return ", ".join(f"{key}: {_brief(value)}" for key, value in shown.items())


def _brief(value: Any) -> str:
    text = str(value)
    if len(text) <= _LONGEST_VALUE:
        return text
    count = f" ({len(cast(list[Any], value)):,} in all)" if isinstance(value, list) else ""
    return f"{text[:_LONGEST_VALUE]}...{count}"


def _state(run: Run) -> str:
    if run.finished:
        return "finished"
    progress = _last(run.training, "progress")
    return "unfinished" if math.isnan(progress) else f"at {math.floor(100 * progress)}%"


def _speed(run: Run) -> float:
    seconds = _last(run.training, "seconds")
    return _last(run.training, "tokens") / seconds if seconds > 0 else math.nan


def _utilisation(run: Run) -> float:
    values = column(run.training, "mfu")
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _device(run: Run) -> str:
    gpus = Counter(str(name) for name in run.environment.get("gpus") or [])
    if gpus:
        return ", ".join(f"{count} \N{MULTIPLICATION SIGN} {name}" for name, count in gpus.items())
    return describe_cpu(run.environment) if "cpu" in run.environment else _UNKNOWN


def _last(lines: list[dict[str, Any]], name: str) -> float:
    values = column(lines, name)
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else math.nan


def _written(value: float, form: str) -> str:
    return _UNKNOWN if math.isnan(value) else form.format(value)


def _from_training(name: str, form: str, scale: float = 1.0) -> Callable[[Run], str]:
    return lambda run: _written(_last(run.training, name) / scale, form)


def _from_evaluations(name: str, form: str) -> Callable[[Run], str]:
    return lambda run: _written(_last(run.evaluations, name), form)


_MEASURES: tuple[tuple[str, Callable[[Run], str]], ...] = (
    ("state", _state),
    ("steps", _from_training("step", "{:,.0f}")),
    ("samples", _from_training("samples", "{:,.0f}")),
    ("tokens", _from_training("tokens", "{:,.0f}")),
    ("training hours", _from_training("seconds", "{:,.2f}", scale=3600)),
    ("real tokens per second, mean", lambda run: _written(_speed(run), "{:,.0f}")),
    ("model FLOPs utilisation, mean", lambda run: _written(_utilisation(run), "{:.1%}")),
    ("training loss, last (nats)", _from_training("loss", "{:.4f}")),
    ("held-out loss, last (nats)", _from_evaluations("eval_loss", "{:.4f}")),
    ("held-out accuracy, last", _from_evaluations("eval_accuracy", "{:.2%}")),
    ("unigram entropy (nats)", lambda run: _UNKNOWN if run.unigram_entropy is None else f"{run.unigram_entropy:.4f}"),
    ("skipped steps", _from_training("skipped_steps", "{:,.0f}")),
    ("rollbacks", _from_training("rollbacks", "{:,.0f}")),
    ("device", _device),
    ("commit", lambda run: str(run.environment.get("commit") or _UNKNOWN)),
    ("started", lambda run: str(run.environment.get("started") or _UNKNOWN)),
)
