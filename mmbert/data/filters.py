"""Exact deduplication, as a datatrove step."""

from __future__ import annotations

import hashlib
from typing import Any

from datatrove.data import Document as Record
from datatrove.pipeline.filters.base_filter import BaseFilter

from mmbert.data.documents import HELD_OUT
from mmbert.data.steps.verdict import Verdict


def text_digest(language: str, text: str) -> bytes:
    """16 bytes that stand for a text within its language."""
    return hashlib.blake2b(f"{language}\0{text}".encode(), digest_size=16).digest()


class ExactDeduplication(BaseFilter):
    """Drops texts that their language has already, and training texts that equal a held-out one.

    Where the training copy came first, its digest goes into `withdrawn` and the writer takes it out again. Holds a
    digest of 16 bytes a document in memory.
    """

    name = "exact deduplication"

    def __init__(self, drop_repeated: bool, exclusion_writer: Any) -> None:
        super().__init__(exclusion_writer)
        self.drop_repeated = drop_repeated
        self.held_out: dict[bytes, bool] = {}
        self.withdrawn: set[bytes] = set()

    def filter(self, doc: Record) -> Verdict:
        digest = text_digest(doc.metadata["language"], doc.text)
        held_out = doc.metadata["split"] == HELD_OUT
        before = self.held_out.get(digest)
        self.held_out[digest] = held_out or bool(before)
        if held_out and before is False:
            self.withdrawn.add(digest)
            return True
        if before and not held_out:
            return False, "equals_held_out"
        return not (self.drop_repeated and before is not None) or (False, "duplicate")
