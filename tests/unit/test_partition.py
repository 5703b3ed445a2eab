"""All ranks together read every document exactly once an epoch, however many ranks and lanes there are."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbert.loader.interleave import slot
from mmbert.loader.lane import Lane, LaneSettings, Schedule, StreamRows

SEED, ROW_TOKENS = 17, 20


@st.composite
def corpora(draw: st.DrawFn) -> list[StreamRows]:
    """Streams of two data sets whose languages begin and end within shards."""
    streams = []
    for source in ("web", "wiki"):
        rows = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
        shards, left = [0], sum(rows)
        while left > shards[-1]:
            shards.append(min(left, shards[-1] + draw(st.integers(1, 5))))
        begin = 0
        for number, count in enumerate(rows):
            weight = draw(st.floats(0.05, 1))
            name = f"{source}/l{number}"
            streams.append(StreamRows(name, weight, begin, count, count * ROW_TOKENS, np.array(shards)))
            begin += count
    return streams


def reads_of_rank(
    streams: list[StreamRows], lane_settings: LaneSettings, rank: int, ranks: int
) -> dict[tuple[int, int], list[int]]:
    """(lane, stream) -> rows in the order in which a rank's lane read them, until it has read each stream's number of
    rows."""
    schedule = Schedule(streams, lane_settings)
    reads: dict[tuple[int, int], list[int]] = {}
    for number in range(rank, lane_settings.lanes, ranks):
        own: dict[int, list[int]] = {stream: [] for stream in range(len(streams))}

        def read(stream: int, row: int, own: dict[int, list[int]] = own) -> tuple[np.ndarray, np.ndarray]:
            own[stream].append(row)
            return np.zeros(ROW_TOKENS, np.uint32), np.array([ROW_TOKENS // 2, ROW_TOKENS // 2])

        lane = Lane(number, schedule, read)
        while any(len(own[stream]) < of.rows for stream, of in enumerate(streams)):
            lane.next_row()
        reads |= {(number, stream): rows for stream, rows in own.items()}
    return reads


@settings(max_examples=40)
@given(streams=corpora(), ranks=st.integers(1, 4), lanes_a_rank=st.integers(1, 3))
def test_ranks_partition_every_epoch(streams: list[StreamRows], ranks: int, lanes_a_rank: int) -> None:
    lanes = ranks * lanes_a_rank
    lane_settings = LaneSettings(SEED, lanes, 16, 100, "packed")
    reads: dict[tuple[int, int], list[int]] = {}
    for rank in range(ranks):
        reads |= reads_of_rank(streams, lane_settings, rank, ranks)
    for number, stream in enumerate(streams):
        whole = range(stream.row_begin, stream.row_begin + stream.rows)
        # As many draws of each lane as the stream has rows are as many epochs as there are lanes.
        drawn = Counter(row for lane in range(lanes) for row in reads[lane, number][: stream.rows])
        assert drawn == dict.fromkeys(whole, lanes)
        # A lane's draws are every lanes-th position, from its slot: in order of position, epoch follows epoch.
        at = {
            slot(stream.name, SEED, lane, lanes) + draw * lanes: row
            for lane in range(lanes)
            for draw, row in enumerate(reads[lane, number][: stream.rows])
        }
        assert sorted(at) == list(range(lanes * stream.rows))
        for epoch in range(lanes):
            rows = [at[epoch * stream.rows + index] for index in range(stream.rows)]
            assert sorted(rows) == list(whole)
