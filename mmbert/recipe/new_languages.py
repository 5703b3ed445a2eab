"""A recipe that adds languages to a trained model: its last phase again, on their text and on that of the old ones."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mmbert import storage
from mmbert.data.mixture import resolve_languages
from mmbert.errors import UserError
from mmbert.recipe.languages import language_name, language_problem
from mmbert.recipe.loading import parse_overrides, recipe_from_text
from mmbert.recipe.schema import Recipe

SOURCE = "new"
"""The name of the source that the new languages' text is."""

SHARES = {"new-quarter": 0.25, "new-half": 0.5, "new-three-quarters": 0.75}
"""Variants: the new languages' share of the tokens. One that drew them by their size learned too little to help."""
# A model without an optimiser's state would take a full first step at the full learning rate.
_WARMUP_SHARE = 0.1


def languages_of(text: str) -> dict[str, int]:
    """Languages of a folder or `s3://` prefix, with their numbers of files: a folder a language, `bre_Latn/a.txt`.

    Raises UserError where there is none, one is empty or has no code of a language, or files lie outside of folders.
    """
    files: dict[str, int] = {}
    for path in storage.list_files(text):
        language, _, name = path.partition("/")
        if not name:
            raise UserError(
                f"{text}/{path}: this file lies in no language's folder; put it into one named by code and script, "
                "like bre_Latn"
            )
        files[language] = files.get(language, 0) + 1
    for language in sorted({*files, *_folders(text)}):
        if problem := language_problem(language):
            raise UserError(f"{text}/{language}: {problem}")
        if language not in files:
            raise UserError(f"{text}/{language}: this folder is empty; put text into it, or delete it")
    if not files:
        raise UserError(
            f"{text}: no text is here; it takes a folder a language, like bre_Latn, with text files in each"
        )
    return dict(sorted(files.items()))


def _folders(text: str) -> list[str]:
    if storage.is_s3(text) or not Path(text).is_dir():
        return []
    return [path.name for path in Path(text).iterdir() if stat.S_ISDIR(path.stat().st_mode)]


def seen_languages(recipe: Recipe) -> list[str]:
    """What a model of this recipe knows well: the languages that its first two phases name.

    Languages that only its decay drew, out of all that there were, may be added again.
    """
    named: set[str] = set()
    for phase in (recipe.phases.pretrain, recipe.phases.extend):
        if phase.languages != "all":
            named |= set(resolve_languages(phase.languages, recipe.language_sets, ()))
    return sorted(named)


def recipe_for(base: Recipe, text: str, overrides: Iterable[str] = ()) -> Recipe:
    """`base` with the last phase alone in mind: new text as a source of its own, variants with more or less of it.

    Without `text` the new languages are those that `base` has reserved. `overrides`, which `base` has already, go last
    again: they may change what is made here. Raises UserError where a
    language is known already, there is none to add, or the outcome is no valid recipe.
    """
    new = list(languages_of(text)) if text else list(base.reserved_languages)
    if not new:
        raise UserError("no language to add: give a folder of text, or a recipe with reserved_languages")
    if known := [code for code in new if code in seen_languages(base)]:
        names = ", ".join(f"{code} ({language_name(code)})" for code in known)
        raise UserError(
            f"{text}: the model knows {names} already, from its first phases; take the folder away, and train on more "
            "of it by a mixture of your own (docs/mixture.md)"
        )
    return _made(base, new, text, overrides)


def variants_for(base: Recipe, overrides: Iterable[str] = ()) -> list[str]:
    """The variants of `recipe_for`, whatever the new languages are."""
    return list(
        _made(base, [*base.reserved_languages[:1], *seen_languages(base)][:1], "", overrides).phases.decay.variants
    )


def _made(base: Recipe, new: list[str], text: str, overrides: Iterable[str]) -> Recipe:
    data = _changed(base.model_dump(mode="json"), new, text)
    return recipe_from_text(
        yaml.safe_dump(data, sort_keys=False), "the recipe for new languages", parse_overrides(overrides)
    )


def _changed(data: dict[str, Any], new: list[str], text: str) -> dict[str, Any]:
    decay = data["phases"]["decay"]
    warmup = int(_WARMUP_SHARE * decay["tokens"])
    schedule = {"warmup_tokens": warmup, "decay_tokens": decay["tokens"] - warmup}
    source = {SOURCE: {"kind": "files", "path": text, "held_out_share": 0.1}} if text else {}
    return data | {
        "tokenizer": {"kind": "checkpoint"},
        "sources": data["sources"] | source,
        "reserved_languages": [code for code in data["reserved_languages"] if code not in new],
        "new_languages": new,
        "curation": data["curation"] | {"required_languages": new},
        "phases": data["phases"]
        | {"decay": decay | {"variants": _variants(new), "schedule": decay["schedule"] | schedule}},
        "merge": data["merge"] | {"variants": [], "weights": {}},
    }


def _variants(new: list[str]) -> Mapping[str, Any]:
    fixed = {name: {code: share / len(new) for code in new} for name, share in SHARES.items()}
    return {name: {"languages": "all", "language_shares": shares} for name, shares in fixed.items()}
