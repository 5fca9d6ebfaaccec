"""Scores of fine-tunings: the ledger that they are kept in, and statistics over their seeds. The home of scipy."""
