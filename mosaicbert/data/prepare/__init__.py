"""Preparation of a token store from text: sources, readers, tokenization, partitions and deduplication."""
