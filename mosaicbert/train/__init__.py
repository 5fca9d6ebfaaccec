"""Pretraining of a model from a recipe, in Composer's training loop."""
