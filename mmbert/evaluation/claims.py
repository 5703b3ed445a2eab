"""What a run set out to show, checked against its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mmbert.evaluation.report_data import VARIANT, PhaseReport, ReportData, mean_over
from mmbert.evaluation.suites.names import BITS_PER_BYTE, BITS_PER_BYTE_NEW, RETRIEVAL

ENGLISH = "eng_Latn"


@dataclass(frozen=True)
class Claim:
    """A statement, the figures for or against it, and whether it holds; None where the run cannot say."""

    statement: str
    holds: bool | None
    figures: tuple[str, ...]


def claims(data: ReportData) -> list[Claim]:
    """The three claims of a pretraining run, in order."""
    return [_phases_learn(data), _wide_decay_helps(data), _retrieval_works(data)]


def _phases_learn(data: ReportData) -> Claim:
    """Each phase is judged on the languages that it trains on, before and after it: by their mean and by how many."""
    statement = "Held-out bits per byte fall in each phase"
    before: Mapping[str, float] = {}
    before_label = "untrained"
    if data.untrained:
        before = {code: score.value for code, score in data.untrained.by_language(BITS_PER_BYTE).items()}
    figures, verdicts = [], []
    for phase in (*data.trunk, *data.variants):
        languages = set(phase.language_shares()) & set(before) & set(phase.bits_per_byte)
        old, new = mean_over(before, languages), mean_over(phase.bits_per_byte, languages)
        if old is not None and new is not None:
            better = sum(phase.bits_per_byte[code] < before[code] for code in languages)
            counted = f"better in {better} of {len(languages)} languages"
            figures.append(f"{phase.label}, mean of the languages: {old:.3f} ({before_label}) to {new:.3f}; {counted}")
            verdicts.append(new < old and 2 * better > len(languages))
        if phase.variant is None:
            before, before_label = phase.bits_per_byte, f"after {phase.label}"
    measured = len(verdicts) >= max(1, len(data.phases) - (data.untrained is None))
    return Claim(statement, all(verdicts) if measured else None, tuple(figures))


def _wide_decay_helps(data: ReportData) -> Claim:
    statement = "On languages new to it, the decay over all languages beats the English-focused one"
    wide, english = data.widest_variant, english_variant(data)
    if wide is None or english is None or not data.new_languages:
        return Claim(statement, None, ("needs two decay variants and languages that only one of them has",))
    languages = sorted(data.new_languages & set(wide.bits_per_byte) & set(english.bits_per_byte))
    ours, theirs = mean_over(wide.bits_per_byte, languages), mean_over(english.bits_per_byte, languages)
    if ours is None or theirs is None:
        return Claim(statement, None, ("no held-out text in the new languages",))
    better = sum(wide.bits_per_byte[code] < english.bits_per_byte[code] for code in languages)
    figures = [
        f"mean bits per byte over the new languages: {wide.label} {ours:.3f}, {english.label} {theirs:.3f}",
        f"better in {better} of {len(languages)} languages",
    ]
    by_name = {m.name: m.score(BITS_PER_BYTE_NEW) for m in data.models if m.kind == VARIANT}
    wide_score, english_score = by_name.get(wide.variant or ""), by_name.get(english.variant or "")
    if wide_score and english_score:
        figures.append(
            f"95% intervals over all their held-out bytes: {wide_score.low:.3f} to {wide_score.high:.3f} against "
            f"{english_score.low:.3f} to {english_score.high:.3f}"
        )
    return Claim(statement, ours < theirs, tuple(figures))


def english_variant(data: ReportData) -> PhaseReport | None:
    """Of the variants besides the widest, the one with the largest share of English."""
    others = [p for p in data.variants if p is not data.widest_variant]
    return max(others, key=lambda p: p.language_shares().get(ENGLISH, 0.0), default=None)


def _retrieval_works(data: ReportData) -> Claim:
    statement = "Retrieval between languages beats chance and the untrained model"
    release = data.release.score(RETRIEVAL) if data.release else None
    untrained = data.untrained.score(RETRIEVAL) if data.untrained else None
    if data.release is None or data.untrained is None:
        return Claim(statement, None, ("needs the scores of the released and the untrained model",))
    if release is None or untrained is None or release.chance is None:
        return Claim(
            statement, None, ("needs the same text in several languages, and no source of this run has such text",)
        )
    figures = (
        f"released model {release.value:.1%} ({release.low:.1%} to {release.high:.1%})",
        f"untrained model {untrained.value:.1%} ({untrained.low:.1%} to {untrained.high:.1%})",
        f"chance {release.chance:.1%}",
    )
    return Claim(statement, release.low > max(untrained.high, release.chance), figures)
