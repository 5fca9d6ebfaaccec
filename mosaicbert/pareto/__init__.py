"""Scores against what they cost: scores.jsonl of several runs -> frontier table, figure and paired test."""
