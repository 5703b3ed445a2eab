"""Decontamination: no training document shares a long run of words with a text that models are evaluated on.

datatrove's step of this name needs lighteval and a word tokenizer a language, takes 12 words of a language without
spaces for 12 characters, and cannot find texts that are shorter than its n-grams. Here texts are compared by their
letters and digits alone, in lower case, so that spacing, line ends and punctuation do not matter.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from datatrove.data import Document as Record
from datatrove.pipeline.filters.base_filter import BaseFilter

from mmbert.data.documents import HELD_OUT
from mmbert.data.steps.verdict import Verdict
from mmbert.data.steps.words import CHINESE, SOUTH_EAST_ASIAN

# How much of a word a character begins, in quarters: with spaces between words a whole one, of Chinese a half, of
# South-East Asian scripts a quarter, their marks nothing.
_OUTSIDE, _SPACED, _CHINESE, _SOUTH_EAST_ASIAN, _MARK = range(5)
_QUARTERS = np.array([0, 4, 2, 1, 0], np.int64)
# Letters stand in the first four planes of Unicode.
_POINTS = 0x40000
# Odd, so that its powers have inverses modulo 2**64: the golden ratio's bits.
_BASE = 0x9E3779B97F4A7C15
_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 64, 2**20

Integers = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class EvaluationText:
    """A text that models are evaluated on; `task` says where, like `demo/intent_classification`."""

    task: str
    text: str


@dataclass(frozen=True)
class _Runs:
    """Runs of words: their hashes, and the numbers of the texts that they are in, ascending."""

    hashes: Hashes
    texts: Integers


@dataclass(frozen=True)
class _Hashed:
    """Sorted hashes, and for each the number of its task."""

    hashes: Hashes
    tasks: Integers

    def first_task(self, runs: _Runs) -> dict[int, int]:
        """Number of a text -> number of the task of its first run that is here."""
        if not len(self.hashes) or not len(runs.hashes):
            return {}
        places = np.minimum(np.searchsorted(self.hashes, runs.hashes), len(self.hashes) - 1)
        hits = np.flatnonzero(self.hashes[places] == runs.hashes)[::-1]
        return dict(zip(runs.texts[hits].tolist(), self.tasks[places[hits]].tolist(), strict=True))


class ContaminationIndex:
    """Hashes of every run of `words` words of evaluation texts; shorter texts are whole, if of `min_words` or more."""

    def __init__(self, words: int, min_words: int, tasks: Sequence[str], long: _Hashed, short: _Hashed) -> None:
        self.words, self.min_words, self.tasks, self.long, self.short = words, min_words, tuple(tasks), long, short

    @classmethod
    def build(cls, texts: Iterable[EvaluationText], words: int, min_words: int) -> ContaminationIndex:
        """The index of texts, whatever their order; of several tasks with one run the first by name is told."""
        long, short = _Collected(), _Collected()
        for batch in _parts(texts):
            analysed = _Analysed([text.text for text in batch])
            runs, wholes = analysed.runs(words), analysed.wholes(min_words, words)
            apart = ~np.isin(wholes.texts, runs.texts)
            long.add(runs, batch)
            short.add(_Runs(wholes.hashes[apart], wholes.texts[apart]), batch)
        tasks = sorted({*long.tasks, *short.tasks})
        return cls(words, min_words, tasks, long.sorted(tasks), short.sorted(tasks))

    def digest(self) -> str:
        """Changes with whatever changes a verdict."""
        digest = hashlib.sha256()
        for name, array in self._arrays().items():
            digest.update(f"{name} {array.shape} {array.dtype.str}\n".encode() + array.tobytes())
        return digest.hexdigest()

    def find(self, texts: Sequence[str]) -> list[str | None]:
        """For each text the task of an evaluation text that it shares a run of words with, or has as a line."""
        analysed = _Analysed(texts)
        found = self.short.first_task(analysed.wholes(self.min_words, self.words)) if len(self.short.hashes) else {}
        found |= self.long.first_task(analysed.runs(self.words))
        return [self.tasks[found[number]] if number in found else None for number in range(len(texts))]

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {
            "sizes": np.array([self.words, self.min_words]),
            "tasks": np.array(self.tasks, np.str_),
            "long": self.long.hashes,
            "long_tasks": self.long.tasks,
            "short": self.short.hashes,
            "short_tasks": self.short.tasks,
        }


class Decontamination(BaseFilter):
    """Drops training documents that hold evaluation text (`contaminated`); their facts say of which task."""

    name = "decontamination"

    def __init__(self, index: ContaminationIndex, exclusion_writer: Any = None) -> None:
        super().__init__(exclusion_writer, batch_size=_BATCH_DOCUMENTS)
        self.index = index

    def filter(self, doc: Record) -> Verdict:
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Record]) -> list[Verdict]:
        return [verdict for part in _parts(batch) for verdict in self._filter(part)]

    def _filter(self, batch: list[Record]) -> Iterator[Verdict]:
        for record, task in zip(batch, self.index.find([record.text for record in batch]), strict=True):
            if task is None or record.metadata["split"] == HELD_OUT:
                yield True
            else:
                record.metadata["facts"]["contaminated_by"] = task
                yield False, "contaminated"


T = TypeVar("T", Record, EvaluationText)


def _parts(texts: Iterable[T]) -> Iterator[list[T]]:
    """Texts in batches of bounded size, for numpy's arrays take 50 bytes a character."""
    part: list[T] = []
    characters = 0
    for text in texts:
        if part and characters + len(text.text) > _BATCH_CHARACTERS:
            yield part
            part, characters = [], 0
        part.append(text)
        characters += len(text.text)
    if part:
        yield part


class _Collected:
    """Hashes of runs, each with the task of its text."""

    def __init__(self) -> None:
        self.tasks: dict[str, int] = {}
        self._hashes: list[Hashes] = [np.empty(0, np.uint64)]
        self._of: list[Integers] = [np.empty(0, np.int64)]

    def add(self, runs: _Runs, batch: Sequence[EvaluationText]) -> None:
        used = np.unique(runs.texts)
        numbers = np.zeros(len(batch), np.int64)
        numbers[used] = [self.tasks.setdefault(batch[text].task, len(self.tasks)) for text in used]
        self._hashes.append(runs.hashes)
        self._of.append(numbers[runs.texts])

    def sorted(self, tasks: Sequence[str]) -> _Hashed:
        """Each hash once, with the number in `tasks` of the first of its tasks."""
        places = {task: place for place, task in enumerate(tasks)}
        own = np.array([places[task] for task in self.tasks], np.int64)
        hashes = np.concatenate(self._hashes)
        of = own[np.concatenate(self._of)] if len(hashes) else np.empty(0, np.int64)
        order = np.lexsort((of, hashes))
        hashes, of = hashes[order], of[order]
        first = np.ones(len(hashes), bool)
        first[1:] = hashes[1:] != hashes[:-1]
        return _Hashed(hashes[first], of[first])


class _Analysed:
    """The words of several texts, as places in one array of all their letters and digits."""

    def __init__(self, texts: Sequence[str]) -> None:
        # In this order, for folding takes some letters apart.
        folded = [unicodedata.normalize("NFC", text.casefold()) for text in texts]
        points = np.frombuffer("\n".join(folded).encode("utf-32-le", "surrogatepass"), np.uint32)
        kinds = _kinds()[np.minimum(points, _POINTS - 1)]
        inside = kinds != _OUTSIDE
        begins = kinds == _SPACED
        begins[1:] &= kinds[:-1] != _SPACED
        begins |= (kinds == _CHINESE) | (kinds == _SOUTH_EAST_ASIAN)
        begins = np.flatnonzero(begins)
        place = np.concatenate([[0], np.cumsum(inside)])
        self.letters = int(place[-1])
        # Places of the letters that words begin with, and the quarters of words before each; then the end.
        self.starts = np.append(place[begins], self.letters)
        self.quarters = np.concatenate([[0], np.cumsum(_QUARTERS[kinds[begins]])])
        text_ends = np.cumsum([len(text) + 1 for text in folded])
        self.texts = np.searchsorted(text_ends, begins, side="right")
        self.prefix = np.concatenate(
            [np.zeros(1, np.uint64), np.cumsum(_mixed(points[inside]) * _powers(self.letters)[0])]
        )
        line_ends = np.flatnonzero(points == ord("\n"))
        # Lines as words: the first word of each, and past the last one's end.
        self.lines = np.unique(np.concatenate([[0], np.searchsorted(begins, line_ends), [len(begins)]]))

    def runs(self, words: int) -> _Runs:
        """Every run of `words` words within a text."""
        first = np.arange(len(self.quarters) - 1)
        after = np.searchsorted(self.quarters, self.quarters[:-1] + 4 * words)
        fits = after < len(self.quarters)
        first, after = first[fits], after[fits]
        same = self.texts[first] == self.texts[after - 1]
        return self._between(first[same], after[same])

    def wholes(self, min_words: int, words: int) -> _Runs:
        """Every line of `min_words` words or more, but less than `words`."""
        first, after = self.lines[:-1], self.lines[1:]
        length = self.quarters[after] - self.quarters[first]
        fits = (length >= 4 * min_words) & (length < 4 * words)
        return self._between(first[fits], after[fits])

    def _between(self, first: Integers, after: Integers) -> _Runs:
        start = self.starts[first]
        hashes = (self.prefix[self.starts[after]] - self.prefix[start]) * _powers(self.letters)[1][start]
        return _Runs(hashes, self.texts[first])


@functools.cache
def _kinds() -> npt.NDArray[np.uint8]:
    """What each character is."""
    kinds = np.zeros(_POINTS, np.uint8)
    chinese, south_east_asian = re.compile(f"[{CHINESE}]"), re.compile(f"[{SOUTH_EAST_ASIAN}]")
    for point in range(_POINTS):
        character = chr(point)
        category = unicodedata.category(character)[0]
        if category not in "LMN":
            continue
        if chinese.match(character):
            kinds[point] = _CHINESE
        elif south_east_asian.match(character):
            kinds[point] = _MARK if category == "M" else _SOUTH_EAST_ASIAN
        else:
            kinds[point] = _SPACED
    kinds[_POINTS - 1] = _OUTSIDE
    return kinds


def _mixed(points: npt.NDArray[np.uint32]) -> Hashes:
    """64 scattered bits a character: the finalizer of splitmix64 (Steele et al. 2014)."""
    bits = (points.astype(np.uint64) + np.uint64(1)) * np.uint64(_BASE)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _powers(length: int) -> tuple[Hashes, Hashes]:
    """Powers 0 to length - 1 of the base modulo 2**64, and their inverses."""
    size = 1 << max(16, (length + 1).bit_length())
    powers, inverses = _power_table(size)
    return powers[:length], inverses[: length + 1]


@functools.cache
def _power_table(size: int) -> tuple[Hashes, Hashes]:
    def powers(base: int) -> Hashes:
        factors = np.full(size, base, np.uint64)
        factors[0] = 1
        return np.multiply.accumulate(factors)

    return powers(_BASE), powers(pow(_BASE, -1, 2**64))
