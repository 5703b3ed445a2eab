"""A run's figures of realistic size for the report: 450 languages, three decay variants, a lineage of 19 artifacts."""

from __future__ import annotations

import hashlib
import math
import random

from mmbert.data.mixture import MixtureRow
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
from mmbert.evaluation.scores import Score
from mmbert.recipe.languages import language_table

VARIANT_LABELS = {"decay-eng": "Decay, English", "decay-cont": "Decay, 110", "decay-all": "Decay, all"}


def sample_report(seed: int = 3) -> ReportData:
    rng = random.Random(seed)
    table = language_table()
    ranked = sorted((c for c in table if c != "code"), key=lambda c: (-table[c].tokens["decay-all"], c))
    sets = {"pretrain": ranked[:59], "extend": ranked[:110], "decay-eng": ranked[:110], "decay-cont": ranked[:110]}
    sets["decay-all"] = ranked[:450]
    untrained = {code: rng.gauss(5.8, 0.5) for code in ranked[:460]}
    pretrain = _learn(untrained, sets["pretrain"], 0.24, 0.1, rng)
    extend = _learn(pretrain, sets["extend"], 0.12, 0.02, rng)
    after = {name: _learn(extend, sets[name], 0.14, -0.02, rng) for name in VARIANT_LABELS}
    phases = [
        _phase("pretrain", "Pre-training", sets["pretrain"], 0.7, 3_000_000, (9.4, 5.6), (0.3, 2e-3, 2e-3), pretrain),
        _phase("extend", "Context extension", sets["extend"], 0.5, 1_000_000, (5.5, 5.1), (0.15, 2e-3, 2e-3), extend),
    ]
    for name, label in VARIANT_LABELS.items():
        ends, plan = (5.0, 4.4 + 0.2 * (name == "decay-all")), (0.05, 2e-3, 4e-5)
        phases.append(_phase("decay", label, sets[name], 0.3, 800_000, ends, plan, after[name], variant=name))
    models = [_model("release", "Merged model", RELEASE, 0.218, after["decay-all"], 0.87)]
    for rate, (name, label) in zip((0.2, 0.21, 0.22), VARIANT_LABELS.items(), strict=True):
        models.append(_model(name, label, VARIANT, rate, after[name], 0.86))
    models.append(_model("untrained", "Untrained", UNTRAINED, 0.147, untrained, 0.69))
    return ReportData(
        recipe_name="tiny",
        description="The whole recipe on two CPU cores: three phases, three decay variants, a merge, a released model.",
        run={"Run": "demo", "Parameters": "2.3M", "Layers": "4 × 128", "Vocabulary": "12,288", "Seed": "17"},
        phases=tuple(phases),
        models=tuple(models),
        times=_times(),
        lineage=_lineage(),
        data_card="# Data\n\n| source | licence |\n|---|---|\n| eld | Apache-2.0 |\n\nIts *origin* is not stated.",
        new_languages=frozenset(sets["decay-all"][110:]),
        language_names={code: table[code].name for code in table},
    )


def _learn(
    before: dict[str, float], trained: list[str], gain: float, other: float, rng: random.Random
) -> dict[str, float]:
    known = set(trained)
    return {c: v * (1 - rng.gauss(gain if c in known else other, 0.03)) for c, v in before.items()}


def _phase(
    name: str,
    label: str,
    languages: list[str],
    temperature: float,
    tokens: int,
    loss: tuple[float, float],
    plan: tuple[float, float, float],
    bits: dict[str, float],
    variant: str | None = None,
) -> PhaseReport:
    table, rng = language_table(), random.Random(label)
    sizes = {c: max(table[c].tokens["decay-all"], 1) ** temperature for c in languages}
    total = sum(sizes.values())
    mixture = [
        MixtureRow("eld" if i < 59 else "udhr", c, share, round(tokens * share), 0.4 + i / 100, i > 400)
        for i, (c, share) in enumerate((c, size / total) for c, size in sizes.items())
    ]
    mask, start_rate, end_rate = plan
    history = []
    for step in range(1, 61):
        done = step / 60
        rate = start_rate + (end_rate - start_rate) * math.sqrt(done) if variant else start_rate
        if name == "pretrain":
            rate *= min(1, done / 0.1)
        value = loss[1] + (loss[0] - loss[1]) * math.exp(-5 * done) + rng.gauss(0, 0.05)
        history.append(HistoryRow(round(tokens * done), value, rate, mask, 16, rng.gauss(8000, 300), 0.011))
    return PhaseReport(name, label, tuple(mixture), tuple(history), bits, variant)


def _model(
    name: str, label: str, kind: str, retrieval: float, bits: dict[str, float], language_id: float
) -> ModelReport:
    mean = sum(bits.values()) / len(bits)

    def score(
        task: str,
        value: float,
        width: float,
        chance: float | None = None,
        language: str | None = None,
        metric: str = "accuracy",
    ) -> Score:
        return Score("demo", task, metric, value, value - width, value + width, 60, language, chance)

    scores = [
        score("masked_bits_per_byte", mean, 0.06, metric="bits_per_byte"),
        score("masked_bits_per_byte_new_languages", mean + 0.3, 0.08, metric="bits_per_byte"),
        score("article_retrieval", retrieval, 0.02, 0.1),
        score("language_identification", language_id, 0.015, 1 / 59),
        score("intent_classification", 0.66, 0.03, 0.077),
        score("intent_classification", 0.64, 0.03, metric="macro_f1"),
    ]
    for index, code in enumerate(list(bits)[:60]):
        scores.append(score("article_retrieval", retrieval + 0.05 * math.sin(index), 0.03, 0.1, code))
    scores += [score("masked_bits_per_byte", v, 0.2, language=c, metric="bits_per_byte") for c, v in bits.items()]
    return ModelReport(name, label, kind, tuple(scores))


def _times() -> tuple[ComponentTime, ...]:
    rows = [("curate", 14.2), ("tokenizer", 13.1), ("tokenize", 4.4), ("mixture", 0.6), ("train_pretrain", 121.4)]
    rows += [("train_extend", 49.0), *((f"train_decay · {v}", 41.5) for v in VARIANT_LABELS), ("merge", 3.2)]
    rows += [("convert", 6.1), ("evaluate", 16.5), ("report", 2.4)]
    done = {"curate", "tokenizer"}
    return tuple(ComponentTime(n, n.replace("_", " ").capitalize(), s, reused=n in done) for n, s in rows)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _lineage() -> tuple[LineageNode, ...]:
    made: dict[str, LineageNode] = {}

    def node(kind: str, label: str, *inputs: str) -> None:
        uris = tuple(made[i].uri for i in inputs)
        made[label] = LineageNode(kind, label, f"s3://mmbert/{kind}/{_digest(label)[:32]}", _digest(label), uris)

    node("recipe", "Recipe tiny")
    node("documents", "Documents 1", "Recipe tiny")
    node("documents", "Documents 2", "Recipe tiny")
    node("tokenizer", "Tokenizer", "Documents 1", "Documents 2")
    node("shards", "Shards 1", "Documents 1", "Tokenizer")
    node("shards", "Shards 2", "Documents 2", "Tokenizer")
    for phase in ("pretrain", "extend", *VARIANT_LABELS):
        node("mixture", f"Mixture {phase}", "Shards 1", "Shards 2")
    node("checkpoint", "Pre-trained", "Mixture pretrain")
    node("checkpoint", "Extended", "Mixture extend", "Pre-trained")
    for variant in VARIANT_LABELS:
        node("checkpoint", f"Checkpoint {variant}", f"Mixture {variant}", "Extended")
    node("checkpoint", "Merged", "Extended", *(f"Checkpoint {v}" for v in VARIANT_LABELS))
    node("model", "Released model", "Merged", "Tokenizer")
    node("scores", "Scores", "Released model", "Documents 1", "Documents 2")
    return tuple(made.values())
