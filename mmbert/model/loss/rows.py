"""Rows that count, and rows that do not."""

from __future__ import annotations

IGNORED = -100
"""A target that is no word: its row counts nothing. Rows that only fill up a constant shape have it."""
