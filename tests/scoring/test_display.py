"""Tests of the console output of a scoring."""

from mosaicbert.scoring.display import describe_score
from tests.pareto.scored import make_blimp, make_score


def test_a_glue_score_is_described_by_its_metrics():
    score = make_score("mrpc", 0.0, metrics={"accuracy": 0.7, "f1": 0.8125}, seconds=75.0)
    assert describe_score(score) == "accuracy 70.00, f1 81.25 (0:01:15)"


def test_a_blimp_score_is_described_by_the_mean_of_its_paradigms():
    score, _ = make_blimp({"principle_A": "0111", "principle_B": "0101"}, seconds=5.0)
    assert describe_score(score) == "accuracy 62.50 (0:00:05)"
