"""The original training code's ways, for reproducing its runs; our own training uses none of this.

`packing`, `masking`, `schedules` (batch-size warm-up, learning rates), `loss` (weights of microbatches). Only numpy is
needed. What differs from ours, and why, stands in docs/original.md.
"""
