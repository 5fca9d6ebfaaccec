"""Choices that are measured on a CPU when a run begins: precision and number of processes."""
