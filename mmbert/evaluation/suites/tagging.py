"""Tagging of XTREME, zero-shot from English: named entities (WikiANN) and parts of speech (UDPOS).

Languages, splits, the cutting of long sentences and scoring by seqeval are XTREME's (arXiv 2003.11080, its repository's
utils_preprocess.py and evaluate.py); fine-tuning is that of the code which mmBERT's scores come from (izhx/nlu-evals,
scripts/run_wikiann.sh and run_udpos.sh). A word is tokenized alone and its first token is labelled.
"""

from __future__ import annotations

import functools
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmbert.errors import UserError
from mmbert.evaluation.scores import Score
from mmbert.evaluation.suites.base import DataSet, ModelFolder, Setup, Task
from mmbert.evaluation.suites.finetuning import FineTuning, fine_tune, load_head, load_tokenizer, predict, save_head
from mmbert.evaluation.suites.keeping import kept_folder, kept_json
from mmbert.evaluation.suites.measuring import Measure, Measured, scores_of

SETTINGS: Mapping[str, Any] = {
    "learning_rate": 2e-5,
    "epochs": 10,
    "batch_size": 32,
    "warmup": 0.0,
    "weight_decay": 0.0,
    "max_length": 128,
}
_IGNORED = -100
_HUB = "https://huggingface.co/datasets/"
WIKIANN_LANGUAGES = (
    *("af", "ar", "bg", "bn", "de", "el", "en", "es", "et", "eu", "fa", "fi", "fr", "he", "hi", "hu", "id", "it", "ja"),
    *("jv", "ka", "kk", "ko", "ml", "mr", "ms", "my", "nl", "pt", "ru", "sw", "ta", "te", "th", "tl", "tr", "ur", "vi"),
    *("yo", "zh"),
)
UDPOS_NAMES = {
    "af": "Afrikaans",
    "ar": "Arabic",
    "bg": "Bulgarian",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "et": "Estonian",
    "eu": "Basque",
    "fa": "Persian",
    "fi": "Finnish",
    "fr": "French",
    "he": "Hebrew",
    "hi": "Hindi",
    "hu": "Hungarian",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "kk": "Kazakh",
    "ko": "Korean",
    "mr": "Marathi",
    "nl": "Dutch",
    "pt": "Portuguese",
    "ru": "Russian",
    "ta": "Tamil",
    "te": "Telugu",
    "th": "Thai",
    "tl": "Tagalog",
    "tr": "Turkish",
    "ur": "Urdu",
    "vi": "Vietnamese",
    "yo": "Yoruba",
    "zh": "Chinese",
}
"""UDPOS's languages and the names that its subsets end with."""
WIKIANN = DataSet("unimelb-nlp/wikiann", WIKIANN_LANGUAGES, card=_HUB + "unimelb-nlp/wikiann")
UDPOS = DataSet("google/xtreme", tuple(f"udpos.{name}" for name in UDPOS_NAMES.values()), card=_HUB + "google/xtreme")


@dataclass(frozen=True)
class Sentence:
    """Words with their tags."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Piece:
    """Words of sentence number `sentence` from word number `begin` on, as ids [T]; `firsts` are their first tokens."""

    sentence: int
    begin: int
    input_ids: tuple[int, ...]
    firsts: tuple[int, ...]

    def labels(self, tags: Sequence[int]) -> list[int]:
        """[T]: each word's tag at its first token, -100 elsewhere. `tags` are those of the whole sentence."""
        found = [_IGNORED] * len(self.input_ids)
        for number, first in enumerate(self.firsts, self.begin):
            found[first] = tags[number]
        return found


def pieces(tokenizer: Any, sentences: Sequence[Sequence[str]], max_length: int) -> list[Piece]:
    """The sentences in order, each cut between words into pieces of at most `max_length` tokens: no word is lost.

    A word without tokens, or with more than a piece holds, becomes the unknown token.
    """
    before = [n for n in (tokenizer.cls_token_id,) if n is not None]
    after = [n for n in (tokenizer.sep_token_id,) if n is not None]
    room = max_length - len(before) - len(after)
    unknown = tokenizer.pad_token_id if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    words = sorted({word for sentence in sentences for word in sentence})
    tokens = dict(zip(words, tokenizer(words, add_special_tokens=False)["input_ids"], strict=True)) if words else {}
    found: list[Piece] = []
    for number, sentence in enumerate(sentences):
        begin, ids, firsts = 0, list(before), list[int]()
        for place, word in enumerate(sentence):
            own = tokens[word] if 0 < len(tokens[word]) <= room else [unknown]
            if len(ids) - len(before) + len(own) > room:
                found.append(Piece(number, begin, (*ids, *after), tuple(firsts)))
                begin, ids, firsts = place, list(before), []
            firsts.append(len(ids))
            ids += own
        found.append(Piece(number, begin, (*ids, *after), tuple(firsts)))
    return found


def entity_counts(truth: Sequence[str], predicted: Sequence[str]) -> tuple[int, int]:
    """What seqeval's F1 of a sentence is made of: twice the right entities, and the true and the predicted ones.

    XTREME measures parts of speech by it too: neighbours with the same tag count as one. Given many sentences at once,
    seqeval lets one that begins with the tag X run into the sentence before; sentence by sentence it does not.
    """
    from seqeval.metrics.sequence_labeling import get_entities

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of each part of speech that it is no entity's tag
        true, found = set(get_entities(list(truth))), set(get_entities(list(predicted)))
    return 2 * len(true & found), len(true) + len(found)


def word_counts(truth: Sequence[str], predicted: Sequence[str]) -> tuple[int, int]:
    """Words with the right tag, and words."""
    return sum(a == b for a, b in zip(truth, predicted, strict=True)), len(truth)


def _ratio(
    count: Callable[[Sequence[str], Sequence[str]], tuple[int, int]],
    sentences: Sequence[Sentence],
    predicted: Sequence[Sequence[str]],
) -> Measure:
    """The sum of the first counts over that of the second; 0 where there is nothing to count, as seqeval has it."""
    counts = np.array([count(s.tags, tags) for s, tags in zip(sentences, predicted, strict=True)])

    def measure(rows: Any) -> float:
        part, whole = counts[rows].sum(axis=0)
        return float(part / whole) if whole else 0.0

    return measure


@dataclass(frozen=True)
class Tagging:
    """One tagging task. `config` gives a language's subset, `column` holds tags as numbers of the schema's names."""

    name: str
    data: DataSet
    column: str
    languages: tuple[str, ...]
    config: Callable[[str], str] = field(repr=False)
    accuracy: bool

    def load(self, setup: Setup, language: str, split: str) -> tuple[list[Sentence], list[str]]:
        """One split's sentences, and all tags there are. Raises UserError for another schema or no rows."""
        config = self.config(language)
        rows = setup.data.load(self.data, config, split, ("tokens", self.column))
        names = getattr(getattr(rows.features[self.column], "feature", None), "names", None)
        if names is None or not len(rows):
            raise UserError(
                f"{self.data.repo}, subset {config}, split {split}: {len(rows)} rows, '{self.column}' of type "
                f"{rows.features[self.column]}; rows with named tags are needed, as {self.data.card} describes"
            )
        sentences = [Sentence(tuple(r["tokens"]), tuple(names[n] for n in r[self.column])) for r in rows]
        return [sentence for sentence in sentences if sentence.words], list(names)

    def run(self, model: ModelFolder, setup: Setup) -> list[Score]:
        """Train one model a seed and tag every language's sentences with it; predictions are kept by both."""
        tests = {code: self.load(setup, code, "test")[0] for code in self.languages}
        predicted: dict[str, list[list[list[str]]]] = {code: [] for code in self.languages}
        for seed in setup.seeds:
            place = setup.kept / f"seed-{seed}"
            trained = place / ".model"  # hidden: of this seed only until it is done
            tagger = functools.cache(functools.partial(self._trained, model, setup, seed, trained))
            for code, sentences in tests.items():
                tag = functools.partial(_tag, tagger, setup, sentences)
                predicted[code].append(kept_json(place / f"{code}.json", tag))
            shutil.rmtree(trained, ignore_errors=True)
        counters = {"f1": entity_counts, **({"accuracy": word_counts} if self.accuracy else {})}
        scores: list[Score] = []
        for metric, count in counters.items():
            measured = {
                code: Measured(len(sentences), [_ratio(count, sentences, tags) for tags in predicted[code]])
                for code, sentences in tests.items()
            }
            scores += scores_of(
                "xtreme",
                self.name,
                metric,
                measured,
                seeds=setup.seeds,
                bootstrap_samples=setup.bootstrap_samples,
                settings=setup.settings,
            )
        return scores

    def task(self) -> Task:
        metrics = ("f1", "accuracy") if self.accuracy else ("f1",)
        return Task(self.name, 1, (self.data,), self.languages, metrics, SETTINGS, self.run)

    def _trained(self, model: ModelFolder, setup: Setup, seed: int, folder: Path) -> _Tagger:
        """The fine-tuned model of a seed: trained and kept in `folder`, unless it is there already."""
        sentences, names = self.load(setup, "en", "train")
        tokenizer = load_tokenizer(model.path)

        def make(folder: Path) -> None:
            settings = FineTuning.of(setup.settings)
            features = [
                {"input_ids": p.input_ids, "labels": p.labels([names.index(t) for t in sentences[p.sentence].tags])}
                for p in pieces(tokenizer, [s.words for s in sentences], settings.max_length)
            ]
            network = fine_tune(
                model.path, "tokens", features, settings, seed=seed, device=setup.device, labels=len(names)
            )
            save_head(network, tokenizer, folder)

        kept_folder(folder, make)
        return _Tagger(tokenizer, load_head(folder, "tokens", len(names)).to(setup.device).eval(), names)


@dataclass(frozen=True)
class _Tagger:
    """A trained model with its tokenizer and its tags by number."""

    tokenizer: Any
    network: Any
    names: Sequence[str]


def _tag(tagger: Callable[[], _Tagger], setup: Setup, sentences: Sequence[Sentence]) -> list[list[str]]:
    tokenizer, network, names = tagger().tokenizer, tagger().network, tagger().names
    found = pieces(tokenizer, [s.words for s in sentences], setup.settings["max_length"])
    logits = predict(network, "tokens", [{"input_ids": p.input_ids} for p in found], device=setup.device)
    tags: list[list[str]] = [[] for _ in sentences]
    for piece, row in zip(found, logits, strict=True):
        tags[piece.sentence] += [names[int(n)] for n in row[list(piece.firsts)].argmax(axis=1)]
    return tags


TASKS: tuple[Task, ...] = (
    Tagging("wikiann", WIKIANN, "ner_tags", WIKIANN_LANGUAGES, lambda code: code, accuracy=False).task(),
    Tagging(
        "udpos", UDPOS, "pos_tags", tuple(UDPOS_NAMES), lambda code: f"udpos.{UDPOS_NAMES[code]}", accuracy=True
    ).task(),
)
