"""Composer callbacks: metrics, progress bar, random seeds, loggers, checkpoints."""
