"""Token shares: what a lane draws follows the weights, whatever the lengths of rows."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbert.loader.interleave import Interleaver, shares, slot

weights = st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=12)


def _draw(weight: list[float], row_lengths: list[list[int]], lane: int, lanes: int, tokens: int) -> np.ndarray:
    """Consumed tokens a stream after drawing at least `tokens`; stream i's rows have row_lengths[i] in turn."""
    names = [f"s/{i}" for i in range(len(weight))]
    streams = shares(names, weight, [sum(r) // len(r) for r in row_lengths])
    consumed, draws = np.zeros(len(weight), np.int64), [0] * len(weight)
    interleaver = Interleaver(streams, 5, lane, lanes, consumed)
    while consumed.sum() < tokens:
        i = interleaver.next
        consumed[i] += row_lengths[i][draws[i] % len(row_lengths[i])]
        draws[i] += 1
        interleaver.advance(int(consumed[i]))
    return consumed


@settings(max_examples=50)
@given(weight=weights, data=st.data(), lane=st.integers(0, 3))
def test_each_stream_stays_within_a_row_or_two_of_its_share(
    weight: list[float], data: st.DataObject, lane: int
) -> None:
    rows = [data.draw(st.lists(st.integers(1, 200), min_size=1, max_size=4)) for _ in weight]
    consumed = _draw(weight, rows, lane, 4, 5_000)
    share = np.array(weight) / sum(weight)
    longest = np.array([max(r) for r in rows])
    # Virtual time is the same for all streams up to one row of each and its offset; what all of them are out by is
    # shared among the streams by their weights.
    bound = 2 * longest + share * 2 * longest.sum()
    assert (abs(consumed - share * consumed.sum()) <= bound + 1).all()


def test_shares_are_exact_over_a_long_run() -> None:
    weight = [0.5, 0.3, 0.15, 0.049, 0.001]
    consumed = _draw(weight, [[700], [90, 110], [1000], [13], [400]], 2, 8, 3_000_000)
    assert np.allclose(consumed / consumed.sum(), weight, atol=5e-4)


def test_a_stream_smaller_than_a_lane_s_turn_has_its_expectation_over_all_lanes() -> None:
    """64 lanes draw 10,000 tokens each; a stream of share 0.001 in rows of 1,000 comes to 640: one lane."""
    lanes = 64
    names, weight, lengths = ["s/big", "s/tiny"], [0.999, 0.001], [100, 1_000]
    for seed in range(20):
        drawn = 0
        for lane in range(lanes):
            consumed = np.zeros(2, np.int64)
            interleaver = Interleaver(shares(names, weight, lengths), seed, lane, lanes, consumed)
            while consumed[0] < 10_000:
                i = interleaver.next
                consumed[i] += lengths[i]
                interleaver.advance(int(consumed[i]))
            drawn += int(consumed[1])
        assert drawn in {0, 1_000}


def test_lanes_do_not_all_start_with_the_same_stream() -> None:
    names, weight = [f"s/{i}" for i in range(10)], [0.1] * 10
    streams = shares(names, weight, [100] * 10)
    first = {Interleaver(streams, 1, lane, 64, np.zeros(10, np.int64)).next for lane in range(64)}
    assert len(first) > 5


@given(lanes=st.integers(1, 40), seed=st.integers(0, 9))
def test_slots_of_a_stream_are_a_rotation_of_the_lanes(lanes: int, seed: int) -> None:
    slots = [slot("s/l", seed, lane, lanes) for lane in range(lanes)]
    assert sorted(slots) == list(range(lanes))
    assert all((b - a) % lanes in (0, 1) for a, b in pairwise(slots))


@settings(max_examples=25)
@given(weight=weights, stop=st.integers(0, 3_000))
def test_schedule_goes_on_from_consumed_tokens_alone(weight: list[float], stop: int) -> None:
    names, lengths = [f"s/{i}" for i in range(len(weight))], [50 + 7 * i for i in range(len(weight))]
    streams = shares(names, weight, lengths)
    consumed = np.zeros(len(weight), np.int64)
    running = Interleaver(streams, 5, 1, 4, consumed)
    while consumed.sum() < stop:
        i = running.next
        consumed[i] += lengths[i]
        running.advance(int(consumed[i]))
    resumed = Interleaver(streams, 5, 1, 4, consumed.copy())
    for _ in range(30):
        i = running.next
        assert resumed.next == i
        consumed[i] += lengths[i]
        running.advance(int(consumed[i]))
        resumed.advance(int(consumed[i]))
