"""Scoring of checkpoints in parallel jobs: checkpoints to score, plan of the jobs, job queue, console output."""
