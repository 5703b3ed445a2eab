"""Evaluation suites: each turns a model into a list of scores."""
