"""Masking of e-mail and IP addresses with datatrove's patterns."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from datatrove.data import Document as Record
from datatrove.pipeline.formatters import PIIFormatter

from mmbert.recipe.languages import CODE
from mmbert.recipe.schema import PersonalData

# An IP address holds these three characters; looking for them first is much faster than datatrove's pattern.
_DIGIT_DOT_DIGIT = re.compile(r"[0-9]\.[0-9]")
_NO_SPACE_BEFORE = re.compile(r"\S*\Z")
_NO_SPACE_AFTER = re.compile(r"\S*")
# RFC 5321 allows 64 characters before the @ and 255 after it.
_REACH = 320


class MaskPersonalData(PIIFormatter):
    """PIIFormatter with settings, in time linear in the text, and independent of the documents before.

    datatrove takes its replacements in turn over all documents that a process sees, so a text would depend on how work
    was divided; here every document starts with the first. Its e-mail pattern needs quadratic time on long runs
    without spaces, such as base64; here it gets the run around each @, of at most 320 characters on either side.
    """

    def __init__(self, settings: PersonalData) -> None:
        super().__init__(
            remove_emails=settings.emails,
            remove_ips=settings.ip_addresses,
            email_replacement=settings.email_replacements,
            ip_replacement=settings.ip_replacements,
        )

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Record]:  # noqa: ARG002
        for record in data:
            with self.track_time():
                record.text = self.mask(record.text, ip_addresses=record.metadata["language"] != CODE)
            yield record

    def mask(self, text: str, ip_addresses: bool = True) -> str:
        for replacer in (self.emails_replacer, self.ip_replacer):
            replacer._replace_i = 0
        if self.remove_emails and "@" in text:
            text = self._mask_emails(text)
        if self.remove_ips and ip_addresses and _DIGIT_DOT_DIGIT.search(text):
            text = str(self.ip_replacer.replace(text))
        return text

    def _mask_emails(self, text: str) -> str:
        pieces = []
        done = 0
        while (at := text.find("@", done)) >= 0:
            start = at - len(_NO_SPACE_BEFORE.search(text[max(done, at - _REACH) : at])[0])  # type: ignore[index]
            end = _NO_SPACE_AFTER.match(text, at, at + 1 + _REACH).end()  # type: ignore[union-attr]
            pieces += [text[done:start], self.emails_replacer.replace(text[start:end])]
            done = end
        return "".join([*pieces, text[done:]])
