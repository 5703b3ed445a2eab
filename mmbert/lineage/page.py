"""A trace as one HTML page that needs no network; its links lead into MLflow and Airflow."""

from __future__ import annotations

from typing import Any

from mmbert.artifacts import identifies
from mmbert.evaluation import lineage
from mmbert.evaluation.report_data import LineageNode
from mmbert.lineage.facts import DIGITS, NOT_DIGESTED, Making, short_digest
from mmbert.lineage.sources import HELD_OUT
from mmbert.lineage.store import Input, Missing
from mmbert.lineage.text import lost, short_image, source_text
from mmbert.lineage.trace import Trace
from mmbert.pages.page import Card, render, short_number


def trace_page(found: Trace) -> str:
    """The page as HTML: cards, the drawing, artifacts, sources, scores, and what is gone or not known."""
    return render(
        "mmbert.lineage",
        "trace.html",
        title=found.what,
        eyebrow="Lineage",
        lead="Everything that it was made of, down to the sources."
        if found.direction == "down"
        else "Everything that was made from it.",
        facts=_facts(found),
        plots={},
        found=found,
        cards=_cards(found),
        drawing=lineage.draw(_nodes(found)),
        box=(lineage.WIDTH, lineage.HEIGHT),
        rows=[_row(found, m) for m in found.makings],
        sources=[(s, source_text(s)) for s in found.sources],
        lost=lost,
        digits=DIGITS,
    )


def _facts(found: Trace) -> dict[str, str]:
    facts = {"Found as": found.how, "Store": found.root}
    if found.registered:
        named = (f"{v.name}/{v.version}{''.join(f' @{a}' for a in v.aliases)}" for v in found.registered)
        facts["Registered"] = ", ".join(named)
    runs = list(dict.fromkeys(m.workflow_run for m in found.makings if m.workflow_run))
    commits = list(dict.fromkeys(m.commit[:DIGITS] for m in found.makings if m.commit))
    facts["Workflow runs"] = ", ".join(runs[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else "") or "none"
    facts["Commits"] = ", ".join(commits[:3]) + (f" and {len(commits) - 3} more" if len(commits) > 3 else "") or "none"
    return facts


def _cards(found: Trace) -> list[Card]:
    kinds = len({m.kind for m in found.makings})
    cards = [Card("Artifacts", f"{len(found.makings):,}", f"of {kinds} kinds")]
    languages = {language for s in found.sources for language in s.languages}
    documents, held = (sum(s.kept(split) for s in found.sources) for split in ("", HELD_OUT))
    if found.sources:
        cards.append(Card("Sources", f"{len(found.sources):,}", f"{len(languages):,} languages"))
        cards.append(Card("Documents", short_number(documents), f"{short_number(held)} of them held out"))
    if found.registered:
        aliases = [alias for v in found.registered for alias in v.aliases]
        cards.append(Card("Registered versions", f"{len(found.registered)}", ", ".join(aliases) or "no alias"))
    if found.missing:
        cards.append(Card("Gone", f"{len(found.missing)}", "inputs that are not there any more"))
    return cards


def _nodes(found: Trace) -> list[LineageNode]:
    """Sources first, then what is gone, then artifacts."""
    nodes = [LineageNode("source", s.name, s.ident, s.version or "no version") for s in found.sources]
    nodes += [
        LineageNode(
            f"gone: {m.kind}", m.uri.rsplit("/", 1)[-1], _gone(m), m.digest if identifies(m.kind, m.digest) else ""
        )
        for m in found.missing
    ]
    for m in found.makings:
        inputs = [i.found or _gone(i) for i in found.inputs[m.uri]] + [s.ident for s in found.sources_of(m.uri)]
        digest = m.content_digest if m.identified else NOT_DIGESTED
        nodes.append(LineageNode(m.kind, m.label or m.kind, m.uri, digest, tuple(inputs)))
    return nodes


def _gone(item: Input | Missing) -> str:
    """Another content may stand at its place."""
    return f"{item.uri}, gone{f' ({short})' if (short := short_digest(item.kind, item.digest)) else ''}"


def _row(found: Trace, m: Making) -> dict[str, Any]:
    inputs = [i for i in found.inputs[m.uri] if found.direction == "down" or found.making(i.found)]
    return {
        "made": m,
        "component": f"{m.component} {m.component_version or ''}".strip(),
        "image": short_image(m.image),
        "when": m.finished[:16].replace("T", " "),
        "inputs": [(i.name, _named(i), not i.found) for i in inputs]
        + [(s.name, "source", False) for s in found.sources_of(m.uri)],
        "exposure": found.exposure.get(m.uri, ""),
    }


def _named(item: Input) -> str:
    """By its digest, or where that says the kind alone by its place, which ends with its fingerprint."""
    digest = item.digest and short_digest(item.kind, item.digest)
    return digest or item.uri.rsplit("/", 1)[-1][:DIGITS]
