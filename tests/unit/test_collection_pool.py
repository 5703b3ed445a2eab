"""Requests in a pool: all of them, in order, and none more once the collection may not go on."""

from __future__ import annotations

import pytest

from mmbert.collection.pool import at_once
from mmbert.marks import LostError


def test_each_item_is_done_and_a_lost_ticket_stops_it() -> None:
    asked: list[int] = []
    assert at_once(lambda item: item * 2, range(1000), lambda: asked.append(1)) == [2 * item for item in range(1000)]
    assert len(asked) == 10
    done: list[int] = []

    def go_on() -> None:
        if done:
            raise LostError("stood still")

    with pytest.raises(LostError):
        at_once(done.append, range(1000), go_on)
    assert len(done) == 100
