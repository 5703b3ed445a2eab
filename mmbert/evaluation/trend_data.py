"""What the trend page is made from: the results store's history, the registry's versions, the gate's outcome."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mmbert import artifacts, storage
from mmbert.artifacts import Artifact
from mmbert.evaluation.results.store import history
from mmbert.evaluation.selection import Selection, registered_releases
from mmbert.evaluation.trend import Trend, alerts_of, evaluated_models
from mmbert.recipe.languages import language_table
from mmbert.tracking.registry import Registry


def collect_trend(
    root: str, selection: Selection, digests: Sequence[str], registry: Registry | None, promotion: Artifact
) -> Trend:
    """`digests` are those of the selection's models, in its order. The versions are read anew: aliases have moved."""
    releases = registered_releases(registry, selection.name)
    known = dict.fromkeys([*(release.digest for release in releases if release.digest), *digests])
    cards = sorted((card for digest in known for card in history(root, digest)), key=lambda card: card.when)
    models = [(model.label, model.role, digest) for model, digest in zip(selection.models, digests, strict=True)]
    evaluated = evaluated_models(cards, models)
    names = {code: language.name for code, language in language_table().items()}
    outcome = promotion.read_json("promotion.json")
    return Trend(
        name=selection.name,
        when=datetime.datetime.now(datetime.UTC),
        history=tuple(cards),
        evaluated=evaluated,
        releases=releases,
        alerts=(*_refusal(outcome), *alerts_of(evaluated, names)),
        verdicts=tuple(_verdicts(outcome)),
        language_names=names,
    )


def _verdicts(outcome: dict[str, Any]) -> list[str]:
    """A line for the outcome, then the gate's findings."""
    version = (
        f"version {outcome['version']}" if outcome["version"] else "the model that was given, which has no version"
    )
    against = f"against version {outcome['against']}" if outcome["against"] else "by its bounds alone"
    champion = f"the champion is version {outcome['champion']}" if outcome["champion"] else "there is no champion"
    findings = [f"{finding['name']}: {finding['what']}" for finding in outcome["findings"]]
    return [f"{version}: {outcome['outcome']}, {against}; {champion}", *findings]


def _refusal(outcome: dict[str, Any]) -> list[str]:
    if outcome["outcome"] != "refused":
        return []
    return [f"the gate refused {_verdicts(outcome)[0].partition(':')[0]}: {outcome['reason']}"]


@dataclass(frozen=True)
class Told:
    """The alerts that were told before, as empty files named by what they say. Deleting them tells all once more."""

    folder: str
    known: frozenset[str]

    def new(self, alerts: Iterable[str]) -> list[str]:
        return [alert for alert in alerts if _name(alert) not in self.known]

    def add(self, alerts: Iterable[str]) -> None:
        for alert in alerts:
            storage.write_bytes(storage.join(self.folder, _name(alert)), b"")


def told_before(folder: str) -> Told:
    return Told(folder, frozenset(storage.list_files(folder)))


def _name(alert: str) -> str:
    return artifacts.digest_json(alert)[:32]
