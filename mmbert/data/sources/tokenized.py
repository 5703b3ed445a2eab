"""Data sets that are tokenized already: token ids straight from MDS shards on the hub, without curation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mmbert import hub
from mmbert.data.readers import Selection
from mmbert.data.shard_units import Part
from mmbert.data.sources import mds
from mmbert.data.sources.hub_files import find_files
from mmbert.data.sources.reader import Unit, UnreadableError
from mmbert.errors import UserError
from mmbert.recipe.schema import Source, TokenizedSource

Tokens = npt.NDArray[np.uint32]

_UNIT_BYTES = 2**40


class TokenizedReader:
    """Rows of token ids, a document (or a part of one) a row. A unit is a folder of shards with its index.json."""

    def __init__(self, name: str, settings: TokenizedSource) -> None:
        self.name = name
        self.settings = settings

    def units(self, selection: Selection) -> list[Unit]:
        """As SourceReader.units; `name` is the path of an index.json."""
        settings = self.settings
        if settings.language is not None and settings.language not in selection:
            return []
        commit = self._commit()
        pattern = (f"{settings.path.rstrip('/')}/index.json",)
        with hub.explained(f"source {self.name}", settings.dataset, settings.revision):
            files = find_files(settings.dataset, commit, pattern, settings.language_codes, selection)
            everything = Selection(1, 0, frozenset())
            if not files and not find_files(settings.dataset, commit, pattern, settings.language_codes, everything):
                raise UserError(
                    f"source {self.name}: the data set {settings.dataset} has no index.json of MDS shards at "
                    f"{settings.path} for any known language; check path and language_codes"
                )
        # An index above others merges them: its shards would be read twice.
        folders = {file.path.rpartition("/")[0] for file in files}
        merged = {parent for folder in folders for parent in folders if folder.startswith(f"{parent}/")}
        return [
            Unit(file.path, (str(settings.language or file.language),), file.version)
            for file in files
            if file.path.rpartition("/")[0] not in merged
        ]

    def read_tokens(self, unit: Unit, vocab_size: int) -> Iterator[tuple[str, Tokens]]:
        """(language, token ids, shape (length,)) of each row, in order, with the bos and eos that it may have.

        Raises UserError, with shard and row, for ids outside of the vocabulary, a column that is missing, and shards
        that cannot be read; InfrastructureError where the hub cannot be reached.
        """
        settings = self.settings
        (language,) = unit.languages or ()
        place = f"source {self.name}: {settings.dataset}"
        with hub.explained(f"source {self.name}", settings.dataset, settings.revision):
            try:
                for path, number, sample in mds.read_samples(settings.dataset, self._commit(), unit.name):
                    if settings.tokens_field not in sample:
                        raise UserError(
                            f"{place}/{path}: no column '{settings.tokens_field}'; it has {', '.join(sorted(sample))}"
                        )
                    tokens = sample[settings.tokens_field]
                    yield language, _checked(f"{place}/{path}, row {number}", tokens, vocab_size)
            except UnreadableError as problem:
                raise UserError(f"{place}/{unit.name}: {problem}") from problem

    def _commit(self) -> str:
        return hub.resolve_commit(f"source {self.name}", self.settings.dataset, self.settings.revision)


def _checked(where: str, tokens: object, vocab_size: int) -> Tokens:
    ids = np.asarray(tokens).reshape(-1)
    if ids.dtype.kind not in "iu" or (ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size):
        shown = f"{ids.min()} to {ids.max()}" if ids.dtype.kind in "iu" and ids.size else str(ids.dtype)
        raise UserError(
            f"{where}: its token ids are {shown}, the vocabulary has {vocab_size} pieces; "
            "was it made with another tokenizer?"
        )
    return ids.astype(np.uint32)


@dataclass(frozen=True)
class TokenizedUnits:
    """The tokenized units of one group of languages, as curation passes them on to tokenization."""

    sources: Mapping[str, TokenizedSource]
    units: Mapping[str, Sequence[Unit]]

    @classmethod
    def of(cls, sources: Mapping[str, Source], selection: Selection) -> TokenizedUnits:
        """Raises UserError where a data set is missing or holds no shards, InfrastructureError where no hub answers."""
        own = {name: source for name, source in sources.items() if isinstance(source, TokenizedSource)}
        units = {name: TokenizedReader(name, source).units(selection) for name, source in own.items()}
        return cls(own, {name: found for name, found in units.items() if found})

    def to_json(self) -> dict[str, Any]:
        return {
            name: {
                "settings": self.sources[name].model_dump(mode="json"),
                "units": [[unit.name, unit.languages, unit.version] for unit in units],
            }
            for name, units in self.units.items()
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TokenizedUnits:
        sources = {name: TokenizedSource.model_validate(entry["settings"]) for name, entry in value.items()}
        units = {
            name: [Unit(unit, tuple(languages), version) for unit, languages, version in entry["units"]]
            for name, entry in value.items()
        }
        return cls(sources, units)

    def parts(self) -> list[Part]:
        """The units as the writer of shards takes them, each large enough to be worked on alone."""
        return [
            Part(name, language, unit.name, _UNIT_BYTES)
            for name, units in self.units.items()
            for unit in units
            for language in unit.languages or ()
        ]

    def read(self, vocab_size: int, part: Part, skip: int) -> Iterator[Tokens]:
        """The documents of a part after the first `skip`."""
        unit = next(unit for unit in self.units[part.source] if unit.name == part.path)
        rows = TokenizedReader(part.source, self.sources[part.source]).read_tokens(unit, vocab_size)
        return (tokens for _, tokens in itertools.islice(rows, skip, None))
