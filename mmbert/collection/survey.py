"""What is in a store, by what it is and by who needs it. Nothing is written here."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mmbert import artifacts, marks, storage
from mmbert.artifacts import Artifact
from mmbert.collection import layout, pool
from mmbert.collection.layout import Part
from mmbert.collection.needs import ASKED, REGISTERED, RUNNING, Need, is_place, releases
from mmbert.errors import InfrastructureError, UserError
from mmbert.lineage import Store, read_store
from mmbert.lineage.store import recorded_inputs
from mmbert.marks import Mark
from mmbert.storage import StoredFile

RESUMABLE, RECENT, UNREACHABLE, MARKED, DUE = "resumable", "recent", "unreachable", "marked", "due"
SUPERSEDED, LEFT, CACHE, SPOOL, RECORD, UNKNOWN = "superseded", "left over", "cache", "unsent", "record", "unknown"
KEPT_STATES = (REGISTERED, RUNNING, ASKED, RESUMABLE, RECENT)
"""Why something is needed, the strongest reason first."""
_RESUMABLE_PARTS = {Part.KEPT, Part.RESUME}
_NAMES_LOOKED_AT = 100
"""A store has a few kinds; what is no store may have any number of folders."""
_WHOS_SHOWN = 3
_TOLD_OF = {"promotion": "release", "data_report": "mixture"}
"""What tells of how a registered model came about, by the kind that it is about: nothing is made from it."""


@dataclass
class Group:
    """Files of one state. `place` is the artifact's path below the root; `name` says what they are to people."""

    kind: str
    state: str
    name: str
    why: str = ""
    place: str = ""
    files: list[StoredFile] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def oldest(self) -> float:
        return min((file.modified for file in self.files), default=0.0)

    @property
    def newest(self) -> float:
        return max((file.modified for file in self.files), default=0.0)


@dataclass(frozen=True)
class Survey:
    """`problems`: what could not be read or is missing, each with what to do; where there are some nothing is deleted.

    `marks` are of places; `consumers` are the places made directly from a place, `kept` those that are needed,
    `running` those that running work names, whatever else needs them; `busy` says that some work is running.
    `idle_lost` are those said to be lost that are there, or that nothing needed was made from, each with which.
    """

    root: str
    groups: tuple[Group, ...]
    marks: Mapping[str, Mark]
    problems: tuple[str, ...]
    consumers: Mapping[str, Sequence[str]]
    kept: frozenset[str]
    running: frozenset[str]
    busy: bool
    idle_lost: Mapping[str, str]
    grace: float
    when: float

    def of(self, *states: str) -> list[Group]:
        return [group for group in self.groups if group.state in states]


def check_is_store(root: str) -> None:
    """Raises UserError where no artifact is below `root`, with the store's place where that is a folder below."""
    if _has_places(root):
        return
    for name in storage.list_folders(root)[:_NAMES_LOOKED_AT]:
        below = storage.join(root, name)
        with contextlib.suppress(InfrastructureError):  # a folder that this user may not read
            if _has_places(below):
                raise UserError(f"below {root} there is no artifact; the store seems to be {below}")
    raise UserError(f"below {root} there is no artifact; is this the store?")


def _has_places(root: str) -> bool:
    kinds = [name for name in storage.list_folders(root) if layout.is_kind(name)][:_NAMES_LOOKED_AT]
    names = (name for kind in kinds for name in storage.list_folders(storage.join(root, kind)))
    return any(artifacts.FINGERPRINT.fullmatch(name) for name in names)


def survey(
    root: str,
    outside: Callable[[Store], Iterable[Need]],
    grace: float,
    lost: Iterable[str] = (),
    go_on: Callable[[], None] = lambda: None,
) -> Survey:
    """List a store and say what of it is needed. `outside` finds what registries, runs and people need, `grace` is in
    seconds; `lost` are URIs of artifacts that are known to be gone; `go_on` is called between requests.

    Raises InfrastructureError where the store cannot be listed or read, UserError where there is no artifact that
    somebody asks to keep, and as `outside`.
    """
    files = storage.list_stored(root, go_on)
    store = read_store(root, (), go_on)
    needs = list(outside(store))
    go_on()
    places = _Places(store, files, marks.now(), grace, go_on)
    return places.survey(needs, frozenset(uri.rstrip("/") for uri in lost))


class _Places:
    def __init__(
        self, store: Store, files: Sequence[StoredFile], now: float, grace: float, go_on: Callable[[], None]
    ) -> None:
        self.store, self.now, self.grace, self.go_on = store, now, grace, go_on
        self.root = store.root
        self.files: dict[str, list[tuple[Part, StoredFile]]] = {}
        self.others: list[tuple[Part, StoredFile]] = []
        for file in files:
            found = layout.where(file.path)
            if found.place:
                self.files.setdefault(found.place, []).append((found.part, file))
            else:
                self.others.append((found.part, file))
        self.marks = self._marks()
        self.kept: dict[str, tuple[str, str]] = {}
        self.running: set[str] = set()
        self.walked: set[str] = set()
        self.problems: list[str] = [f"{uri}: {_bare(uri, why)}" for uri, why in sorted(store.unreadable.items())]
        self.missing: dict[str, tuple[str, dict[str, None]]] = {}
        self.unread: dict[str, tuple[str, dict[str, None]]] = {}
        self.away: dict[str, str] = {}
        self.lost: frozenset[str] = frozenset()
        self.met_lost: set[str] = set()

    def survey(self, needs: Iterable[Need], lost: frozenset[str]) -> Survey:
        self.lost, outside = lost, list(needs)
        running = [need for need in outside if need.state == RUNNING]
        self.running = {place for need in running if (place := self._place(need.uri))}
        needed = [*outside, *releases(self.store), *self._unfinished(outside), *self._recent()]
        self._keep_all(need for need in needed if need.state == REGISTERED)
        self._keep_all([*self._told_of(), *(need for need in needed if need.state != REGISTERED)])
        self._keep_below()
        self._tell_missing()
        groups = [group for place in sorted(self.files) for group in self._groups(place)]
        return Survey(
            self.root, (*groups, *self._other_groups()), self.marks, tuple(dict.fromkeys(self.problems)),
            self._consumers(), frozenset(self.kept), frozenset(self.running), bool(running), self._idle_lost(),
            self.grace, self.now,
        )  # fmt: skip

    def _is_lost(self, uri: str) -> bool:
        """Whether somebody says that it is gone for good. To be asked of what is missed alone."""
        if uri in self.lost:
            self.met_lost.add(uri)
        return uri in self.lost

    def _idle_lost(self) -> dict[str, str]:
        there = {uri for uri in self.lost if (place := self._place(uri)) and self._done(place)}
        return {
            uri: "an artifact is there" if uri in there else "nothing that is needed was made from it"
            for uri in sorted(self.lost - self.met_lost)
        }

    def _consumers(self) -> dict[str, list[str]]:
        made_from = {place: self.store.outputs(self._uri(place)) for place in self.files}
        found = {place: [p for uri in uris if (p := self._place(uri))] for place, uris in made_from.items()}
        for place in self.files:
            if (over := layout.above(place)) != place and over in found:
                found[over].append(place)
        return found

    def _uri(self, place: str) -> str:
        return storage.join(self.root, place)

    def _place(self, uri: str) -> str | None:
        """The artifact of this store that is at `uri`, or that `uri` is a file of.

        Fingerprints are unique: a store that was copied or mounted elsewhere, or was written under a relative path, is
        told by them.
        """
        found = layout.place_in(uri)
        return found if found in self.files else None

    def _marks(self) -> dict[str, Mark]:
        named = [p for p, files in self.files.items() if any(f.path == f"{p}/{marks.MARK}" for _, f in files)]
        read = pool.at_once(lambda place: marks.read(self._uri(place)), named, self.go_on)
        return {place: mark for place, mark in zip(named, read, strict=True) if mark is not None}

    def _of(self, place: str, *parts: Part) -> list[StoredFile]:
        return [file for part, file in self.files.get(place, ()) if part in parts]

    def _wanted(self, place: str) -> list[StoredFile]:
        return [file for file in self._of(place, Part.MARK) if file.path.endswith(f"/{marks.WANTED}")]

    def _done(self, place: str) -> Artifact | None:
        """The artifact, where it is complete both in the listing and when it was read."""
        listed = bool(self._of(place, Part.MANIFEST))
        return self.store.artifacts.get(self._uri(place)) if listed else None

    def _is_young(self, files: Iterable[StoredFile]) -> bool:
        return any(file.modified > self.now - self.grace for file in files)

    def _unfinished(self, outside: Iterable[Need]) -> list[Need]:
        """What work that is not done is made from, and its place, where it may go on or runs or is asked for."""
        named = {place: need.state for need in outside if (place := self._place(need.uri))}
        states: dict[str, str] = {}
        for place, files in self.files.items():
            broken_off = place in self.marks and self.marks[place].until
            if self._of(place, Part.MANIFEST) or broken_off:
                continue
            resumable, young = self._of(place, *_RESUMABLE_PARTS), self._is_young(f for _, f in files)
            if state := RESUMABLE if resumable else RECENT if young else named.get(place, ""):
                states[place] = state
        needs = []
        noted = pool.at_once(self._noted, list(states), self.go_on)
        for (place, state), made_of in zip(states.items(), noted, strict=True):
            uri = self._uri(place)
            why = f"{uri}, which is not done"
            if state in (RESUMABLE, RECENT):
                needs.append(Need(uri, state, "can go on" if state == RESUMABLE else "written to lately", False))
            if made_of is None and state == RESUMABLE and not self._is_lost(uri) and artifacts.look(uri) is None:
                self.problems.append(
                    f"{uri}: this work is not done, and no {artifacts.WORK} says what it is made from: it was begun by "
                    "an older version. Run it again; or delete its folder to give it up; or name to `mmbert storage "
                    "collect` each artifact that it is made from with --keep, and say that no more is known of it: "
                    f"--lost {uri}"
                )
            needs += [Need(one, state, why, one not in self.store.unfinished) for one in made_of or ()]
        return needs

    def _noted(self, place: str) -> list[str] | None:
        """What work says that it is made from; None where it says nothing (any more)."""
        uri = storage.join(self._uri(place), artifacts.WORK)
        try:
            return [str(one) for one in json.loads(storage.read_bytes(uri))["inputs"]]
        except storage.MissingFileError:
            return None
        except (ValueError, KeyError, TypeError):
            self.problems.append(
                f"{uri}: it cannot be read, and says what unfinished work is made from; run that again"
            )
            return []

    def _recent(self) -> list[Need]:
        """Young artifacts, and those that a run has wanted lately or that was written to since it was marked."""
        found = []
        for place in self.files:
            used = self._of(place, Part.MANIFEST) + self._wanted(place)
            mark = self.marks.get(place)
            others = (file for part, file in self.files[place] if part is not Part.MARK)
            touched = mark is not None and any(file.modified > mark.since for file in others)
            over = layout.above(place)
            if not self._done(place):
                continue
            if self._is_young(used) or touched:
                found.append(Need(self._uri(place), RECENT, "made or used lately"))
            if over != place and not self._of(over, Part.MANIFEST):
                found.append(Need(self._uri(place), RESUMABLE, "training that is not done keeps it for good"))
        return found

    def _told_of(self) -> list[Need]:
        """What tells of a registered model alone: the gate's word on its release, the report on its text."""
        found = []
        for place in self.files:
            made = self._done(place)
            if made is None or (about := _TOLD_OF.get(made.manifest.kind)) is None:
                continue
            of = [i.found or i.uri for i in self.store.inputs(made.uri) if i.kind == about]
            states = [self.kept.get(self._place(uri) or "", ("", "")) for uri in of]
            if states and all(state == REGISTERED for state, _ in states):
                found.append(Need(made.uri, REGISTERED, states[0][1]))
        return found

    def _keep_all(self, needs: Iterable[Need]) -> None:
        """The strongest reason first."""
        alike: dict[tuple[int, str], list[Need]] = defaultdict(list)
        for need in needs:
            alike[KEPT_STATES.index(need.state), need.why].append(need)
        for (state, why), some in sorted(alike.items(), key=lambda item: item[0]):
            self._keep(KEPT_STATES[state], why, some)

    def _keep(self, state: str, why: str, needs: Iterable[Need]) -> None:
        uris = list(dict.fromkeys(uri for need in needs for uri in self._inside(need)))
        reached = self.store.made_of(uris, self.walked)
        self.walked.update(reached)
        for missing in self.store.missing(reached):
            if not self._is_lost(missing.uri):
                self._miss(missing.uri, f"{missing.needed_by[0]} was made from it ({why})", missing.problem)
        # Where other content stands at an input's place now, both stay.
        also = [i.uri for uri in reached for i in self.store.inputs(uri) if i.changed]
        for uri in (*uris, *reached, *also):
            place = self._place(uri)
            if place is not None:
                self.kept.setdefault(place, (state, why))

    def _inside(self, need: Need) -> list[str]:
        """The artifacts that are needed, as the store has them; those elsewhere are followed into it."""
        place = self._place(need.uri)
        found = [] if place is None else [self._uri(place)]
        there = place is not None and self._done(place) is not None
        if need.uri.startswith(f"{self.root}/") or (place is not None and not is_place(need.uri)):
            if need.complete and not there and not self._is_lost(need.uri):
                self._lack(need, need.uri)
            return found
        if is_place(need.uri) and (need.complete or layout.place_in(need.uri)):
            found += self._elsewhere(need, need.complete and not there)
        elif need.state == ASKED:
            self._lack(need, need.uri)
        return found

    def _elsewhere(self, need: Need, complete: bool) -> list[str]:
        """An artifact of another store, with what of this one it is made from."""
        found, waiting = [need.uri], [need.uri]
        while waiting:
            uri = waiting.pop()
            if self._is_lost(uri):
                continue
            artifact, problem = self._look(uri)
            if problem:
                _, whos = self.unread.setdefault(uri, (problem, {}))
                whos[f"{need.why} needs it"] = None
                continue
            if artifact is None:
                if complete or uri != need.uri:
                    self._lack(need, uri)
                continue
            for named in dict.fromkeys(i.uri for i in recorded_inputs(artifact)):
                place = self._place(named)
                if place is not None and self._done(place):
                    found.append(self._uri(place))
                elif named not in found:
                    found.append(named)
                    waiting.append(named)
        return found

    def _look(self, uri: str) -> tuple[Artifact | None, str]:
        """An artifact of another store, or why it cannot be read: its manifest is damaged, or that store is away."""
        store = "/".join(uri.split("/")[:3]) if storage.is_s3(uri) else uri
        if store in self.away:
            return None, self.away[store]
        try:
            return artifacts.look(uri), ""
        except (UserError, storage.AccessError) as error:
            return None, _bare(uri, str(error))
        except InfrastructureError as error:  # asked again, it would take as long again
            self.away[store] = _bare(uri, str(error))
            return None, self.away[store]

    def _lack(self, need: Need, uri: str) -> None:
        if need.state == ASKED and uri == need.uri:
            raise UserError(f"--keep {uri}: no artifact is there")
        self._miss(uri, f"{need.why} needs it", "there is no artifact")

    def _miss(self, uri: str, who: str, problem: str) -> None:
        _, whos = self.missing.setdefault(uri, (_bare(uri, problem), {}))
        whos[who] = None

    def _tell_missing(self) -> None:
        self.problems += [f"{uri}: {problem} ({_some(whos)})" for uri, (problem, whos) in self.unread.items()]
        self.problems += [
            f"{uri}: {problem}, and {_some(whos)}. What it was made from is not known: bring it back, or say to "
            "`mmbert storage collect` that it is gone for good and that what only it was made from may go: "
            f"--lost {uri}"
            for uri, (problem, whos) in self.missing.items()
        ]

    def _keep_below(self) -> None:
        """A checkpoint's permanent ones stay with it."""
        for place in self.files:
            over = layout.above(place)
            if over != place and over in self.kept:
                self.kept.setdefault(place, self.kept[over])

    def _groups(self, place: str) -> list[Group]:
        kind = layout.kind(place)
        unknown = Group(kind, UNKNOWN, "files that are none of ours", "", place, self._of(place, Part.UNKNOWN))
        ours = [(part, file) for part, file in self.files[place] if part is not Part.UNKNOWN]
        artifact = self._done(place)
        found = [unknown]
        if artifact is None and place not in self.kept and place in self.marks and self.marks[place].until:
            found.append(Group(kind, DUE, "deletion that was broken off", "", place, [f for _, f in ours]))
        elif artifact is None:
            found += self._undone_groups(place, kind, ours)
        else:
            found += self._done_groups(place, kind, ours, artifact)
        return [group for group in found if group.files]

    def _done_groups(
        self, place: str, kind: str, ours: Sequence[tuple[Part, StoredFile]], artifact: Artifact
    ) -> list[Group]:
        if place not in self.kept:
            # One that a run wanted long ago is marked anew.
            mark = None if self._wanted(place) else self.marks.get(place)
            state = UNREACHABLE if mark is None else DUE if self.now - mark.since > self.grace else MARKED
            why = f"since {_days(self.now - mark.since)}" if mark else ""
            return [Group(kind, state, "artifact", why, place, [file for _, file in ours])]
        state, why = self.kept[place]
        listed = {f"{place}/{file.key}" for file in artifact.manifest.files} | {
            f"{place}/{artifacts.MANIFEST}", f"{place}/{marks.MARK}"
        }  # fmt: skip
        own = Group(kind, state, "artifact", why, place, [file for _, file in ours if file.path in listed])
        rest = [(part, file) for part, file in ours if file.path not in listed]
        young = self._is_young(self._of(place, Part.MANIFEST))
        if place in self.running or young:
            own.files += [file for _, file in rest]
            return [own]
        return [own, *self._rest_groups(place, kind, rest, own)]

    def _rest_groups(self, place: str, kind: str, rest: Sequence[tuple[Part, StoredFile]], own: Group) -> list[Group]:
        """What no manifest lists: of other attempts, each judged as a whole, and of training that has ended."""
        by_name: dict[tuple[str, str], list[StoredFile]] = defaultdict(list)
        for part, file in rest:
            key = (LEFT, "notes and progress of finished work")
            if part is Part.ATTEMPT:
                key = (SUPERSEDED, f"attempt {layout.attempt(place, file.path)}")
            elif part is Part.RESUME:
                key = (LEFT, "resume checkpoints of finished training")
            by_name[key].append(file)
        groups = []
        for (state, name), files in sorted(by_name.items()):
            if self._is_young(files):
                own.files += files
            else:
                groups.append(Group(kind, state, name, "", place, files))
        return groups

    def _undone_groups(self, place: str, kind: str, ours: Sequence[tuple[Part, StoredFile]]) -> list[Group]:
        """Other attempts can go on from kept files and resume checkpoints, from an attempt's own files never."""
        state, why = self.kept.get(place, ("", ""))
        whole = state in {RUNNING, REGISTERED, ASKED} or self._is_young(file for _, file in ours)
        name = "work that is not done"
        if whole:
            return [Group(kind, state or RECENT, name, why, place, [file for _, file in ours])]
        if self._of(place, *_RESUMABLE_PARTS):
            dead = [file for part, file in ours if part in {Part.ATTEMPT, Part.TEMPORARY}]
            rest = [file for part, file in ours if part not in {Part.ATTEMPT, Part.TEMPORARY}]
            return [
                Group(kind, RESUMABLE, name, why, place, rest),
                Group(kind, SUPERSEDED, "attempts that nothing goes on from", "", place, dead),
            ]
        return [Group(kind, SUPERSEDED, "attempts that nothing goes on from", "", place, [f for _, f in ours])]

    def _other_groups(self) -> list[Group]:
        states = {
            Part.CACHE: (CACHE, "work that is found done"),
            Part.SPOOL: (SPOOL, "tracking that MLflow has not got yet"),
            Part.RECORD: (RECORD, "scores and alerts, kept for good"),
            Part.TICKET: (RECORD, "collections at work"),
        }
        by_top: dict[tuple[str, str, str], list[StoredFile]] = defaultdict(list)
        for part, file in self.others:
            state, name = states.get(part, (UNKNOWN, "files that are none of ours"))
            top = file.path.split("/", maxsplit=1)[0] if part is not Part.UNKNOWN else "-"
            by_top[top, state, name].append(file)
        return [Group(top, state, name, "", "", files) for (top, state, name), files in sorted(by_top.items())]


def _bare(uri: str, problem: str) -> str:
    """Without the place, which stands before it."""
    return problem.removeprefix(uri).removeprefix(f"/{artifacts.MANIFEST}").removeprefix(": ")


def _some(whos: Iterable[str]) -> str:
    first = list(whos)
    more = f"; and {len(first) - _WHOS_SHOWN} more" if len(first) > _WHOS_SHOWN else ""
    return "; ".join(first[:_WHOS_SHOWN]) + more


def _days(seconds: float) -> str:
    return f"{seconds / 86400:.1f} days"
