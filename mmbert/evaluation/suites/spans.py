"""Answers as spans of a context that may be longer than the model's window.

A question and its context become one or more windows that overlap; a model gives each token a start and an end logit;
the best span over all windows is the answer. Every question has an answer (SQuAD v1.1): none is never predicted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mmbert.errors import UserError

FloatArray = npt.NDArray[np.float32]
QUESTION_TOKENS = 64
"""Longer questions are cut, as in BERT's SQuAD code."""


@dataclass(frozen=True)
class Question:
    """A question about a context; `answers` are the accepted texts, `starts` the characters where they begin."""

    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Question:
        """A row of SQuAD's schema: id, question, context, answers {text, answer_start}."""
        answers = row["answers"]
        texts, starts = tuple(answers["text"]), tuple(int(n) for n in answers["answer_start"])
        return cls(str(row["id"]), str(row["question"]).strip(), str(row["context"]), texts, starts)

    @property
    def aligned(self) -> bool:
        """Whether the first answer stands where the data say; a model cannot learn from others."""
        return bool(self.answers) and self.context.startswith(self.answers[0], self.starts[0])


@dataclass(frozen=True)
class Window:
    """One window [T] of question number `question`: ids, and each context token's characters (begin, end).

    `offsets` is [T, 2] and negative for tokens outside the context. `start` and `end` are the tokens of the first
    answer, or 0 and 0 (the first token of all) where the window does not hold it whole.
    """

    question: int
    input_ids: tuple[int, ...]
    offsets: npt.NDArray[np.int64]
    start: int = 0
    end: int = 0


@dataclass(frozen=True)
class Span:
    """A candidate answer: its text and the sum of its start and end logit."""

    text: str
    score: float


def windows(tokenizer: Any, questions: Sequence[Question], max_length: int, stride: int) -> list[Window]:
    """The windows of all questions, in order. Neighbours have `stride` tokens of the context in common.

    Raises UserError where a question leaves the context no more than `stride` tokens of `max_length`.
    """
    found: list[Window] = []
    special = tokenizer.num_special_tokens_to_add(pair=True)
    for number, question in enumerate(questions):
        text, tokens = _cut(tokenizer, question.question)
        # The tokenizer would end in a panic.
        if max_length - special - tokens <= stride:
            raise UserError(
                f"max_length {max_length}, stride {stride}: a question of {tokens} tokens leaves its context "
                f"{max(0, max_length - special - tokens)}; set max_length to more than {special + tokens + stride}"
            )
        encoded = tokenizer(
            text,
            question.context,
            max_length=max_length,
            truncation="only_second",
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        for index, ids in enumerate(encoded["input_ids"]):
            offsets = np.array(encoded["offset_mapping"][index], np.int64).reshape(-1, 2)
            offsets[[part != 1 for part in encoded.sequence_ids(index)]] = -1
            start, end = _tokens_of(question, offsets)
            found.append(Window(number, tuple(ids), offsets, start, end))
    return found


def _cut(tokenizer: Any, text: str) -> tuple[str, int]:
    """A question and its number of tokens, both cut at QUESTION_TOKENS."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if len(offsets) <= QUESTION_TOKENS:
        return text, len(offsets)
    return text[: offsets[QUESTION_TOKENS - 1][1]], QUESTION_TOKENS


def _tokens_of(question: Question, offsets: npt.NDArray[np.int64]) -> tuple[int, int]:
    """The first and last token that hold characters of the answer. A token may begin with the space before it."""
    inside = np.flatnonzero(offsets[:, 0] >= 0)
    if not question.aligned or not len(inside):
        return 0, 0
    begin, end = question.starts[0], question.starts[0] + len(question.answers[0])
    if offsets[inside[0], 0] > begin or offsets[inside[-1], 1] < end:
        return 0, 0
    holding = inside[(offsets[inside, 1] > begin) & (offsets[inside, 0] < end)]
    return (int(holding[0]), int(holding[-1])) if len(holding) else (0, 0)


def best_spans(
    questions: Sequence[Question],
    windows: Sequence[Window],
    logits: Sequence[tuple[FloatArray, FloatArray]],
    *,
    n_best: int,
    max_answer_tokens: int,
) -> list[list[Span]]:
    """The `n_best` highest spans of each question over all its windows, best first; `logits` are start and end, [T].

    A span lies within the context, is at most `max_answer_tokens` long and not only white space. A question of whose
    context no window holds a token gets one empty span.
    """
    found: list[dict[str, float]] = [{} for _ in questions]
    for window, (start, end) in zip(windows, logits, strict=True):
        context = questions[window.question].context
        for first, last, score in _spans(window, start, end, n_best, max_answer_tokens):
            text = context[window.offsets[first, 0] : window.offsets[last, 1]].strip()
            if text and score > found[window.question].get(text, -np.inf):
                found[window.question][text] = score
    ranked = [sorted(texts.items(), key=lambda item: (-item[1], item[0]))[:n_best] for texts in found]
    return [[Span(text, score) for text, score in spans] or [Span("", 0.0)] for spans in ranked]


def _spans(
    window: Window, start: FloatArray, end: FloatArray, n_best: int, max_answer_tokens: int
) -> list[tuple[int, int, float]]:
    """The highest (first token, last token, score) of one window, from all spans that are allowed."""
    inside = np.flatnonzero(window.offsets[:, 0] >= 0)
    if not len(inside):
        return []
    low, high = inside[0], inside[-1] + 1
    ends = np.concatenate([end[low:high], np.full(max_answer_tokens - 1, -np.inf, np.float32)])
    scores = start[low:high, None] + np.lib.stride_tricks.sliding_window_view(ends, max_answer_tokens)
    flat = scores.ravel()
    taken = np.argpartition(-flat, min(n_best, len(flat)) - 1)[:n_best]
    first, length = np.unravel_index(taken[np.isfinite(flat[taken])], scores.shape)
    return [(int(low + f), int(low + f + n), float(scores[f, n])) for f, n in zip(first, length, strict=True)]
