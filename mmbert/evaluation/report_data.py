"""What a run's report is made from: plain values, taken from the manifests of the run's artifacts."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mmbert.data.mixture import MixtureRow
from mmbert.evaluation.results.scorecard import Scorecard
from mmbert.evaluation.scores import Score

RELEASE, VARIANT, UNTRAINED = "release", "variant", "untrained"
"""Kinds of model: the merged model, a decay variant, and an untrained model of the same shape."""


@dataclass(frozen=True)
class HistoryRow:
    """One logged point of training. `tokens_seen` counts from the phase's start; `padding_share` is of all tokens."""

    tokens_seen: int
    loss: float
    learning_rate: float
    mask_probability: float
    global_batch_size: int
    tokens_per_second: float
    padding_share: float


@dataclass(frozen=True)
class PhaseReport:
    """One phase, or one variant of the decay. `bits_per_byte` is by language, held out, at the phase's end."""

    name: str
    label: str
    mixture: tuple[MixtureRow, ...]
    history: tuple[HistoryRow, ...]
    bits_per_byte: Mapping[str, float]
    variant: str | None = None

    @property
    def tokens(self) -> int:
        return self.history[-1].tokens_seen if self.history else 0

    def language_shares(self) -> dict[str, float]:
        """Share of the phase's tokens by language, over all sources; the largest first."""
        shares: dict[str, float] = {}
        for row in self.mixture:
            shares[row.language] = shares.get(row.language, 0.0) + row.share
        return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))

    def language_tokens(self) -> dict[str, int]:
        tokens: dict[str, int] = {}
        for row in self.mixture:
            tokens[row.language] = tokens.get(row.language, 0) + row.tokens
        return tokens


@dataclass(frozen=True)
class ModelReport:
    """A model that was evaluated. `kind` is RELEASE, VARIANT or UNTRAINED; `name` is the variant's for a VARIANT."""

    name: str
    label: str
    kind: str
    scores: tuple[Score, ...]

    def score(
        self, task: str, metric: str | None = None, language: str | None = None, suite: str | None = None
    ) -> Score | None:
        """The model's score of a task; of several metrics the first. None where it was not measured."""
        for found in self.scores:
            named = found.task == task and metric in (None, found.metric) and suite in (None, found.suite)
            if named and found.language == language:
                return found
        return None

    def scorecard(self) -> Scorecard:
        return Scorecard(self.label, "", self.kind, "", self.scores)

    def by_language(self, task: str) -> dict[str, Score]:
        return {s.language: s for s in self.scores if s.task == task and s.language is not None}


@dataclass(frozen=True)
class ComponentTime:
    """How long a component ran. A `reused` one was found done: `seconds` is what it took when it was made."""

    name: str
    label: str
    seconds: float
    reused: bool = False


@dataclass(frozen=True)
class LineageNode:
    """An artifact: its URI, the URIs of what it was made from, and where else it is shown.

    `digest` is its content digest, or what is to be said where that is none.
    """

    kind: str
    label: str
    uri: str
    digest: str
    inputs: tuple[str, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportData:
    """All of a run. `phases` stand in the order they ran, decay variants last; `run` is shown as label and value.

    `new_languages` are those that only the decay brings in; `language_names` are names for people.
    """

    recipe_name: str
    description: str
    run: Mapping[str, str]
    phases: tuple[PhaseReport, ...]
    models: tuple[ModelReport, ...]
    times: tuple[ComponentTime, ...]
    lineage: tuple[LineageNode, ...]
    data_card: str
    new_languages: frozenset[str] = frozenset()
    language_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def trunk(self) -> tuple[PhaseReport, ...]:
        """The phases that every model shares."""
        return tuple(p for p in self.phases if p.variant is None)

    @property
    def variants(self) -> tuple[PhaseReport, ...]:
        return tuple(p for p in self.phases if p.variant is not None)

    @property
    def widest_variant(self) -> PhaseReport | None:
        """The decay variant with the most languages."""
        return max(self.variants, key=lambda p: len(p.language_shares()), default=None)

    @property
    def release(self) -> ModelReport | None:
        return next((m for m in self.models if m.kind == RELEASE), None)

    @property
    def untrained(self) -> ModelReport | None:
        return next((m for m in self.models if m.kind == UNTRAINED), None)

    def name_of(self, language: str) -> str:
        return self.language_names.get(language, language)


def mean_over(values: Mapping[str, float], languages: Iterable[str]) -> float | None:
    """Mean of the values of those of the languages that have one; None where none has."""
    known = [values[code] for code in languages if code in values]
    return statistics.fmean(known) if known else None
