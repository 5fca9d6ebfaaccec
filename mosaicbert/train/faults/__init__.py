"""Non-finite and spiking training steps: detection, and the log of what was skipped."""
