"""Evaluation: how good a model is, against challengers and against the truth."""
