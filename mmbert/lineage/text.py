"""A trace for a terminal: a tree down to the sources, or a list up from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from mmbert.lineage.facts import DIGITS, Making, short_digest
from mmbert.lineage.sources import HELD_OUT, NO_VERSION, SourceFacts
from mmbert.lineage.trace import ScoreFacts, Trace
from mmbert.tables import table

_SCORES = 12
_DOCUMENTS = 20
_LANGUAGES = 6


def trace_text(found: Trace) -> str:
    """The whole trace. What several artifacts were made from is shown once, where the tree meets it first."""
    parts = [_head(found), _section("", _registered(found))]
    if found.direction == "down":
        tree = _Tree(found)
        parts.append("\n".join(line for uri in found.targets for line in tree.lines(uri)))
        parts.append(_section("scores", [line for s in found.scores for line in score_lines(s)]))
        parts.append(_section("sources", [f"{s.name}: {source_text(s)}" for s in found.sources]))
    else:
        parts.append(_upwards(found))
        of = [f"{', '.join(s.suites)} of {s.model} ({s.model_digest[:DIGITS] or '-'}), {s.uri}" for s in found.scores]
        parts.append(_section("scores", of))
        for uri, ids in found.documents.items():
            more = [f"and {len(ids) - _DOCUMENTS:,} more"] if len(ids) > _DOCUMENTS else []
            parts.append(_section(f"{len(ids):,} documents in {uri}", [*ids[:_DOCUMENTS], *more]))
    gone = [f"{lost(m.kind or 'artifact', m.digest, m.uri)}: {m.problem}" for m in found.missing]
    parts += [_section("gone", gone), _section("not known", found.problems), *found.notes]
    return "\n\n".join(part for part in parts if part)


def lost(what: str, digest: str, uri: str) -> str:
    """What is gone, and where it was."""
    return f"{' '.join(part for part in (what, short_digest(what, digest)) if part)} at {uri}"


def _section(title: str, lines: Iterable[str]) -> str:
    listed = list(lines)
    if not listed:
        return ""
    return "\n".join([f"{title}:", *(f"  {line}" for line in listed)] if title else listed)


def made_text(m: Making) -> str:
    """Who made it, in one line."""
    told = [f"{m.component} {m.component_version or ''}".strip()] if m.component else ["made by no component"]
    told += [f"commit {m.commit[:DIGITS]}"] if m.commit else []
    told += [m.finished[:16].replace("T", " ")] if m.finished else []
    told += [f"{m.seconds:.1f} s"] if m.seconds is not None else []
    told += [f"run '{m.workflow_run}'"] if m.workflow_run else []
    told += [f"image {short_image(m.image)}"] if m.image else []
    return ", ".join(told)


def short_image(image: str) -> str:
    """An image's name with a dozen digits of its digest."""
    name, _, digest = image.partition("@sha256:")
    return f"{name}@{digest[:DIGITS]}" if digest else name


def source_text(s: SourceFacts) -> str:
    """A source in one line."""
    told = [s.kind, *((f"{s.place}@{s.version[:DIGITS]}",) if s.version else (s.place, NO_VERSION))]
    told += [f"{s.kept():,} documents ({s.kept(HELD_OUT):,} of them held out)"] if s.documents else []
    told += [f"{sum(s.tokens.values()):,} tokens"] if s.tokens else []
    told += [_languages(s.languages)] if s.languages else []
    return ", ".join(part for part in (*told, f"licence: {s.licence or 'not recorded'}") if part)


def score_lines(s: ScoreFacts) -> list[str]:
    """A scores artifact: which model and suite, then its scores over all languages."""
    shown = [
        f"  {v['score']}: {v['value']:.4g} ({v['low']:.4g} to {v['high']:.4g})"
        + (f", data {v['data_revision'][:DIGITS]}" if v["data_revision"] else "")
        for v in s.values[:_SCORES]
    ]
    more = [f"  and {len(s.values) - _SCORES} more"] if len(s.values) > _SCORES else []
    head = f"{', '.join(s.suites)} of {s.model} ({s.model_digest[:DIGITS] or 'no digest'}), {s.uri}"
    return [head, *shown, *more]


def _head(found: Trace) -> str:
    kinds: dict[str, int] = {}
    for m in found.makings:
        kinds[m.kind] = kinds.get(m.kind, 0) + 1
    listed = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
    what = "made of" if found.direction == "down" else "made from it"
    return f"{found.what} ({found.how}): {len(found.makings)} artifacts, itself among them, {what}: {listed}"


def _registered(found: Trace) -> Iterable[str]:
    for version in found.registered:
        aliases = "".join(f" @{alias}" for alias in version.aliases)
        gate = f", gate: {version.gate}" if version.gate else ""
        known = f"registered: {version.name}/{version.version}{aliases}, {version.content_digest[:DIGITS]}{gate}"
        yield f"{known}  {version.url}".rstrip()


def _languages(languages: Sequence[str]) -> str:
    if len(languages) <= _LANGUAGES:
        return ", ".join(languages)
    return f"{len(languages)} languages"


def _upwards(found: Trace) -> str:
    columns = ["kind", "label", "digest", "when", "workflow run"]
    rows = [[m.kind, m.label, m.digits, m.finished[:16].replace("T", " "), m.workflow_run] for m in found.makings]
    if found.exposure:
        columns.append("how it comes from it")
        rows = [[*row, found.exposure.get(m.uri, "")] for row, m in zip(rows, found.makings, strict=True)]
    rows = [[*row, m.uri] for row, m in zip(rows, found.makings, strict=True)]
    return table([*columns, "place"], rows, left=len(columns))


@dataclass
class _Tree:
    trace: Trace
    _shown: set[str] = field(default_factory=set)

    def lines(self, uri: str) -> list[str]:
        """The tree from an artifact down; what an earlier one has shown is named alone."""
        lines: list[str] = []
        # (artifact or line, its role, what stands before its first line, and before those below)
        waiting = [(uri, "", "", "")]
        while waiting:
            child, role, lead, below = waiting.pop()
            made = self.trace.making(child)
            if made is None:
                lines.append(f"{lead}{child}")
                continue
            named = f"  ({role})" if role and role not in (made.kind, f"{made.kind}s") else ""
            shown = "  (above)" if made.uri in self._shown else ""
            lines.append(f"{lead}{made.kind}  {made.label or '-'}  {made.digits}{named}{shown}")
            if shown:
                continue
            self._shown.add(made.uri)
            items = self._below(made.uri)
            bar = f"{below}{'│  ' if items else '   '}"
            lines += [f"{bar}{line}" for line in (made_text(made), made.uri, made.mlflow_url, made.airflow_url) if line]
            for place, (one, role_of) in reversed(list(enumerate(items, 1))):
                first, more = ("└─ ", "   ") if place == len(items) else ("├─ ", "│  ")
                waiting.append((one, role_of, f"{below}{first}", f"{below}{more}"))
        return lines

    def _below(self, uri: str) -> list[tuple[str, str]]:
        """Inputs once each with their role, then sources, then what is gone, as lines."""
        found: dict[str, str] = {}
        for item in self.trace.inputs[uri]:
            gone = f"GONE: {lost(item.kind or item.name, item.digest, item.uri)}"
            found.setdefault(item.found or gone, item.name)
        for source in self.trace.sources_of(uri):
            own = source if len(source.read_by) == 1 else replace(source.of({uri: source.read_by[uri]}), tokens={})
            found[f"source  {source.name}: {source_text(own)}"] = ""
        return list(found.items())
