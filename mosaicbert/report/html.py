"""Self-contained HTML report: tables of runs, training curves, recipe differences and faults."""

import base64
import math
from collections import Counter
from collections.abc import Callable
from html import escape
from typing import Any, cast

import numpy as np

from mosaicbert.config.load import recipe_differences
from mosaicbert.report.curves import column
from mosaicbert.report.plots import run_color
from mosaicbert.report.runs import Run, describe_cpu

_MISSING = "\N{EN DASH}"
_MAX_VALUE_LENGTH = 100  # characters of a value in the details of a fault
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


def render_page(runs: list[Run], png: bytes) -> str:
    """Render the HTML page.

    Args:
        runs: Runs of the report.
        png: Image of the training curves.
    """
    names = ", ".join(run.label for run in runs)
    image = base64.b64encode(png).decode()
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
{_table(runs, [(name, [format_cell(run) for run in runs]) for name, format_cell in _ROWS])}
<h2>Curves</h2>
<img alt="Training curves of {escape(names)}" src="data:image/png;base64,{image}">
{_difference_table(runs)}
<h2>Faults</h2>
{"".join(_fault_table(index, run) for index, run in enumerate(runs))}
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
    return f'<span class="swatch" style="background:{run_color(index)}"></span>{escape(run.label)}'


def _difference_table(runs: list[Run]) -> str:
    first, *other_runs = runs
    if not other_runs:
        return ""
    differences = [recipe_differences(first.recipe, run.recipe) for run in other_runs]
    keys = dict.fromkeys(key for changes in differences for key in changes if key != "run_name")
    rows: list[tuple[str, list[str]]] = []
    for key in keys:
        first_value = next(changes[key][0] for changes in differences if key in changes)
        values = [first_value, *(changes[key][1] if key in changes else first_value for changes in differences)]
        rows.append((key, [_MISSING if value is None else str(value) for value in values]))
    content = _table(runs, rows) if rows else '<p class="none">None</p>'
    return f"<h2>Recipe differences</h2>\n{content}"


def _fault_table(index: int, run: Run) -> str:
    head = f"<h3>{_heading(index, run)}</h3>\n"
    if not run.faults:
        return f'{head}<p class="none">None</p>\n'
    rows = "\n".join(
        f"<tr>{''.join(f'<td>{escape(str(fault.get(key, _MISSING)))}</td>' for key in ('step', 'kind', 'reason'))}"
        f"<td>{escape(_details(fault))}</td></tr>"
        for fault in run.faults
    )
    return (
        f'{head}<div class="long"><table>\n'
        "<thead><tr><th>Step</th><th>Kind</th><th>Reason</th><th>Details</th></tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody></table></div>\n"
    )


def _details(fault: dict[str, Any]) -> str:
    details = {key: value for key, value in fault.items() if key not in ("step", "kind", "reason")}
    return ", ".join(f"{key}: {_truncate(value)}" for key, value in details.items() if value is not None)


def _truncate(value: Any) -> str:
    text = str(value)
    if len(text) <= _MAX_VALUE_LENGTH:
        return text
    count = f" ({len(cast(list[Any], value)):,} in total)" if isinstance(value, list) else ""
    return f"{text[:_MAX_VALUE_LENGTH]}...{count}"


def _state(run: Run) -> str:
    if run.is_finished:
        return "finished"
    progress = _last(run.training, "progress")
    return "in progress" if math.isnan(progress) else f"in progress, {math.floor(100 * progress)}%"


def _mean_tokens_per_second(run: Run) -> float:
    seconds = _last(run.training, "seconds")
    return _last(run.training, "tokens") / seconds if seconds > 0 else math.nan


def _mean_mfu(run: Run) -> float:
    values = column(run.training, "mfu")
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _device(run: Run) -> str:
    gpus = Counter(str(name) for name in run.environment.get("gpus") or [])
    if gpus:
        return ", ".join(f"{count} \N{MULTIPLICATION SIGN} {name}" for name, count in gpus.items())
    return describe_cpu(run.environment) if "cpu" in run.environment else _MISSING


def _last(lines: list[dict[str, Any]], name: str) -> float:
    values = column(lines, name)
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else math.nan


def _format(value: float, template: str) -> str:
    return _MISSING if math.isnan(value) else template.format(value)


def _from_training(name: str, template: str, scale: float = 1.0) -> Callable[[Run], str]:
    return lambda run: _format(_last(run.training, name) / scale, template)


def _from_evaluations(name: str, template: str) -> Callable[[Run], str]:
    return lambda run: _format(_last(run.evaluations, name), template)


_ROWS: tuple[tuple[str, Callable[[Run], str]], ...] = (
    ("State", _state),
    ("Steps", _from_training("step", "{:,.0f}")),
    ("Samples", _from_training("samples", "{:,.0f}")),
    ("Tokens", _from_training("tokens", "{:,.0f}")),
    ("Training time (hours)", _from_training("seconds", "{:,.2f}", scale=3600)),
    ("Mean throughput (real tokens/s)", lambda run: _format(_mean_tokens_per_second(run), "{:,.0f}")),
    ("Mean model FLOPs utilization", lambda run: _format(_mean_mfu(run), "{:.1%}")),
    ("Last training loss (nats)", _from_training("loss", "{:.4f}")),
    ("Last validation loss (nats)", _from_evaluations("eval_loss", "{:.4f}")),
    ("Last validation accuracy", _from_evaluations("eval_accuracy", "{:.2%}")),
    ("Unigram entropy (nats)", lambda run: _MISSING if run.unigram_entropy is None else f"{run.unigram_entropy:.4f}"),
    ("Skipped steps", _from_training("skipped_steps", "{:,.0f}")),
    ("Rollbacks", _from_training("rollbacks", "{:,.0f}")),
    ("Device", _device),
    ("Commit", lambda run: str(run.environment.get("commit") or _MISSING)),
    ("Start time", lambda run: str(run.environment.get("started") or _MISSING)),
)
