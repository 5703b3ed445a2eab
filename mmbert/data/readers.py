"""What readers of sources share: the selection of languages, the split, and the records that they yield.

A record is a datatrove document. Its metadata: language, source, split, and `facts` (date, url, article number,
whatever the source knows). A record that stands for something unreadable also has `error`, the reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datatrove.data import Document as Record

from mmbert.data.documents import HELD_OUT, TRAIN, Document

BEGINNING = 65_536
"""Characters that decide a text's split, so that one that is read in pieces need not be held whole."""

UNDETERMINED = "und"
"""ISO 639-3 for a language that is not known: an unreadable row of a file with a column of languages."""

_EXCERPT = 200


def language_group(language: str, groups: int) -> int:
    """The group, 0 to groups - 1, that a language is worked on in, whatever other languages there are."""
    return int.from_bytes(hashlib.sha256(language.encode()).digest()[:8], "big") % groups


def is_held_out(text: str, share: float) -> bool:
    """Whether a text is among the share that is never trained on; equal beginnings always go together."""
    digest = hashlib.blake2b(text[:BEGINNING].encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


@dataclass(frozen=True)
class Selection:
    """The languages that one task of curation reads: a group's, without the reserved ones."""

    groups: int
    group: int
    reserved: frozenset[str]

    def __contains__(self, language: str) -> bool:
        return language not in self.reserved and language_group(language, self.groups) == self.group


def to_record(document: Document, held_out: bool) -> Record:
    split = HELD_OUT if held_out else TRAIN
    place = {"language": document.language, "source": document.source, "split": split}
    return Record(text=document.text, id=document.id, metadata=place | {"facts": document.metadata})


def to_document(record: Record) -> Document:
    metadata = record.metadata
    return Document(record.id, record.text, metadata["language"], metadata["source"], metadata["facts"])


def to_error_record(
    ident: str, excerpt: str, language: str | None, source: str, reason: str, facts: Mapping[str, Any]
) -> Record:
    """A record that stands for something unreadable; `ident` says file and line, `reason` is one of a few words."""
    document = Document(ident, excerpt[:_EXCERPT], language or UNDETERMINED, source, dict(facts))
    record = to_record(document, held_out=False)
    record.metadata["error"] = reason
    return record


def is_error(record: Record) -> bool:
    return "error" in record.metadata
