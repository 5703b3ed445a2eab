"""A trace as one HTML page that needs no network; its links lead into MLflow and Airflow."""

from __future__ import annotations

from typing import Any

from mmbert.evaluation import lineage
from mmbert.evaluation.report_data import LineageNode
from mmbert.lineage.facts import Making
from mmbert.lineage.sources import HELD_OUT
from mmbert.lineage.text import DIGITS, short_image, source_text
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
    """Sources first, then artifacts, then what is gone; drawn by content, so equal contents are one."""
    nodes = [LineageNode("source", s.name, s.place, s.ident) for s in found.sources]
    nodes += [LineageNode(f"gone: {m.kind}", m.uri.rsplit("/", 1)[-1], m.uri, m.digest or m.uri) for m in found.missing]
    digests = {m.uri: m.content_digest for m in found.makings}
    for m in found.makings:
        inputs = [digests.get(i.found, i.digest or i.uri) for i in found.inputs[m.uri]]
        inputs += [s.ident for s in found.sources_of(m.uri)]
        nodes.append(LineageNode(m.kind, m.label or m.kind, m.uri, m.content_digest, tuple(inputs)))
    return nodes


def _row(found: Trace, m: Making) -> dict[str, Any]:
    inputs = [i for i in found.inputs[m.uri] if found.direction == "down" or found.making(i.found)]
    return {
        "made": m,
        "component": f"{m.component} {m.component_version or ''}".strip(),
        "image": short_image(m.image),
        "when": m.finished[:16].replace("T", " "),
        "inputs": [(i.name, (i.digest or i.uri)[:DIGITS], not i.found) for i in inputs]
        + [(s.name, "source", False) for s in found.sources_of(m.uri)],
        "exposure": found.exposure.get(m.uri, ""),
    }
