"""Lines of any length in bounded memory: the same rows as if they had been read whole."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Iterator

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mmbert.data.pieces import pieces_of, split_text
from mmbert.data.sources import long_json
from mmbert.data.sources.lines import Lines, decompressed
from mmbert.data.sources.long_json import LongText, parse_long
from mmbert.data.sources.reader import UnreadableError

CHARACTERS = st.characters(exclude_categories=("Cs",))
TEXT = st.text(CHARACTERS, max_size=60)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def whole(value: object) -> object:
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return value.whole() if isinstance(value, LongText) else value


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits at which generated texts are long."""
    monkeypatch.setattr(long_json, "_LONG_BYTES", 8)
    monkeypatch.setattr(long_json, "_BLOCK_BYTES", 16)


@pytest.mark.usefixtures("short_limits")
def test_long_json_is_what_a_parser_gives() -> None:
    @given(st.dictionaries(TEXT, VALUES, max_size=4), st.booleans(), st.integers(1, 40))
    def check(value: dict[str, object], ascii_only: bool, size: int) -> None:
        data = json.dumps(value, ensure_ascii=ascii_only).encode()
        assert whole(parse_long(cut(data, size))) == value

    check()


@pytest.mark.usefixtures("short_limits")
@pytest.mark.parametrize(
    "data",
    [b'{"text": "aaaaaaaaaaaaaaaaaaaaaa', b'{"text": "aaaaaaaaaaaaaaaaaa\\u12"}', b'{"text": aaaa}', b'{"a": "x"} 1'],
)
def test_long_lines_that_are_no_json_are_found(data: bytes) -> None:
    with pytest.raises(UnreadableError, match="not JSON"):
        whole(parse_long(cut(data, 7)))


@pytest.mark.usefixtures("short_limits")
def test_invalid_utf8_in_a_long_string_is_found() -> None:
    with pytest.raises(UnreadableError) as found:
        whole(parse_long(cut(b'{"text": "aaaaaaaaaaaaaaaaaaaaaa\xff\xfeaaaaaaaaaaaa"}', 7)))
    assert found.value.reason == "invalid_utf8"


@given(st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"").replace(b"\r", b""))), st.integers(1, 9),
       st.integers(1, 20))  # fmt: skip
def test_parts_of_lines_make_the_lines(content: list[bytes], size: int, limit: int) -> None:
    data = b"\n".join(content)
    lines = Lines(cut(data, size), limit)
    made, numbers, line = [], [], b""
    for part, ends in lines:
        assert len(part) <= limit + size
        line += part
        if ends:
            made.append(line)
            numbers.append(lines.number)
            line = b""
    expected = data.split(b"\n")
    assert made == (expected[:-1] if not expected[-1] else expected)
    assert numbers == list(range(1, len(made) + 1))


@given(st.text(st.sampled_from("ab \n"), max_size=300), st.integers(1, 40), st.integers(1, 60))
def test_a_text_in_parts_has_the_pieces_of_the_whole(text: str, size: int, max_characters: int) -> None:
    parts = iter([text[start : start + size] for start in range(0, len(text), size)])
    assert list(pieces_of(parts, max_characters)) == split_text(text, max_characters)


def test_what_expands_a_thousandfold_stays_small_in_memory() -> None:
    packed = zstandard.compress(b"Immer dieselbe Zeile. " * 5_000_000)
    tracemalloc.start()
    size = sum(len(part) for part, _ in Lines(decompressed(io.BytesIO(packed), "a.txt.zst"), 2**20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == 22 * 5_000_000
    assert peak < 20e6
