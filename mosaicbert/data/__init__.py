"""Text to batches: source -> tokenizer -> token store -> sample order -> masks -> MicroBatch."""
