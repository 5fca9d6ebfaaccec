"""Progress of a run: counters, training clock, learning rate schedule, synchronization policy."""
