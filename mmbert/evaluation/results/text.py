"""Scores and comparisons for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mmbert.evaluation.metrics import is_share
from mmbert.evaluation.results.compare import Comparison, Difference, SuiteChange
from mmbert.evaluation.results.scorecard import Scorecard
from mmbert.evaluation.scores import Score
from mmbert.tables import table

_LANGUAGES = 40
_NAMES = 12


def number(value: float, metric: str, sign: str = "") -> str:
    """`71.4%` of a share, `2.135` of anything else; `sign` "+" for changes."""
    return f"{100 * value:{sign}.1f}{'' if sign else '%'}" if is_share(metric) else f"{value:{sign}.4g}"


def value_text(score: Score) -> str:
    """The value with its interval; alone where it was published without one."""
    value = number(score.value, score.metric)
    return f"{value} ({number(score.low, score.metric)} to {number(score.high, score.metric)})" if score.n else value


def change_text(difference: Difference | SuiteChange, metric: str) -> str:
    change = number(difference.change, metric, "+")
    if difference.low is None or difference.high is None:
        return change
    return f"{change} ({number(difference.low, metric, '+')} to {number(difference.high, metric, '+')})"


def verdict_text(difference: Difference, level: float) -> str:
    """`better *`, `worse *` where it is significant, else why nothing is said."""
    if difference.unlike:
        return "not comparable"
    if difference.p is None:
        return "published" if difference.published else "no test"
    side = "better" if difference.gain > 0 else "worse"
    return (
        f"{side} * (p {difference.p:.2g})" if difference.significant(level) else f"within chance (p {difference.p:.2g})"
    )


def comparison_text(found: Comparison, baseline: Scorecard | None, level: float) -> str:
    """The whole comparison: suites, tasks, languages, what differs and what only one side has."""
    before, after = found.before.model, found.after.model
    parts = [f"{before} -> {after}: change, 95% interval; * significant at {level:g}, two-sided"]
    columns = [before, after, "change", ""]
    if suites := found.suites():
        rows = [
            [f"{s.suite} (mean of {s.tasks})", number(s.before, ""), number(s.after, ""), change_text(s, ""),
             _suite_verdict(s, level)]
            for s in suites
        ]  # fmt: skip
        parts.append(table(["suite", *columns], rows, left=1))
    published = {s.name: s for s in baseline.scores} if baseline else {}
    named = [f"{baseline.model} (published)"] if baseline else []

    def row(d: Difference) -> list[str]:
        known = published.get(d.after.name)
        beside = [number(known.value, known.metric) if known else "-"] if baseline else []
        change = change_text(d, d.after.metric)
        return [d.after.name, value_text(d.before), value_text(d.after), *beside, change, verdict_text(d, level)]

    parts.append(table(["score", before, after, *named, "change", ""], [row(d) for d in found.overall], left=1))
    if languages := found.by_language:
        shown = [d for d in languages if d.significant(level)][:_LANGUAGES]
        fell, rose = (sum(d.significant(level) and side(d) for d in languages) for side in (_fell, _rose))
        head = f"of {len(languages)} scores of languages {fell} fell and {rose} rose significantly (Holm, by task)"
        more = f"; the {_LANGUAGES} worst of them, all are on the page (--out)" if fell + rose > _LANGUAGES else ""
        listed = [table(["language", *columns], [_language_row(d, level) for d in shown], left=1)] if shown else []
        parts.append("\n".join([head + more, *listed]))
    parts += notes(found)
    return "\n\n".join(parts)


def comparison_json(found: Comparison, baseline: Scorecard | None, level: float) -> dict[str, Any]:
    """The same for programs; shares are 0 to 1, and None is what is not known. docs/results.md describes its keys."""
    published = {s.name: s.value for s in baseline.scores} if baseline else {}
    return {
        "before": found.before.model,
        "after": found.after.model,
        "significance": level,
        "suites": [{**asdict(s), "change": s.change, "significant": s.significant(level)} for s in found.suites()],
        "scores": [
            {
                "name": d.after.name,
                "language": d.after.language,
                "before": d.before.value,
                "after": d.after.value,
                "change": d.change,
                "low": d.low,
                "high": d.high,
                "p": d.p,
                "method": d.method,
                "better": d.gain > 0,
                "significant": d.significant(level),
                "unlike": list(d.unlike),
                **({"baseline": published.get(d.after.name)} if baseline else {}),
            }
            for d in found.differences
        ],
        "only_before": list(found.only_before),
        "only_after": list(found.only_after),
    }


def _fell(difference: Difference) -> bool:
    return difference.gain < 0


def _rose(difference: Difference) -> bool:
    return difference.gain > 0


def _suite_verdict(change: SuiteChange, level: float) -> str:
    if change.p is None:
        return "no test"
    return f"{'* ' if change.significant(level) else 'within chance '}(p {change.p:.2g})"


def _language_row(d: Difference, level: float) -> list[str]:
    change = change_text(d, d.after.metric)
    return [d.after.name, value_text(d.before), value_text(d.after), change, verdict_text(d, level)]


def notes(found: Comparison) -> list[str]:
    """What keeps scores from being compared, and what only one side was measured on."""
    said = []
    groups: dict[str, list[str]] = {}
    for d in found.differences:
        if d.unlike:
            groups.setdefault("; ".join(d.unlike), []).append(d.after.name)
    for how, names in groups.items():
        said.append(f"not compared, {how} ({found.before.model} / {found.after.model}): {_names(names)}")
    for card, only in ((found.before, found.only_before), (found.after, found.only_after)):
        if only:
            said.append(f"only {card.model} has: {_names(only)}")
    methods: dict[str, int] = {}
    for d in found.differences:
        methods[d.method] = methods.get(d.method, 0) + 1
    said.append("method: " + ", ".join(f"{method} for {count}" for method, count in methods.items()))
    return said


def _names(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return ", ".join(names[:_NAMES]) + rest
