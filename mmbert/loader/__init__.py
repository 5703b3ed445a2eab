"""The order of documents, sequence packing, masking and resumable state.

Parts, from the inside out: `randomness` (keyed bits), `permutation` and `order` (which row comes next in a stream),
`interleave` (which stream comes next in a lane), `packing` (documents into rows of a batch), `lane` (all of these, and
the state that resumes them), `masking`, `shards` (rows from MDS), `batch` and `loader` (torch, worker processes). Only
the last two import torch, only `shards` imports streaming.
"""
