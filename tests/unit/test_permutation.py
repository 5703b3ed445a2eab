"""The order of a stream's rows: every row exactly once an epoch, over all lanes."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbert.loader.interleave import slot
from mmbert.loader.order import StreamOrder
from mmbert.loader.permutation import permute
from mmbert.loader.randomness import derive_key, random_bits

keys = st.integers(0, 2**128 - 1)


@given(size=st.integers(1, 600), key=keys)
def test_permutation_is_a_bijection(size: int, key: int) -> None:
    assert sorted(permute(i, size, key) for i in range(size)) == list(range(size))


@given(size=st.integers(1, 10**15), key=keys, data=st.data())
def test_permutation_of_a_huge_range_stays_inside_and_keeps_indices_apart(
    size: int, key: int, data: st.DataObject
) -> None:
    indices = data.draw(st.sets(st.integers(0, size - 1), max_size=20))
    images = {permute(i, size, key) for i in indices}
    assert len(images) == len(indices)
    assert all(0 <= i < size for i in images)


def test_permutations_of_different_keys_spread_an_index_evenly() -> None:
    size, draws = 10, 5_000
    counts = np.bincount([permute(3, size, derive_key("test", k)) for k in range(draws)], minlength=size)
    # Chi-squared with 9 degrees of freedom: above 27.9 with probability 0.001.
    assert ((counts - draws / size) ** 2 / (draws / size)).sum() < 27.9


def test_permutation_refuses_an_index_outside() -> None:
    with pytest.raises(ValueError, match="outside"):
        permute(5, 5, 1)


def test_random_bits_depend_on_their_key_alone() -> None:
    first = random_bits(7, 100)
    random_bits(8, 3)
    assert np.array_equal(random_bits(7, 100), first)
    assert np.array_equal(random_bits(7, 10), first[:10])
    assert not np.array_equal(random_bits(8, 100), first)
    assert np.array_equal(first, np.random.Philox(key=7).random_raw(100))


@st.composite
def stream_orders(draw: st.DrawFn) -> tuple[StreamOrder, int, int, np.ndarray]:
    shards = draw(st.lists(st.integers(1, 9), min_size=1, max_size=8))
    begins = np.cumsum([0, *shards])
    row_begin = draw(st.integers(0, int(begins[-1]) - 1))
    rows = draw(st.integers(1, int(begins[-1]) - row_begin))
    return StreamOrder("s/l", draw(st.integers(0, 99)), row_begin, rows, begins), row_begin, rows, begins


@given(stream=stream_orders(), lanes=st.integers(1, 12), epochs=st.integers(1, 3))
def test_lanes_together_see_every_row_exactly_once_an_epoch(
    stream: tuple[StreamOrder, int, int, np.ndarray], lanes: int, epochs: int
) -> None:
    order, row_begin, rows, _ = stream
    positions = sorted(
        position for lane in range(lanes) for position in range(slot("s/l", 1, lane, lanes), rows * epochs, lanes)
    )
    assert positions == list(range(rows * epochs))
    for epoch in range(epochs):
        seen = [order.row(p) for p in positions[epoch * rows : (epoch + 1) * rows]]
        assert sorted(seen) == list(range(row_begin, row_begin + rows))


@given(stream=stream_orders())
def test_a_shard_is_used_up_before_the_next(stream: tuple[StreamOrder, int, int, np.ndarray]) -> None:
    order, _, rows, begins = stream
    shards = [int(np.searchsorted(begins, order.row(p), side="right")) for p in range(rows)]
    changes = sum(a != b for a, b in pairwise(shards))
    assert changes == len(set(shards)) - 1


@settings(max_examples=20)
@given(positions=st.lists(st.integers(0, 400), min_size=1, max_size=40))
def test_order_is_the_same_from_any_position(positions: list[int]) -> None:
    begins = np.array([0, 5, 9, 30])
    order = StreamOrder("s/l", 3, 2, 20, begins)
    for position in positions:
        assert order.row(position) == StreamOrder("s/l", 3, 2, 20, begins).row(position)


def test_epochs_and_streams_are_ordered_differently() -> None:
    begins = np.array([0, 50, 100])
    order = StreamOrder("s/l", 3, 0, 100, begins)
    first, second = [order.row(p) for p in range(100)], [order.row(p) for p in range(100, 200)]
    other = StreamOrder("s/m", 3, 0, 100, begins)
    assert first != list(range(100))
    assert first != second
    assert first != [other.row(p) for p in range(100)]


def test_epochs_order_the_shards_differently() -> None:
    """Shards of one row each, so that nothing but their order can differ."""
    order = StreamOrder("s/l", 3, 0, 12, np.arange(13))
    epochs = {tuple(order.row(p) for p in range(e * 12, e * 12 + 12)) for e in range(5)}
    assert len(epochs) == 5
