"""Sentences with intents in many languages, made from the templates of Home Assistant's voice commands.

Train and test never share a template: sentences of one template differ in a word or two, so a split by sentence leaks.
"""

from __future__ import annotations

import functools
import json
import random
from dataclasses import dataclass
from importlib import resources
from typing import Any

from mmbert.errors import UserError
from mmbert.recipe.schema import Evaluation

LANGUAGES = {
    "eng_Latn": "en",
    "deu_Latn": "de",
    "rus_Cyrl": "ru",
    "fra_Latn": "fr",
    "ell_Grek": "el",
    "fin_Latn": "fi",
    "hun_Latn": "hu",
    "spa_Latn": "es",
    "kor_Hang": "ko",
    "vie_Latn": "vi",
    "heb_Hebr": "he",
    "fas_Arab": "fa",
    "pol_Latn": "pl",
    "nld_Latn": "nl",
    "cat_Latn": "ca",
    "bul_Cyrl": "bg",
    "slv_Latn": "sl",
    "ita_Latn": "it",
}
"""Languages and the package's names for them, in an order in which few already span many scripts and families."""
MIN_TEMPLATES = 4
"""Templates that an intent must have to be a class in a language: two at least to learn from, two to test on."""
MAX_INTENTS = 16
LABELS = ("K4", "M7", "R2", "T9", "X5", "Z3")
"""Stand in for what users name themselves (areas, devices, list items); the same in every language and intent."""
_ATTEMPTS = 20


@dataclass(frozen=True)
class IntentSentence:
    """A sentence with its intent, and the template that made it."""

    text: str
    intent: str
    template: str
    train: bool


def suite_sentences(settings: Evaluation, seed: int) -> dict[str, tuple[IntentSentence, ...]]:
    """The sentences of each language that the suite evaluates on."""
    languages = list(LANGUAGES)[: settings.intent_languages]
    return {code: intent_sentences(code, settings.intent_sentences, seed) for code in languages}


@functools.cache
def intent_sentences(language: str, sentences: int, seed: int) -> tuple[IntentSentence, ...]:
    """About `sentences` distinct sentences of a language, spread evenly over its intents and their templates.

    Half of each intent's templates are for training. A test sentence that some training template also makes is dropped.
    Raises UserError for a language that is not in LANGUAGES.
    """
    if language not in LANGUAGES:
        raise UserError(f"intent classification: no templates for '{language}'; there are {', '.join(LANGUAGES)}")
    data = _templates(LANGUAGES[language])
    rng = random.Random(f"{seed}:{language}")
    grammar = _Grammar(data, rng)
    intents = _common_intents(data)
    share = max(2, sentences // len(intents))
    made: list[IntentSentence] = []
    for intent, templates in intents.items():
        order = rng.sample(templates, len(templates))
        half = len(order) // 2
        made += grammar.sample(intent, order[:half], share - share // 2, train=True)
        made += grammar.sample(intent, order[half:], share // 2, train=False)
    learnt = {s.text for s in made if s.train}
    return tuple(s for s in made if s.train or s.text not in learnt)


def _templates(name: str) -> dict[str, Any]:
    path = resources.files("home_assistant_intents").joinpath("data", f"{name}.json")
    data: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return data


def _common_intents(data: dict[str, Any]) -> dict[str, list[tuple[str, int]]]:
    """The intents with the most templates, in order of name; a template is its text and the index of its block."""
    found: dict[str, list[tuple[str, int]]] = {}
    for intent, body in data["intents"].items():
        templates = {text: block for block, rules in enumerate(body["data"]) for text in rules["sentences"]}
        if len(templates) >= MIN_TEMPLATES:
            found[intent] = sorted(templates.items())
    largest = sorted(found, key=lambda name: (-len(found[name]), name))[:MAX_INTENTS]
    return {name: found[name] for name in sorted(largest)}


class _Grammar:
    """Walks a template at random. Listing all its sentences, as hassil does, is exponential in its options."""

    def __init__(self, data: dict[str, Any], rng: random.Random) -> None:
        from hassil.parse_expression import parse_sentence

        self._data = data
        self._rng = rng
        self._parse = functools.cache(lambda text: parse_sentence(text).expression)
        self._local: dict[str, Any] = {}

    def sample(self, intent: str, templates: list[tuple[str, int]], count: int, *, train: bool) -> list[IntentSentence]:
        """Up to `count` distinct sentences, taking the templates in turn."""
        made: dict[str, IntentSentence] = {}
        for attempt in range(count * _ATTEMPTS):
            if len(made) == count:
                break
            template, block = templates[attempt % len(templates)]
            self._local = self._data["intents"][intent]["data"][block]
            text = " ".join(self._walk(self._parse(template)).split())
            if text:
                made.setdefault(text, IntentSentence(text, intent, template, train))
        return list(made.values())

    def _walk(self, node: Any) -> str:
        match type(node).__name__:
            case "TextChunk":
                return str(node.original_text)
            case "Alternative":
                return self._walk(self._rng.choice(node.items))
            case "Permutation":
                return " ".join(self._walk(item) for item in self._rng.sample(node.items, len(node.items)))
            case "RuleReference":
                return self._walk(self._parse(self._lookup("expansion_rules", node.rule_name)))
            case "ListReference":
                return (node.prefix or "") + self._slot(node) + (node.suffix or "")
            case _:
                return "".join(self._walk(item) for item in node.items)

    def _lookup(self, section: str, name: str) -> Any:
        local = self._local.get(section) or {}
        return local.get(name, self._data[section].get(name))

    def _slot(self, node: Any) -> str:
        if node.is_inline_range:
            start, stop, step = node.get_inline_range()
            return str(self._rng.randrange(start, stop + 1, step))
        values = self._lookup("lists", node.list_name) or {}
        if "values" in values:
            value = self._rng.choice(values["values"])
            return self._walk(self._parse(value["in"] if isinstance(value, dict) else str(value)))
        if "range" in values:
            bounds = values["range"]
            return str(self._rng.randrange(bounds["from"], bounds["to"] + 1, bounds.get("step", 1)))
        return self._rng.choice(LABELS)
