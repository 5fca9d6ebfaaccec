"""Checkpoints: file format, resume, export to Hugging Face folders."""
