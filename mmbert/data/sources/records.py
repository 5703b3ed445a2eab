"""From rows to records: the mapping of fields, long texts in pieces, the split, and what happens on errors."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from datatrove.data import Document as Record

from mmbert.data.documents import Document
from mmbert.data.pieces import pieces_of
from mmbert.data.readers import Selection, is_held_out, to_error_record, to_record
from mmbert.data.sources.long_json import LongText
from mmbert.data.sources.reader import Unit, UnreadableError
from mmbert.data.sources.rows import Columns, Row, value_at
from mmbert.errors import UserError
from mmbert.recipe.languages import language_problem
from mmbert.recipe.schema import FilesSource, HubSource
from mmbert.recipe.templates import fill, template_fields

_OPTIONAL_DEFAULTS = {"id_field": "id", "date_field": "date", "url_field": "url"}


@dataclass(frozen=True)
class RecordMaker:
    """Makes records of the rows of one source."""

    name: str
    settings: FilesSource | HubSource
    max_characters: int

    def columns(self) -> Columns:
        """What a table must have, and what is taken where it has it."""
        settings = self.settings
        template = settings.text_template
        required = template_fields(template) if template else [settings.text_field]
        optional: list[str] = []
        for key, default in _OPTIONAL_DEFAULTS.items():
            path = getattr(settings, key)
            if path is not None:
                (optional if path == default else required).append(path)
        language = [self._language_field] if self._language_field else []
        return Columns((*required, *settings.metadata_fields, *language), tuple(optional))

    def records(
        self, unit: Unit, where: str, rows: Iterable[Row | UnreadableError], selection: Selection
    ) -> Iterator[Record]:
        """The records of a unit's rows that are selected. `where` names its file in messages.

        Raises UserError for what cannot be read, unless `on_error` is `drop`, and always for a language that is not
        known.
        """
        for row in rows:
            try:
                if isinstance(row, UnreadableError):
                    raise row
                yield from self._documents(unit, where, row, selection)
            except UnreadableError as problem:
                place = row.where or problem.where
                found = self._unreadable(
                    unit, where, UnreadableError(problem.reason, problem.detail, place, problem.excerpt)
                )
                # Of an unknown language, it is told by one group.
                if found.metadata["language"] in selection:
                    yield found

    @property
    def _language_field(self) -> str | None:
        return self.settings.language_field if isinstance(self.settings, FilesSource) else None

    def _unreadable(self, unit: Unit, where: str, problem: UnreadableError) -> Record:
        if self.settings.on_error == "stop":
            raise UserError(
                f"source {self.name}: {where}, {problem}. Mend it, or set on_error: drop to go on without it"
            ) from problem
        language = unit.languages[0] if unit.languages and len(unit.languages) == 1 else None
        ident = f"{self.name}/{unit.name}/{problem.where}"
        facts = {"where": f"{where}, {problem.where}", "detail": problem.detail}
        return to_error_record(ident, problem.excerpt, language, self.name, problem.reason, facts)

    def _documents(self, unit: Unit, where: str, row: Row, selection: Selection) -> Iterator[Record]:
        language = unit.languages[0] if unit.languages else self._language(f"{where}, {row.where}", row.values)
        if language not in selection:
            return
        text = self._text(row.values)
        facts = self._facts(row.values)
        parts = text.parts if isinstance(text, LongText) else iter([text])
        beginning = next(parts, "")
        held_out = is_held_out(beginning, self.settings.held_out_share)
        pieces = pieces_of(itertools.chain([beginning], parts), self.max_characters)
        for ident, piece in _named(self._ident(unit, row, language), pieces):
            yield to_record(Document(ident, piece, language, self.name, facts), held_out)

    def _language(self, where: str, row: Mapping[str, Any]) -> str:
        field = self._language_field
        if field is None:
            raise ValueError(f"the language of {where} is not known")
        code = value_at(row, field)
        if not isinstance(code, str):
            raise _missing(row, field, "language_field", "language")
        language = self.settings.language_codes.get(code, code)
        if problem := language_problem(language):
            raise UserError(f"source {self.name}: {where}, field '{field}': {problem}. Or map it with language_codes")
        return language

    def _ident(self, unit: Unit, row: Row, language: str) -> str:
        field = self.settings.id_field
        given = None if field is None else value_at(row.values, field)
        if given is None and field not in (None, _OPTIONAL_DEFAULTS["id_field"]):
            raise _missing(row.values, str(field), "id_field", "id")
        return f"{self.name}/{unit.name}/{row.number}" if given is None else f"{self.name}/{language}/{given}"

    def _text(self, row: Mapping[str, Any]) -> str | LongText:
        template = self.settings.text_template
        if template is None:
            return _text_at(row, self.settings.text_field, "text_field")

        def whole(field: str) -> str:
            text = _text_at(row, field, "text_template")
            return text.whole() if isinstance(text, LongText) else text

        return fill(template, whole)

    def _facts(self, row: Mapping[str, Any]) -> dict[str, Any]:
        settings = self.settings
        fields = {"date": settings.date_field, "url": settings.url_field}
        fields |= {field: field for field in settings.metadata_fields}
        found = {key: value_at(row, field) for key, field in fields.items() if field is not None}
        return {key: _plain(value) for key, value in found.items() if value is not None}


def _text_at(row: Mapping[str, Any], field: str, key: str) -> str | LongText:
    text = value_at(row, field)
    if not isinstance(text, str | LongText):
        raise _missing(row, field, key, "text")
    return text


def _missing(row: Mapping[str, Any], field: str, key: str, what: str) -> UnreadableError:
    found = f" (it holds {type(row[field]).__name__})" if field in row else ""
    fields = ", ".join(sorted(row))
    detail = f"no {what} in the field '{field}'{found}; its fields are {fields}; set {key} to the right one"
    excerpt = " ".join(value for value in row.values() if isinstance(value, str))
    return UnreadableError("missing_field", detail, excerpt=excerpt)


def _plain(value: Any) -> Any:
    """A fact as JSON can hold it."""
    if isinstance(value, LongText):
        return value.whole()
    if isinstance(value, datetime.date):
        return value.isoformat()
    return value if isinstance(value, str | int | float | bool | list | dict) else str(value)


def _named(ident: str, pieces: Iterator[str]) -> Iterator[tuple[str, str]]:
    """Each piece with an id of its own; the only piece of a text has the text's."""
    first, second = next(pieces), next(pieces, None)
    if second is None:
        yield ident, first
        return
    yield f"{ident}#0", first
    yield f"{ident}#1", second
    for number, piece in enumerate(pieces, start=2):
        yield f"{ident}#{number}", piece
