"""Planning of units: every part once, in order, and neither too small nor too large."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from mmbert.data.shard_units import Part, plan_units

parts_of_sources = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(0, 99), st.integers(1, 10_000)),
    unique_by=lambda p: p[:3],
    max_size=60,
)


@given(parts_of_sources, st.integers(100, 50_000))
def test_units_hold_every_part_once_in_order(drawn: list[tuple[str, str, int, int]], shard_bytes: int) -> None:
    parts = [Part(source, language, f"{number:05d}", size) for source, language, number, size in drawn]
    units = plan_units(parts, shard_bytes)
    assert [part for unit in units for part in unit.parts] == sorted(
        parts, key=lambda p: (p.source, p.language, p.path)
    )
    assert plan_units(parts[::-1], shard_bytes) == units
    for source, group in itertools.groupby(units, key=lambda u: u.source):
        own = list(group)
        assert [unit.number for unit in own] == list(range(len(own)))
        assert {part.source for unit in own for part in unit.parts} == {source}
        sizes = [sum(part.size for part in unit.parts) for unit in own]
        assert all(size >= shard_bytes / 16 for size in sizes[:-1])
        # A unit ends with the part that fills it.
        assert all(size - unit.parts[-1].size < shard_bytes * 4 for size, unit in zip(sizes, own, strict=True))
