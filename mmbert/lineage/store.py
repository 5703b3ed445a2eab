"""The graph of a store's artifacts, read from their manifests alone.

An input is found by its URI where that still has the content that was read, else by its content digest, so that a store
that was copied or mounted elsewhere keeps its edges. Where a digest says the kind alone, as of pages, whose files are
not digested, it is found by the kind and fingerprint that its URI ends with.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from mmbert import artifacts, storage
from mmbert.artifacts import Artifact
from mmbert.collection.layout import place_in
from mmbert.errors import UserError

RECIPE = "recipe"
_NO_KINDS = {"work", "results", "spool", "collection"}
_SCORED = {"model", "checkpoint"}
_AT_ONCE = 10  # connections that an S3 client keeps


@dataclass(frozen=True)
class Input:
    """What an artifact says that it was made from: the parameter's name, and kind, place and content as it was read.

    `found` is the URI of the artifact in the store that this is, empty where it is gone; `changed` says that another
    content stands at its place now.
    """

    name: str
    kind: str
    uri: str
    digest: str
    found: str
    changed: bool = False

    @property
    def identified(self) -> bool:
        """Whether the digest says which artifact it was (`Artifact.identified`)."""
        return artifacts.identifies(self.kind, self.digest)


@dataclass(frozen=True)
class Missing:
    """An artifact that others were made from and that is gone. `problem` says what there is instead."""

    kind: str
    uri: str
    digest: str
    needed_by: tuple[str, ...]
    problem: str


@dataclass(frozen=True)
class Store:
    """All artifacts below `root`, by URI, and those elsewhere that they were made from. Walks cost no request.

    `unreadable` holds the places whose manifest cannot be read, with the reason; `unfinished` those without a manifest:
    work that goes on, or was killed.
    """

    root: str
    artifacts: Mapping[str, Artifact]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    unfinished: frozenset[str] = frozenset()
    _inputs: dict[str, list[Input]] = field(default_factory=dict, repr=False)
    _outputs: dict[str, list[str]] = field(default_factory=dict, repr=False)
    _places: dict[str, list[str]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for uri, artifact in sorted(self.artifacts.items()):
            if artifact.identified:
                self._places.setdefault(artifact.digest, []).append(uri)
        for uri in sorted(self.artifacts):
            self._inputs[uri] = [self._resolved(uri, recorded) for recorded in recorded_inputs(self.artifacts[uri])]
            for found in dict.fromkeys(i.found for i in self._inputs[uri] if i.found):
                self._outputs.setdefault(found, []).append(uri)

    def inputs(self, uri: str) -> list[Input]:
        """What an artifact was made from directly, those that are gone among them."""
        return self._inputs.get(uri, [])

    def outputs(self, uri: str) -> list[str]:
        """The artifacts that were made from this one directly."""
        return self._outputs.get(uri, [])

    def made_of(self, uris: Iterable[str], but: Collection[str] = ()) -> list[str]:
        """These artifacts and all that they were made from, inputs before what was made of them.

        Nothing is followed through those in `but`, which are left out.
        """
        first = [uri for uri in uris if uri not in but]
        return self._ordered(
            self._reached(first, lambda uri: [i.found for i in self.inputs(uri) if i.found and i.found not in but])
        )

    def made_from(self, uris: Iterable[str]) -> list[str]:
        """These artifacts and all that was made from them, inputs before what was made of them."""
        return self._ordered(self._reached(uris, self.outputs))

    def affected_by(self, uris: Iterable[str]) -> list[str]:
        """As `made_from`, and on from artifacts of the same content.

        What has been found done was not made again, so of equal contents only one is recorded as an input.
        """
        return self._ordered(
            self._reached(uris, lambda uri: [*self.outputs(uri), *self._places.get(self.artifacts[uri].digest, ())])
        )

    def of_digest(self, prefix: str) -> list[str]:
        """The artifacts whose content digest begins so; none whose digest says the kind alone."""
        return sorted(uri for digest, uris in self._places.items() if digest.startswith(prefix) for uri in uris)

    def copy_of(self, uri: str) -> str:
        """Where the artifact that was at `uri` lies in this store, which was copied or moved; empty where it does not.

        It is told by its kind and fingerprint, which `uri` ends with.
        """
        place = place_in(uri)
        copied = storage.join(self.root, place) if place else ""
        return copied if copied in self.artifacts else ""

    def missing(self, uris: Iterable[str] | None = None) -> list[Missing]:
        """What these artifacts (all, where none are named) were made from and what is gone, each once."""
        lost: dict[tuple[str, str], tuple[Input, list[str]]] = {}
        for uri in self.artifacts if uris is None else uris:
            for item in self.inputs(uri):
                if not item.found:
                    lost.setdefault((item.uri, item.digest), (item, []))[1].append(uri)
        return [
            Missing(item.kind, item.uri, item.digest, tuple(sorted(needed)), self._problem(item))
            for (_, _), (item, needed) in sorted(lost.items())
        ]

    def _problem(self, item: Input) -> str:
        if item.changed:
            return f"another content stands there now ({self.artifacts[item.uri].digest[:12]})"
        if item.uri in self.unreadable:
            return self.unreadable[item.uri]
        if not item.identified:
            return "no artifact is there, and since none of its files is digested no other can stand for it"
        return "no artifact is there, and none of its content anywhere in the store"

    def _resolved(self, uri: str, recorded: Input) -> Input:
        there = self.artifacts.get(recorded.uri)
        same = there is not None and recorded.digest in ("", there.digest)
        found = recorded.uri if same else self._elsewhere(uri, recorded)
        changed = there is not None and not same
        return Input(recorded.name, recorded.kind, recorded.uri, recorded.digest, found, changed)

    def _elsewhere(self, uri: str, recorded: Input) -> str:
        """Where the content is that an artifact was made from; empty where it is gone."""
        equal = next((place for place in self._places.get(recorded.digest, ()) if place != uri), "")
        copied = "" if equal else self.copy_of(recorded.uri)
        return equal or (copied if copied and self.artifacts[copied].digest == recorded.digest else "")

    def _reached(self, uris: Iterable[str], following: Callable[[str], Iterable[str]]) -> set[str]:
        reached: set[str] = set()
        waiting = [uri for uri in uris if uri in self.artifacts]
        while waiting:
            uri = waiting.pop()
            if uri not in reached:
                reached.add(uri)
                waiting += following(uri)
        return reached

    def _ordered(self, chosen: set[str]) -> list[str]:
        """Inputs before what was made of them, else in the order in which they are named."""
        ordered: dict[str, None] = {}
        waiting = sorted(chosen, reverse=True)
        opened: set[str] = set()
        while waiting:
            uri = waiting[-1]
            if uri in ordered:
                waiting.pop()
            elif uri in opened:  # all that it was made from is placed
                waiting.pop()
                ordered[uri] = None
            else:
                opened.add(uri)
                before = dict.fromkeys(i.found for i in self.inputs(uri))
                waiting += [b for b in reversed(before) if b in chosen and b not in opened]
        return list(ordered)


def read_store(root: str, also: Iterable[str] = (), go_on: Callable[[], None] = lambda: None) -> Store:
    """Read every manifest below `root`, those at the places `also`, and those elsewhere that these name as inputs.

    Costs a listing a kind and a request an artifact, ten at once; no other file is listed or read. What is unreadable
    is kept in the answer. `go_on` is called between the requests. Raises InfrastructureError where the store cannot be
    reached.
    """
    root = _rooted(root)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        kinds = [kind for kind in storage.list_folders(root) if kind not in _NO_KINDS]
        places = [place for some in pool.map(lambda kind: _places(root, kind), kinds) for place in some]
        below = pool.map(_permanent, [place for place in places if place.split("/")[-2] == "checkpoint"])
        first = list(dict.fromkeys([*places, *(uri for uris in below for uri in uris), *also]))
        found, unreadable = _followed(pool, first, lambda found: _by_content(root, found), go_on)
    return Store(root, found, unreadable, frozenset(places) - found.keys() - unreadable.keys())


def read_ancestry(root: str, uri: str) -> Store:
    """As much of a store as it takes to say what the artifact at `uri` was made from, and a model's scores.

    Costs a request for each of these; where one cannot be read or stands elsewhere by now, the whole store is read.
    Raises as `read_store`.
    """
    root = _rooted(root)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found, unreadable = _followed(pool, [uri], _by_place, lambda: None)
        if uri not in found or unreadable or Store(root, found).missing():
            return read_store(root, [uri])
        if found[uri].manifest.kind in _SCORED:
            scores = pool.map(_read, _places(root, "scores"))
            found |= {read.uri: read for read in scores if isinstance(read, Artifact)}
    return Store(root, found)


def _rooted(root: str) -> str:
    return root.rstrip("/") if storage.is_s3(root) else str(Path(root).absolute())


def _places(root: str, kind: str) -> list[str]:
    names = storage.list_folders(storage.join(root, kind))
    return [storage.join(root, kind, name) for name in names if artifacts.FINGERPRINT.fullmatch(name)]


def _followed(
    pool: ThreadPoolExecutor,
    first: list[str],
    following: Callable[[Mapping[str, Artifact]], Iterable[str]],
    go_on: Callable[[], None],
) -> tuple[dict[str, Artifact], dict[str, str]]:
    """The artifacts at these places and at those that they lead to, and what of them cannot be read."""
    found: dict[str, Artifact] = {}
    unreadable: dict[str, str] = {}
    asked: set[str] = set()
    waiting = first
    while waiting:
        asked |= set(waiting)
        for uri, read in zip(waiting, pool.map(_read, waiting), strict=True):
            go_on()
            if isinstance(read, Artifact):
                found[uri] = read
            elif read:
                unreadable[uri] = read
        waiting = sorted(set(following(found)) - asked)
    return found, unreadable


def _by_content(root: str, found: Mapping[str, Artifact]) -> Iterable[str]:
    """Where inputs were whose content is nowhere yet."""
    there = Store(root, found)
    return (i.uri for uri in found for i in there.inputs(uri) if not i.found)


def _by_place(found: Mapping[str, Artifact]) -> Iterable[str]:
    return (i.uri for artifact in found.values() for i in recorded_inputs(artifact))


def recorded_inputs(artifact: Artifact) -> list[Input]:
    """The inputs as its manifest has them, not looked for; its recipe, which decides by what it says, is the last."""
    manifest = artifact.manifest
    named = [
        Input(name, entry.get("kind", ""), entry["uri"].rstrip("/"), entry["digest"], "")
        for name, entries in manifest.inputs.items()
        for entry in entries
    ]
    recipe = manifest.producer.get(RECIPE)
    if isinstance(recipe, Mapping) and "uri" in recipe:
        named.append(Input(RECIPE, RECIPE, str(recipe["uri"]).rstrip("/"), str(recipe.get("digest", "")), ""))
    return named


def _read(uri: str) -> Artifact | str:
    """The artifact, or why it cannot be read; empty where there is none."""
    try:
        return artifacts.look(uri) or ""
    except UserError as error:
        return str(error)


def _permanent(checkpoint: str) -> list[str]:
    """Checkpoints that a phase keeps below its own, each an artifact."""
    folder = storage.join(checkpoint, artifacts.PERMANENT)
    return [storage.join(folder, name) for name in storage.list_folders(folder)]
