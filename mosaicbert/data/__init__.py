"""Data pipeline: text sources, tokenizer, token store, sample order, masking and micro-batches."""
