"""Cutting documents and packing pieces: nothing lost, nothing doubled, no row too long, nobody waits for ever."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbert.loader.lane import Lane, LaneSettings, Schedule, StreamRows
from mmbert.loader.packing import choose, cut


@given(documents=st.lists(st.integers(0, 90), max_size=20), longest=st.integers(1, 40))
def test_cut_keeps_every_token_in_order(documents: list[int], longest: int) -> None:
    begins, lengths = cut(np.array(documents, np.int64), longest)
    covered = [t for b, n in zip(begins.tolist(), lengths.tolist(), strict=True) for t in range(b, b + n)]
    assert covered == list(range(sum(documents)))
    assert all(0 < n <= longest for n in lengths)
    ends = set(np.cumsum(documents).tolist())
    assert ends - {0} <= set((begins + lengths).tolist())  # no piece crosses a document's end


@given(lengths=st.lists(st.integers(0, 30), max_size=60), room=st.integers(30, 60))
def test_chosen_pieces_fit_and_leave_no_room_for_another(lengths: list[int], room: int) -> None:
    chosen = choose(np.array(lengths, np.int64), room)
    assert len(set(chosen)) == len(chosen)
    assert all(lengths[i] > 0 for i in chosen)
    used = sum(lengths[i] for i in chosen)
    assert used <= room
    left = [n for i, n in enumerate(lengths) if n and i not in chosen]
    assert all(n > room - used for n in left)
    if any(lengths):
        assert next(i for i, n in enumerate(lengths) if n) in chosen  # the oldest never waits


ROW_TOKENS = 64


class Corpus:
    """Rows whose tokens are all different, so that each can be followed."""

    def __init__(self, documents: list[list[list[int]]]) -> None:
        self.documents = documents
        self.begins = np.cumsum([0, *(len(s) for s in documents)])
        sizes = [sum(row) for stream in documents for row in stream]
        self.first_token = np.cumsum([0, *sizes])

    def streams(self, weights: list[float]) -> list[StreamRows]:
        return [
            StreamRows(f"s/{i}", w, int(self.begins[i]), len(rows), sum(map(sum, rows)), self.begins)
            for i, (rows, w) in enumerate(zip(self.documents, weights, strict=True))
        ]

    def read(self, stream: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        lengths = np.array(self.documents[stream][row - int(self.begins[stream])], np.int64)
        first = int(self.first_token[row])
        return np.arange(first, first + lengths.sum(), dtype=np.uint32), lengths


documents = st.lists(st.integers(1, 50), min_size=1, max_size=8)
corpora = st.lists(st.lists(documents, min_size=1, max_size=6), min_size=1, max_size=4).map(Corpus)


@settings(deadline=None, max_examples=60)
@given(
    corpus=corpora,
    width=st.integers(8, 40),
    buffer_tokens=st.integers(0, 300),
    packing=st.sampled_from(["packed", "unpacked"]),
    rows=st.integers(1, 60),
)
def test_what_was_drawn_is_emitted_or_waits_exactly_once(
    corpus: Corpus, width: int, buffer_tokens: int, packing: str, rows: int
) -> None:
    lane_settings = LaneSettings(3, 2, width, buffer_tokens, packing)  # type: ignore[arg-type]
    drawn: Counter[int] = Counter()

    def read(stream: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        tokens, lengths = corpus.read(stream, row)
        drawn.update(tokens.tolist())
        return tokens, lengths

    schedule = Schedule(corpus.streams([1.0 + i for i in range(len(corpus.documents))]), lane_settings)
    lane = Lane(1, schedule, read)
    emitted: Counter[int] = Counter()
    for _ in range(rows):
        row = lane.next_row()
        assert 0 < len(row.tokens) <= width
        assert row.lengths.sum() == len(row.tokens)
        if packing == "unpacked":
            assert len(row.lengths) == 1
        for piece, stream in zip(np.split(row.tokens, np.cumsum(row.lengths)[:-1]), row.streams, strict=True):
            assert (np.diff(piece.astype(int)) == 1).all()  # a segment is one piece of one document
            first, last = corpus.first_token[corpus.begins[[stream, stream + 1]]]
            assert first <= piece[0] < last
        emitted.update(row.tokens.tolist())
    state = lane.state()
    assert drawn.total() == state.consumed.sum()
    # Empty the lane: what waits, and then only that, makes up the difference.
    waiting = drawn - emitted
    lane._settings = LaneSettings(3, 2, width, 0, packing)  # type: ignore[arg-type]
    lane._schedule.settings = lane._settings
    for _ in range(waiting.total()):
        if not lane._waiting_tokens:
            break
        waiting.subtract(lane.next_row().tokens.tolist())
    assert not +waiting
    assert not -waiting


def _lane(corpus: Corpus, buffer_tokens: int, width: int = 64, seed: int = 3) -> Lane:
    streams = corpus.streams([1.0] * len(corpus.documents))
    return Lane(0, Schedule(streams, LaneSettings(seed, 1, width, buffer_tokens, "packed")), corpus.read)


def test_a_piece_waits_only_a_bounded_time() -> None:
    """One long piece among many short ones that always fit better."""
    corpus = Corpus([[[50] + [3] * 20] * 40])
    lane = _lane(corpus, buffer_tokens=500)
    last: dict[int, int] = {}
    for number in range(200):
        row = lane.next_row()
        clock = int(lane.state().consumed.sum())
        for token in row.tokens.tolist():
            last[token] = number
        # At most the buffer and one row are ahead of what the lane has emitted.
        assert clock - sum(1 for _ in last) - 500 <= 110 or number > 60


@pytest.mark.parametrize("width", [256, 512])
def test_padding_of_short_documents_is_below_three_percent(width: int) -> None:
    """Lengths like the demo's: mean 45 tokens, log-normal."""
    rng = np.random.default_rng(0)
    corpus = Corpus(
        [[np.maximum(3, rng.lognormal(3.5, 0.8, 100)).astype(int).tolist() for _ in range(20)] for _ in range(4)]
    )
    lane = _lane(corpus, buffer_tokens=16_384, width=width)
    tokens = sum(len(lane.next_row().tokens) for _ in range(500))
    assert 1 - tokens / (500 * width) < 0.03


def test_a_batch_row_mixes_streams() -> None:
    """Rows of one language each; with a buffer of several rows, most batch rows hold several languages."""
    corpus = Corpus([[[8] * 32] * 10 for _ in range(8)])
    lane = _lane(corpus, buffer_tokens=2_048)
    mixed = [len(set(lane.next_row().streams.tolist())) for _ in range(100)]
    assert np.mean(mixed) > 3


def test_state_is_the_same_however_the_lane_got_there() -> None:
    corpus = Corpus([[[5, 9, 33, 2]] * 7, [[50, 4]] * 5])
    schedule = Schedule(corpus.streams([1, 2]), LaneSettings(3, 2, 40, 200, "packed"))
    straight = Lane(0, schedule, corpus.read)
    resumed = Lane(0, schedule, corpus.read)
    for _ in range(60):
        assert np.array_equal(straight.next_row().tokens, resumed.next_row().tokens)
        resumed = Lane(0, schedule, corpus.read, resumed.state())
        a, b = straight.state(), resumed.state()
        assert a.emitted == b.emitted
        for name in ("consumed", "draws", "open_rows", "waiting"):
            assert np.array_equal(getattr(a, name), getattr(b, name))
