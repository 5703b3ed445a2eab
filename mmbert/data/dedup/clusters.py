"""Band hashes to clusters of near duplicates: a sort a band, and a union-find over whole arrays."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

from mmbert.data.dedup.minhash import NO_SHINGLE
from mmbert.data.dedup.shingles import Ints, UInt64s

_CHUNK_DOCUMENTS = 2**22


def duplicate_clusters(hashes: UInt64s, parts: int = 1) -> Ints:
    """For each document the index of the first document of its cluster, int64 [documents]; its own if it has no other.

    `hashes` is what `band_hashes` gives, [documents, bands], in memory or memory-mapped. Documents are in one cluster
    where a chain of equal band hashes joins them. Works on one band and one of `parts` ranges of hashes at a time:
    beside the result it takes about 40 bytes x documents / parts.
    """
    first = np.arange(len(hashes))
    for band in range(hashes.shape[1]):
        for part in range(parts):
            columns = (hashes[i : i + _CHUNK_DOCUMENTS, band] for i in range(0, len(hashes), _CHUNK_DOCUMENTS))
            join(first, duplicate_pairs(columns, part, parts))
    settle(first)
    return first


def duplicate_pairs(chunks: Iterable[UInt64s], part: int = 0, parts: int = 1) -> Ints:
    """Pairs of documents with an equal hash in one band, int64 [pairs, 2], the earlier one first.

    `chunks` are the hashes of this band, in the documents' order. Of n documents with an equal hash come n - 1 pairs,
    each with the next one. Only hashes in part number `part` of `parts` equal ranges are looked at, so that the pairs
    of all parts together are those of the whole.
    """
    if not 0 <= part < parts:
        raise ValueError(f"part {part} does not exist; with {parts} parts it is 0 to {parts - 1}")
    documents, hashes = _in_range(chunks, part * 2**64 // parts, (part + 1) * 2**64 // parts - 1)
    repeated = _repeated(hashes)
    # Stable: the documents of a hash stay in their order.
    order = repeated[np.argsort(hashes[repeated], kind="stable")]
    equal = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    return np.stack([documents[order[equal]], documents[order[equal + 1]]], axis=1)


def join(first: Ints, pairs: Ints) -> None:
    """Put the documents of each pair into one cluster, in place; `settle` must follow the last call.

    `first[i]` is a document of i's cluster that is no later than i; at the start `np.arange(documents)`.
    """
    heads = _heads(first, pairs)
    heads = heads[heads[:, 0] != heads[:, 1]]
    if not len(heads):
        return
    nodes, edges = np.unique(heads, return_inverse=True)
    edges = edges.reshape(heads.shape)
    graph = coo_array((np.ones(len(edges), np.bool_), (edges[:, 0], edges[:, 1])), shape=(len(nodes), len(nodes)))
    _, component = connected_components(graph, directed=False)
    # Nodes are sorted, so that a component's first is its earliest document.
    _, earliest = np.unique(component, return_index=True)
    first[nodes] = nodes[earliest[component]]


def settle(first: Ints) -> None:
    """Make each document point to the first one of its cluster, in place."""
    for begin in range(0, len(first), _CHUNK_DOCUMENTS):
        chunk = first[begin : begin + _CHUNK_DOCUMENTS]
        chunk[:] = _heads(first, chunk)


def _heads(first: Ints, documents: Ints) -> Ints:
    heads = first[documents]
    while not np.array_equal(heads, documents):
        documents, heads = heads, first[heads]
    return heads


def _in_range(chunks: Iterable[UInt64s], low: int, high: int) -> tuple[Ints, UInt64s]:
    """Documents whose hash is in [low, high], without those that have no shingle, and these hashes."""
    documents, hashes, begin = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], 0
    for chunk in chunks:
        inside = np.flatnonzero((chunk >= np.uint64(low)) & (chunk <= np.uint64(high)) & (chunk != NO_SHINGLE))
        documents.append(inside + begin)
        hashes.append(chunk[inside])
        begin += len(chunk)
    return np.concatenate(documents), np.concatenate(hashes)


def _repeated(hashes: UInt64s) -> NDArray[np.intp]:
    """Indices, without order, of at least all hashes that occur more than once.

    Most occur once. Sorting plain words, a hash's high bits over its index, is four times as fast as an argsort of all.
    """
    bits = len(hashes).bit_length()
    low = np.uint64(2**bits - 1)
    keys = hashes & ~low
    keys |= np.arange(len(hashes), dtype=np.uint64)
    keys.sort()
    same = (keys[1:] ^ keys[:-1]) <= low
    either = np.zeros(len(hashes), np.bool_)
    either[1:] = same
    either[:-1] |= same
    # An index fits an intp, and in order equal hashes keep theirs.
    return np.sort((keys[either] & low).astype(np.intp))
