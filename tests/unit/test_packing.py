"""Cutting documents and packing pieces: nothing lost, nothing doubled, no row too long, nobody waits for ever."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbert.loader.lane import Lane, LaneSettings, Schedule, StreamRows
from mmbert.loader.packing import choose, cut
from mmbert.loader.state import LoaderState


@given(documents=st.lists(st.integers(0, 90), max_size=20), longest=st.integers(1, 40))
def test_cut_keeps_every_token_in_order(documents: list[int], longest: int) -> None:
    begins, lengths = cut(np.array(documents, np.int64), longest)
    covered = [t for b, n in zip(begins.tolist(), lengths.tolist(), strict=True) for t in range(b, b + n)]
    assert covered == list(range(sum(documents)))
    assert all(0 < n <= longest for n in lengths)
    ends = set(np.cumsum(documents).tolist())
    assert ends - {0} <= set((begins + lengths).tolist())  # no piece crosses a document's end


@given(lengths=st.lists(st.integers(1, 30), max_size=60), room=st.integers(30, 60))
def test_chosen_pieces_fit_and_leave_no_room_for_another(lengths: list[int], room: int) -> None:
    chosen = choose(np.array(lengths, np.int64), room).tolist()
    assert len(set(chosen)) == len(chosen)
    used = sum(lengths[i] for i in chosen)
    assert used <= room
    left = [n for i, n in enumerate(lengths) if i not in chosen]
    assert all(n > room - used for n in left)
    assert not lengths or 0 in chosen  # the oldest never waits


def test_any_document_fits_into_the_smallest_microbatch() -> None:
    """A document is cut at the sequence length, and a microbatch is one row or more: it always holds a document."""
    corpus = Corpus([[[1_000], [70], [64]]])
    lane = _lane(corpus, buffer_tokens=0, width=64)
    rows = [lane.next_row() for _ in range(3 * 19)]  # 16 pieces of the long one, 2 and 1
    assert max(len(row.tokens) for row in rows) == 64
    seen = Counter(token for row in rows for token in row.tokens.tolist())
    assert set(seen) == set(range(1_134))


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


@settings(max_examples=60)
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

    schedule_streams = corpus.streams([1.0 + i for i in range(len(corpus.documents))])
    lane = Lane(1, Schedule(schedule_streams, lane_settings), read)
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
    # A lane that refills only when it is empty gives out what waits, and that is all that was not yet given out.
    waiting = drawn - emitted
    without_buffer = Schedule(schedule_streams, LaneSettings(3, 2, width, 0, packing))  # type: ignore[arg-type]
    drain = Lane(1, without_buffer, corpus.read, state)
    drained: Counter[int] = Counter()
    while drained.total() < waiting.total():
        drained.update(drain.next_row().tokens.tolist())
    assert drained == waiting


def _lane(corpus: Corpus, buffer_tokens: int, width: int = 64, seed: int = 3) -> Lane:
    streams = corpus.streams([1.0] * len(corpus.documents))
    return Lane(0, Schedule(streams, LaneSettings(seed, 1, width, buffer_tokens, "packed")), corpus.read)


@pytest.mark.parametrize("row", [[50] + [3] * 20, [3] + [50] * 4, [60, 60, 60, 5]])
def test_no_piece_starves(row: list[int]) -> None:
    """Pieces that never fit beside others, or that others always fit better than, still come in their time."""
    corpus, buffer_tokens, width = Corpus([[row] * 400]), 500, 64
    drawn_at: dict[int, int] = {}
    emitted = 0

    def read(stream: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        tokens, lengths = corpus.read(stream, number)
        drawn_at.update(dict.fromkeys(tokens.tolist(), emitted))
        return tokens, lengths

    settings_ = LaneSettings(3, 1, width, buffer_tokens, "packed")
    lane = Lane(0, Schedule(corpus.streams([1.0]), settings_), read)
    longest = 0
    for emitted in range(400):  # `read` looks at it
        longest = max(longest, *(emitted - drawn_at.pop(t) for t in lane.next_row().tokens.tolist()))
    # Before it come at most what waited, what is drawn within the buffer's length after it, and a row; each batch row
    # holds a long piece at least.
    assert longest <= (2 * buffer_tokens + sum(row)) // 50
    assert emitted - min(drawn_at.values()) <= (2 * buffer_tokens + sum(row)) // 50


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


@settings(max_examples=60)
@given(corpus=corpora, width=st.integers(8, 40), buffer_tokens=st.integers(0, 300), saves=st.sets(st.integers(1, 79)))
def test_a_lane_resumes_anywhere_in_any_epoch(corpus: Corpus, width: int, buffer_tokens: int, saves: set[int]) -> None:
    """Through bytes, as in a checkpoint. 80 rows of batch are several epochs of most of these corpora."""
    schedule = Schedule(
        corpus.streams([1.0 + i for i in range(len(corpus.documents))]),
        LaneSettings(3, 2, width, buffer_tokens, "packed"),
    )
    straight = Lane(1, schedule, corpus.read)
    resumed = Lane(1, schedule, corpus.read)
    for number in range(80):
        if number in saves:
            saved = LoaderState("", {1: resumed.state()}).to_bytes()
            resumed = Lane(1, schedule, corpus.read, LoaderState.from_bytes(saved).lanes[1])
        a, b = straight.next_row(), resumed.next_row()
        assert np.array_equal(a.tokens, b.tokens)
        assert np.array_equal(a.lengths, b.lengths)
        assert np.array_equal(a.streams, b.streams)


def test_lanes_share_an_epoch_without_repeating_a_row() -> None:
    corpus = Corpus([[[7, 9, 4]] * 120, [[20]] * 120])
    schedule = Schedule(corpus.streams([1.0, 1.0]), LaneSettings(3, 3, 40, 200, "packed"))
    seen: Counter[int] = Counter()

    def read(stream: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        seen[row] += 1
        return corpus.read(stream, row)

    lanes = [Lane(number, schedule, read) for number in range(3)]
    while seen.total() < 200:
        for lane in lanes:
            lane.next_row()
    assert set(seen.values()) == {1}
