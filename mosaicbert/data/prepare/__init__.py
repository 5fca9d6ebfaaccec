"""Text to token store: sources, readers, tokenization, partitions, deduplication."""
