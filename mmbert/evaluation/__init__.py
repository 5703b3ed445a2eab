"""Evaluation: what a model is measured by, and the report of a run."""
