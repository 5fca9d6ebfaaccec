"""Pareto figure of GLUE scores against training time and cost, and paired comparison of two checkpoints."""
