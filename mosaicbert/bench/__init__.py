"""Comparison of a recipe's training step and embeddings with those of Hugging Face's BERT and ModernBERT."""
