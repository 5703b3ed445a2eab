"""What was made from a source, or a part of it, and how: for requests to remove text.

The finest that artifacts know: documents and shards hold a source's languages apart; in documents each text has an id
that begins `<source>/<file>/` or `<source>/<language>/`, so a file or a single document can be found there. From the
mixture on, a source's language is the finest: which of its documents a batch drew is a matter of the loader's order.
"""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import zstandard

from mmbert.artifacts import Artifact
from mmbert.data.mixture import MIXTURE_FILE
from mmbert.errors import UserError
from mmbert.lineage.sources import COUNTS, DOCUMENTS, HELD_OUT, SHARDS, TOKENIZED, Languages, recorded_sources
from mmbert.lineage.store import Store

FINEST = (
    "The finest that is known: in documents each text by its id; in shards and in all that is made of them a source's "
    "language. Which documents of it a batch drew follows from the loader's order and is not recorded."
)
MIXTURE, CHECKPOINT = "mixture", "checkpoint"
_TRAIN, _DROPPED = "train", "dropped"
_SUFFIX = ".jsonl.zst"
_SHOWN = 12
_AT_ONCE = 8
_UNKNOWN = "taken to come from it, since what it holds cannot be read"


@dataclass(frozen=True)
class Part:
    """What is asked about: a source, all of it where `language` and `document` are empty.

    `document` is a document's id, or the beginning of several ids up to a slash; the source's name stands first.
    """

    source: str
    language: str = ""
    document: str = ""

    @property
    def text(self) -> str:
        asked = f"documents of {self.document}" if self.document else f"source {self.source}"
        return f"{asked}, {self.language} alone" if self.language else asked

    @property
    def finest(self) -> str:
        """What mixtures and checkpoints know of it."""
        return f"{self.source}, {self.language}" if self.language else self.source

    def names(self, ident: str) -> bool:
        """Whether a document's id is one of those asked for; of a long document each piece has `#` and a number."""
        asked = self.document.rstrip("/")
        return ident == asked or ident.startswith((f"{asked}/", f"{asked}#"))


@dataclass(frozen=True)
class Found:
    """The documents artifacts that hold the part, and how each artifact above comes from it, in words by URI.

    `part` is what was asked for, with the language that was found out. `documents` are ids by artifact, those that
    curation dropped and kept aside too, `counts` the others by artifact, language and split; both are empty unless
    documents were asked for. `problems` name what could not be read.
    """

    part: Part
    holders: tuple[str, ...]
    exposure: Mapping[str, str]
    documents: Mapping[str, tuple[str, ...]]
    counts: Mapping[str, Languages]
    problems: tuple[str, ...]


def part_of(source: str, language: str = "") -> Part:
    """`NAME`, or `NAME/FILE`, `NAME/LANGUAGE/ID` as documents are named."""
    name, _, rest = source.partition("/")
    return Part(name, language, source if rest else "")


def find_part(part: Part, store: Store) -> Found:
    """Where the part is, over the whole store. Raises UserError where nothing holds it, which says what there is."""
    documents = [a for a in store.artifacts.values() if a.manifest.kind == DOCUMENTS]
    readers = [a for a in documents if part.source in recorded_sources(a)]
    if not readers:
        known = sorted({name for a in documents for name in recorded_sources(a)})
        raise UserError(
            f"no documents below {store.root} were made from a source '{part.source}'; the {len(documents)} documents "
            f"artifacts there name {', '.join(known) or 'no source'}"
        )
    judge = _Judge(part, store)
    ids: dict[str, tuple[str, ...]] = {}
    counts: dict[str, Languages] = {}
    if part.document:
        found = {a.uri: judge.documents(a) for a in readers}
        ids = {uri: tuple(d.told for d in named) for uri, named in found.items() if named}
        counts = {uri: _counted(named) for uri, named in found.items() if named}
        named = [document for documents in found.values() for document in documents]
        if len(languages := {document.language for document in named}) == 1:
            judge.part = replace(part, language=languages.pop())
        judge.splits = {document.split for document in named}
        holders = list(ids)
    else:
        holders = [a.uri for a in readers if judge.holds(a)]
    if not holders:
        known = sorted({language for a in readers for language in judge.languages(a) or ()})
        shown = ", ".join(known[:_SHOWN])
        more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
        raise UserError(
            f"{part.text}: none of the {len(readers)} documents artifacts that read '{part.source}' holds it"
            f"{_meant(part.language, known)} They have text of that source in {shown or 'no language'}{more}; "
            f"documents' ids begin {part.source}/FILE/ or {part.source}/LANGUAGE/"
            + "".join(f"\n  {problem}" for problem in judge.problems)
        )
    return Found(judge.part, tuple(sorted(holders)), judge.exposure(holders), ids, counts, tuple(judge.problems))


def _meant(language: str, known: Sequence[str]) -> str:
    if not language or language in known:
        return "."
    near = [one for one in known if one.startswith(f"{language}_")] or difflib.get_close_matches(language, known, n=1)
    return f"; did you mean {' or '.join(near)}?" if near else "."


@dataclass(frozen=True)
class _Document:
    split: str
    language: str
    ident: str

    @property
    def told(self) -> str:
        return self.ident if self.split == _TRAIN else f"{self.ident} ({self.split})"


def _counted(found: Iterable[_Document]) -> Languages:
    counts: dict[str, dict[str, int]] = {}
    for document in found:
        if document.split != _DROPPED:
            kept = counts.setdefault(document.language, {})
            kept[document.split] = kept.get(document.split, 0) + 1
    return counts


class _Judge:
    """Reads the small files that tell how artifacts come from a part; what cannot be read is taken to come from it."""

    def __init__(self, part: Part, store: Store) -> None:
        self.part = part
        self.problems: list[str] = []
        self.splits = {_TRAIN, HELD_OUT}
        """Where in documents the part is; shards are made of what is there to train on."""
        self._store = store

    def languages(self, artifact: Artifact) -> set[str] | None:
        """The languages in which it holds text of the source; None where its counts cannot be read.

        Text that comes as tokens is counted by the shards that were made of it.
        """
        counts = self._json(artifact, COUNTS)
        if counts is None:
            return None
        found = set(counts.get(self.part.source, {}))
        if recorded_sources(artifact).get(self.part.source, {}).get("kind") == TOKENIZED:
            for uri in self._store.outputs(artifact.uri):
                if self._store.artifacts[uri].manifest.kind == SHARDS:
                    found |= self.languages(self._store.artifacts[uri]) or set()
        return found

    def holds(self, artifact: Artifact) -> bool:
        languages = self.languages(artifact)
        if languages is None:
            return True
        return self.part.language in languages if self.part.language else bool(languages)

    def documents(self, artifact: Artifact) -> list[_Document]:
        """The documents asked for, of those that curation kept and of those that it dropped and put aside."""
        source, language = self.part.source, self.part.language
        folders = [f"{split}/{source}/{language}" for split in (_TRAIN, HELD_OUT)] + [f"{_DROPPED}/{source}/"]
        paths = [path for folder in folders for path in artifact.paths(folder) if path.endswith(_SUFFIX)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return [named for found in pool.map(lambda path: self._named(artifact, path), paths) for named in found]

    def exposure(self, holders: Iterable[str]) -> dict[str, str]:
        """In words, for each artifact above the holders and themselves, how it comes from the part."""
        first = set(holders)
        words: dict[str, str] = {}
        touched: set[str] = set()
        for uri in self._store.affected_by(first):
            artifact = self._store.artifacts[uri]
            inputs = [self._store.artifacts[i.found] for i in self._store.inputs(uri) if i.found]
            above = [a for a in inputs if a.uri in touched]
            told, comes = (self._held(), True) if uri in first else self._judged(artifact, above)
            words[uri] = told
            touched |= {uri} if comes else set()
        return words

    def _held(self) -> str:
        return "holds its text" if self.splits - {_DROPPED} else "holds its text among what was dropped"

    def _judged(self, artifact: Artifact, above: list[Artifact]) -> tuple[str, bool]:
        """How it comes from the part, and whether what is made of it does, too; `above` are its inputs that do."""
        judges = {
            DOCUMENTS: self._documents,
            SHARDS: self._shards,
            MIXTURE: self._mixture,
            "tokenizer": self._tokenizer,
            CHECKPOINT: self._checkpoint,
            "model": self._model,
            "scores": self._scores,
        }
        return judges.get(artifact.manifest.kind, self._other)(artifact, above)

    def _documents(self, _: Artifact, __: list[Artifact]) -> tuple[str, bool]:
        return self._held(), True  # of the same content as some that hold it

    def _shards(self, artifact: Artifact, _: list[Artifact]) -> tuple[str, bool]:
        if self.languages(artifact) is None:
            return _UNKNOWN, True
        held = self.holds(artifact) and _TRAIN in self.splits
        return "holds its text as tokens" if held else "made beside it, holds none of it", held

    def _mixture(self, artifact: Artifact, above: list[Artifact]) -> tuple[str, bool]:
        tokens = self._drawn(artifact) if _kinds(above) & {SHARDS} else 0
        if tokens is None:
            return _UNKNOWN, True
        return f"draws {tokens:,} tokens of {self.part.finest}" if tokens else "draws nothing of it", tokens > 0

    def _tokenizer(self, artifact: Artifact, _: list[Artifact]) -> tuple[str, bool]:
        settings = artifact.manifest.parameters.get("recipe", {}).get("tokenizer", {})
        learned = settings.get("kind") != "pretrained" and _TRAIN in self.splits
        # Its words are of the text, and it keeps none of it: what uses it does not come from the text by that.
        return "its words were learned from the text" if learned else "made beside it", False

    def _checkpoint(self, _: Artifact, above: list[Artifact]) -> tuple[str, bool]:
        mixtures = [a for a in above if a.manifest.kind == MIXTURE]
        if mixtures:
            tokens = sum(self._drawn(mixture) or 0 for mixture in mixtures)
            return f"trained on {tokens:,} tokens of {self.part.finest}", True
        return ("of weights that were trained on it", True) if _weights(above) else ("not trained on it", False)

    def _model(self, _: Artifact, above: list[Artifact]) -> tuple[str, bool]:
        return ("of weights that were trained on it", True) if _weights(above) else ("not trained on it", False)

    def _scores(self, _: Artifact, above: list[Artifact]) -> tuple[str, bool]:
        of = "of a model that was trained on it" if _weights(above) else "of a model that was not trained on it"
        measured = DOCUMENTS in _kinds(above) and HELD_OUT in self.splits
        return (f"{of}, measured on held-out text of it" if measured else of), _weights(above)

    def _other(self, _: Artifact, above: list[Artifact]) -> tuple[str, bool]:
        return ("tells of what comes from it" if above else "made beside it"), bool(above)

    def _drawn(self, mixture: Artifact) -> int | None:
        """Tokens that a mixture plans of the part's source and language."""
        plan = self._json(mixture, MIXTURE_FILE)
        if plan is None:
            return None
        rows = (row for row in plan["rows"] if row["source"] == self.part.source)
        return sum(int(row["tokens"]) for row in rows if self.part.language in ("", row["language"]))

    def _json(self, artifact: Artifact, path: str) -> Any:
        try:
            return artifact.read_json(path)
        except UserError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return None

    def _named(self, artifact: Artifact, path: str) -> list[_Document]:
        try:
            data = artifact.read(path)
        except UserError as error:
            self.problems.append(str(error))
            return []
        found = []
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True) as raw:
            for line in io.TextIOWrapper(raw, "utf-8"):
                document = json.loads(line)
                if self.part.names(document["id"]) and self.part.language in ("", document["language"]):
                    found.append(_Document(path.partition("/")[0], document["language"], document["id"]))
        return found


def _kinds(found: Iterable[Artifact]) -> set[str]:
    return {artifact.manifest.kind for artifact in found}


def _weights(found: Iterable[Artifact]) -> bool:
    return bool(_kinds(found) & {CHECKPOINT, "model"})
