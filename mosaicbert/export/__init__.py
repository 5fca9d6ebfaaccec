"""Trained model to Hugging Face folder, and back to the layout of the published checkpoints."""
