"""Tests of the console table of GLUE scores."""

from rich.console import Console

from mosaicbert.finetune.glue.score_table import scores_table
from tests.pareto.scored import make_score


def test_no_number_is_truncated_in_a_narrow_terminal():
    console = Console(record=True, width=80)
    scores = [make_score("mnli", 41.25 + seed, seed=seed, is_partial=True) for seed in range(2)]
    console.print(scores_table("step 100", scores, {"mnli": 2}, []))
    text = console.export_text()
    assert "…" not in text
    assert "41.75" in text and "0.71" in text and "35.40 to 48.10" in text
