"""From candidate to champion: the gate's verdict, its record in the registry, and the alias, moved last.

What is written, in this order: the tags of the candidate's version, then (where it passed) the alias `champion`. Each
step can be repeated, so a promotion that was cut off is finished by running it again; until the alias has moved, the
former champion is the champion. Before it moves, the champion is read again: where another promotion came first, the
gate judges anew against its model.
"""

from __future__ import annotations

import getpass
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from mmbert import artifacts
from mmbert.errors import InfrastructureError, UserError
from mmbert.evaluation.results.gate import Finding, Verdict, judge
from mmbert.evaluation.results.scorecard import Scorecard, merged
from mmbert.evaluation.results.store import artifact_scorecard
from mmbert.recipe.schema import Gate
from mmbert.tables import now
from mmbert.tracking.registry import CHAMPION, ModelVersion, Registry

Outcome = Literal["passed", "refused", "overridden"]

GATE = "mmbert.gate"
"""The tag of a version that holds the outcome."""
REASON, WHEN, BY, AGAINST = f"{GATE}_reason", f"{GATE}_when", f"{GATE}_by", f"{GATE}_champion"
SCORES = "mmbert.scores."
"""The tags `mmbert.scores.<suite>` of a version hold the URIs of its scores artifacts."""
NO_REASON = "an override needs a reason that others can read"
_ROUNDS = 5


@dataclass(frozen=True)
class Promotion:
    """What came of it. `champion` is the version that the alias points at now, None without a registry.

    `against` is the version that the candidate was compared with; empty for the first release, and for the champion
    itself (`was_champion`). Of an override that stays, `by` and `when` are its own.
    """

    outcome: Outcome
    verdict: Verdict
    reason: str
    version: str | None
    champion: str | None
    against: str
    by: str
    when: str
    was_champion: bool = False

    @property
    def promoted(self) -> bool:
        return self.version is not None and self.champion == self.version

    def to_json(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome,
            "promoted": self.promoted,
            "reason": self.reason,
            "version": self.version,
            "champion": self.champion,
            "against": self.against,
            "by": self.by,
            "when": self.when,
            "champion_scores": self.verdict.champion,
            "findings": [asdict(finding) for finding in self.verdict.findings],
        }

    def text(self, name: str) -> str:
        """What happened, for a terminal."""
        version = f"{name} version {self.version}" if self.version else name
        alone = "the champion itself" if self.was_champion else "the first release"
        against = f"against version {self.against}" if self.against else f"{alone}, so bounds alone count"
        promoted = "was promoted" if self.version else "is let through"
        stays = "stays champion" if self.was_champion else promoted
        head = {
            "passed": f"{version} passed the gate ({against})",
            "refused": f"{version} was refused by the gate ({against})",
            "overridden": f"{version} {stays} against the gate ({against}) by {self.by}, {self.when}: {self.reason}",
        }[self.outcome]
        champion = f"champion: version {self.champion}" if self.champion else "no champion"
        end = champion if self.version else "only judged: it stands as no version here, so the champion stays as it is"
        return "\n".join(line for line in (head, self.verdict.text(), end) if line)


def promote(
    registry: Registry | None,
    name: str,
    version: str | None,
    gate: Gate,
    candidate: Scorecard,
    champions: Sequence[Scorecard] = (),
    override: str = "",
) -> Promotion:
    """Judge a version and, where it passes or `override` gives a reason, make it the champion.

    `champions` are scorecards at hand, used where one is the champion's; else its tags lead to its scores. Without a
    registry only the bounds are judged. A champion that is judged again keeps its alias, and an override its tag.

    The reason is kept only where the gate refuses. Raises UserError for one of blanks, InfrastructureError where MLflow
    stays away; the alias has not moved then.
    """
    if override and not override.strip():
        raise UserError(NO_REASON)
    by, when = _who(), now()

    def made(outcome: Outcome, verdict: Verdict, reason: str, champion: str | None, against: str) -> Promotion:
        return Promotion(outcome, verdict, reason, version, champion, against, by, when)

    if registry is None or version is None:
        verdict = judge(gate, candidate, None)
        outcome = _outcome(verdict, override)
        return made(outcome, verdict, _reason(verdict, outcome, override), None, "")
    for _ in range(_ROUNDS):
        champion = registry.by_alias(name, CHAMPION)
        own = champion is not None and champion.version == version
        verdict = _verdict(gate, candidate, None if own else champion, champions)
        against = "" if champion is None or own else champion.version
        outcome = _outcome(verdict, override)
        reason = _reason(verdict, outcome, override)
        kept = own and champion is not None and champion.tags.get(GATE) == "overridden" and outcome == "refused"
        if champion is not None and kept:
            reason, by, when = (champion.tags.get(key, "-") for key in (REASON, BY, WHEN))
            return replace(made("overridden", verdict, reason, version, ""), by=by, when=when, was_champion=True)
        if outcome == "refused":
            registry.set_tags(name, version, _record(outcome, reason, by, when, against))
            refused = made(outcome, verdict, reason, champion.version if champion else None, against)
            return replace(refused, was_champion=own)
        registry.set_tags(name, version, _record(outcome, reason, by, when, against))
        if own:
            return replace(made(outcome, verdict, reason, version, against), was_champion=True)
        if _same(registry.by_alias(name, CHAMPION), champion):
            registry.set_alias(name, CHAMPION, version)
            return made(outcome, verdict, reason, version, against)
    raise InfrastructureError(f"{name}: other promotions moved the alias '{CHAMPION}' {_ROUNDS} times; run it again")


def _same(one: ModelVersion | None, other: ModelVersion | None) -> bool:
    return (one.version if one else None) == (other.version if other else None)


def _outcome(verdict: Verdict, override: str) -> Outcome:
    if verdict.passed:
        return "passed"
    return "overridden" if override else "refused"


def _reason(verdict: Verdict, outcome: Outcome, override: str) -> str:
    if outcome == "overridden":
        return override
    return "; ".join(str(finding) for finding in verdict.refusals)


def _record(outcome: Outcome, reason: str, by: str, when: str, against: str) -> dict[str, str]:
    """The outcome stands last: where a promotion is cut off, the former outcome still stands, or the whole record."""
    return {REASON: reason or "-", WHEN: when, BY: by, AGAINST: against or "-", GATE: outcome}


def _verdict(gate: Gate, candidate: Scorecard, champion: ModelVersion | None, at_hand: Sequence[Scorecard]) -> Verdict:
    if champion is None:
        return judge(gate, candidate, None)
    own = [card for card in at_hand if card.model_digest == champion.digest]
    where = f"{champion.name} version {champion.version}"
    try:
        scores = merged(own, where) if own else version_scores(champion)
    except UserError as error:
        bounds = judge(gate, candidate, None)
        unread = Finding(f"the champion's scores cannot be read ({error}); evaluate it again, or override", where)
        return Verdict((unread, *bounds.findings))
    return judge(gate, candidate, _measured(scores, candidate))


def _measured(champion: Scorecard, candidate: Scorecard) -> Scorecard:
    """The champion's scores in the candidate's suites: a gate is about the suites that its recipe runs."""
    suites = candidate.suites()
    kept = tuple(score for score in champion.scores if score.suite in suites)
    return Scorecard(champion.model, champion.model_digest, champion.kind, champion.suite, kept)


def version_scores(version: ModelVersion, opened: Callable[[str], Any] = artifacts.open_artifact) -> Scorecard:
    """The scores of a registered version, of all suites. Raises UserError where its tags lead to none."""
    where = f"{version.name} version {version.version}"
    uris = [value for key, value in sorted(version.tags.items()) if key.startswith(SCORES)]
    if not uris:
        raise UserError(f"{where}: it has no tags {SCORES}<suite>, so its scores are not known; evaluate it again")
    cards = {uri: artifact_scorecard(opened(uri)) for uri in dict.fromkeys(uris)}
    return merged(cards.values(), where)


def tag_scores(registry: Registry, name: str, cards: Mapping[str, Scorecard]) -> None:
    """Lead the tags of each version whose model these scorecards (by URI) are of to them: they are its newest."""
    for version in registry.versions(name):
        own = {uri: card for uri, card in cards.items() if card.model_digest and card.model_digest == version.digest}
        tags = {f"{SCORES}{suite}": uri for uri, card in own.items() for suite in card.suites()}
        registry.set_tags(name, version.version, {k: v for k, v in tags.items() if version.tags.get(k) != v})


def _who() -> str:
    return os.environ.get("MMBERT_USER") or f"{getpass.getuser()}@{platform.node()}"
