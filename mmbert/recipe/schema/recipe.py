"""The whole recipe, and what its sections must agree on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, model_validator

from mmbert.errors import UserError
from mmbert.evaluation.metrics import is_share, lower_is_better, value_range
from mmbert.recipe.languages import LANGUAGE_SETS, language_problem
from mmbert.recipe.schema.base import Name, Section
from mmbert.recipe.schema.curation import Curation, Shards
from mmbert.recipe.schema.evaluation import Evaluation, Release
from mmbert.recipe.schema.model import CheckpointTokenizer, Model, PretrainedTokenizer, TrainedTokenizer
from mmbert.recipe.schema.sources import Source, TokenizedSource
from mmbert.recipe.schema.training import Batch, DecayPhase, Draw, Merge, Mixture, Optimizer, Phases, Training


class Recipe(Section):
    """One whole run: model, tokenizer, data, three phases, merge, evaluation, release."""

    name: Name
    description: str = ""
    seed: int = Field(17, ge=0, lt=2**32)
    model: Model
    tokenizer: Annotated[TrainedTokenizer | PretrainedTokenizer | CheckpointTokenizer, Field(discriminator="kind")]
    sources: dict[Name, Source] = Field(min_length=1)
    language_sets: dict[Name, tuple[str, ...]] = Field(default_factory=dict)
    reserved_languages: tuple[str, ...] = Field(
        (), description="kept from every phase and from the tokenizer's training"
    )
    new_languages: tuple[str, ...] = Field(
        (), description="that a model learns after its training; without, scores call those new that only decay saw"
    )
    curation: Curation = Curation()
    shards: Shards = Shards()
    phases: Phases
    optimizer: Optimizer = Optimizer()
    training: Training
    merge: Merge = Merge()
    evaluation: Evaluation = Evaluation()
    release: Release

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_languages()
        self._check_sources()
        self._check_lanes()
        self._check_merge()
        self._check_gate()
        return self

    def _check_languages(self) -> None:
        for where, codes in self._language_lists():
            for code in codes:
                if problem := language_problem(code):
                    raise ValueError(f"{where}: {problem}")
        for where, draw in self.draws().items():
            if isinstance(draw.languages, str) and draw.languages not in (*LANGUAGE_SETS, *self.language_sets):
                sets = ", ".join([*LANGUAGE_SETS, *self.language_sets])
                raise ValueError(f"{where}.languages: no language set '{draw.languages}'; there are {sets}")

    def _check_sources(self) -> None:
        for name, source in self.sources.items():
            if isinstance(source, TokenizedSource) and isinstance(self.tokenizer, TrainedTokenizer):
                raise ValueError(
                    f"sources.{name} is tokenized already, so this run cannot train its own tokenizer; "
                    "set tokenizer to {kind: pretrained, name: ...}, the tokenizer that made it"
                )
        for where, draw in self.draws().items():
            for share in draw.source_shares:
                if share not in self.sources:
                    raise ValueError(f"{where}.source_shares: no source '{share}'; there are {', '.join(self.sources)}")

    def _check_lanes(self) -> None:
        lanes = self.training.lanes
        for phase in ("pretrain", "extend", "decay"):
            batch: Batch = getattr(self.phases, phase).batch
            for key in ("global_batch_size", "warmup_from"):
                rows = getattr(batch, key)
                if rows is not None and rows % lanes:
                    raise ValueError(f"phases.{phase}.batch.{key} {rows} is not a multiple of training.lanes {lanes}")

    def _check_merge(self) -> None:
        variants = self.phases.decay.variants
        for key in ("variants", "weights"):
            for name in getattr(self.merge, key):
                if name not in variants:
                    raise ValueError(f"merge.{key}: no decay variant '{name}'; there are {', '.join(variants)}")

    def _check_gate(self) -> None:
        measured = self.evaluation.measured()
        for side, (suite, *rest), limit in self.release.gate.named():
            key = f"release.gate.{side}.{'/'.join([suite, *rest])}"
            if suite not in measured:
                raise ValueError(f"{key}: this recipe does not evaluate suite '{suite}'; it does {', '.join(measured)}")
            tasks = self.evaluation.metrics(suite)
            if rest and rest[0] not in tasks:
                raise ValueError(
                    f"{key}: this recipe does not evaluate task '{rest[0]}' of suite '{suite}'; it does "
                    f"{', '.join(tasks)}"
                )
            if rest[1:] and rest[1] not in tasks[rest[0]]:
                raise ValueError(f"{key}: the task's metrics are {', '.join(tasks[rest[0]])}")
            if side in {"minimum", "maximum"}:
                # A suite's mean is one of shares.
                firsts = [found[0] for found in tasks.values() if is_share(found[0])]
                _check_bound(key, side, limit, rest[1:] or [tasks[name][0] for name in rest] or firsts)

    def mixture(self, phase: str, variant: str = "") -> Mixture:
        """What a phase (or one variant of the decay phase) draws. Raises UserError for a variant that is not there."""
        settings = getattr(self.phases, phase)
        if isinstance(settings, DecayPhase) and variant not in settings.variants:
            raise UserError(f"no decay variant '{variant}'; there are {', '.join(settings.variants)}")
        draw = settings.variants[variant] if isinstance(settings, DecayPhase) else settings
        return Mixture(
            languages=draw.languages,
            source_shares=draw.source_shares,
            language_shares=draw.language_shares,
            temperature=settings.temperature,
            max_epochs=settings.max_epochs,
        )

    def draws(self) -> dict[str, Draw]:
        """Everything that names languages and sources, by the key it stands under."""
        found: dict[str, Draw] = {"phases.pretrain": self.phases.pretrain, "phases.extend": self.phases.extend}
        found.update({f"phases.decay.variants.{name}": draw for name, draw in self.phases.decay.variants.items()})
        return found

    def _language_lists(self) -> list[tuple[str, tuple[str, ...]]]:
        lists: list[tuple[str, tuple[str, ...]]] = [("reserved_languages", self.reserved_languages)]
        lists.append(("new_languages", self.new_languages))
        lists += self.curation.language_lists()
        lists += [(f"language_sets.{name}", codes) for name, codes in self.language_sets.items()]
        for where, mixture in self.draws().items():
            if not isinstance(mixture.languages, str):
                lists.append((f"{where}.languages", mixture.languages))
            lists.append((f"{where}.language_shares", tuple(mixture.language_shares)))
        return lists


def _check_bound(key: str, side: str, limit: float, metrics: Sequence[str]) -> None:
    """Raises ValueError where these metrics' values (or their mean) are better the other way, or never get there."""
    better, other = ("lower", "maximum") if side == "minimum" else ("higher", "minimum")
    wrong = next((metric for metric in metrics if lower_is_better(metric) == (side == "minimum")), "")
    if wrong:
        raise ValueError(f"{key}: {better} {wrong} is better; put it under {other}")
    ranges = [value_range(metric) for metric in metrics]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    if not low <= limit <= high:
        possible = f"from {low:g} to {high:g} (15% is 0.15)" if math.isfinite(high) else f"{low:g} or more"
        raise ValueError(f"{key}: {limit:g} is no value that {metrics[0]} can have; it is {possible}")
