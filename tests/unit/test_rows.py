"""Packing documents into rows: nothing lost, order kept, and no matter how documents come in batches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmbert.data.rows import Place, Row, RowPacker, TokenBatch, wrapped_pieces

BOS, EOS = 2, 1
BEGIN = Place()
documents_of_tokens = st.lists(st.lists(st.integers(5, 99), max_size=40), max_size=30)


def make_batches(documents: Sequence[list[int]], cuts: Sequence[int]) -> list[TokenBatch]:
    """Documents in batches that end at `cuts`; a document's bytes are 10 times its tokens."""
    edges = [0, *sorted({cut % (len(documents) + 1) for cut in cuts}), len(documents)]
    batches = []
    for begin, end in itertools.pairwise(edges):
        own = documents[begin:end]
        lengths = np.array([len(d) for d in own], np.int64)
        ids = np.array([token for d in own for token in d], np.uint32)
        batches.append(TokenBatch("deu_Latn", 0, begin, ids, lengths, lengths * 10))
    return batches


def pack(
    batches: Sequence[TokenBatch], row_tokens: int, bos: int | None, eos: int | None, begin: Place = BEGIN
) -> list[Row]:
    packer = RowPacker(row_tokens)
    rows: list[Row] = []
    for batch in batches:
        pieces = wrapped_pieces(batch, row_tokens, bos, eos)
        kept = [index for index, place in enumerate(pieces.places.tolist()) if tuple(place) >= tuple(begin)]
        rows += packer.add(pieces.since(kept[0] if kept else len(pieces.lengths)))
    return [*rows, *packer.flush()]


def contents(rows: Sequence[Row]) -> list[tuple[list[int], list[int]]]:
    return [(row.tokens.tolist(), row.lengths.tolist()) for row in rows]


@given(documents_of_tokens, st.integers(3, 50), st.lists(st.integers(0, 99), max_size=4), st.booleans(), st.booleans())
def test_no_token_is_lost_and_the_order_is_kept(
    documents: list[list[int]], row_tokens: int, cuts: list[int], with_bos: bool, with_eos: bool
) -> None:
    bos, eos = (BOS if with_bos else None), (EOS if with_eos else None)
    rows = pack(make_batches(documents, cuts), row_tokens, bos, eos)
    pieces = [piece.tolist() for row in rows for piece in np.split(row.tokens, np.cumsum(row.lengths)[:-1])]
    assert all(piece[0] == BOS for piece in pieces) or not with_bos
    assert all(piece[-1] == EOS for piece in pieces) or not with_eos
    text = [piece[with_bos : len(piece) - with_eos] for piece in pieces]
    assert [token for piece in text for token in piece] == [token for d in documents for token in d]
    assert all(0 < len(row.tokens) <= row_tokens for row in rows)
    assert all(len(a.tokens) + b.lengths[0] > row_tokens for a, b in itertools.pairwise(rows))
    # A document is cut only where it must be.
    longest = row_tokens - with_bos - with_eos
    assert len(pieces) == sum(-(-len(d) // longest) for d in documents)
    assert sum(row.documents for row in rows) == len([d for d in documents if d])
    assert sum(row.text_bytes for row in rows) == 10 * sum(map(len, documents))


@given(documents_of_tokens, st.integers(3, 50), st.lists(st.integers(0, 99), max_size=4), st.integers(0, 99))
def test_rows_do_not_depend_on_batches_and_go_on_from_any_row(
    documents: list[list[int]], row_tokens: int, cuts: list[int], stop: int
) -> None:
    whole = pack(make_batches(documents, []), row_tokens, BOS, EOS)
    assert contents(pack(make_batches(documents, cuts), row_tokens, BOS, EOS)) == contents(whole)
    if whole:
        stop %= len(whole)
        rest = pack(make_batches(documents, cuts), row_tokens, BOS, EOS, begin=whole[stop].after)
        assert contents(rest) == contents(whole[stop + 1 :])


@pytest.mark.parametrize("tokens", [254, 255, 256, 65_535, 65_536])
def test_a_document_of_exactly_a_row_stays_whole(tokens: int) -> None:
    rows = pack(make_batches([[7] * tokens], []), tokens + 2, BOS, EOS)
    assert [len(row.tokens) for row in rows] == [tokens + 2]
