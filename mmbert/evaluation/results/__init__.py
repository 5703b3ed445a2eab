"""Scores after they were measured: kept, compared, and what a release must reach."""
