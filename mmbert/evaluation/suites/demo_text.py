"""Held-out text for the suite `demo` where a user has just a model: what the preset `tiny` holds out of packages."""

from __future__ import annotations

import shutil
from pathlib import Path

import mmbert
from mmbert.artifacts import digest_json
from mmbert.data.documents import HELD_OUT
from mmbert.data.readers import Selection
from mmbert.data.sources import make_reader
from mmbert.evaluation.suites.keeping import kept_folder
from mmbert.recipe import load_recipe


def packaged_text(cache: Path) -> Path:
    """The folder `heldout`, made in `cache` on the first call by the curation of that recipe, its splits and filters.

    Raises UserError where a package is missing.
    """
    recipe = load_recipe("tiny")
    # Nothing of the training text is looked at, so duplicates and evaluation texts in it do not matter.
    curation = recipe.curation.model_copy(update={"near_duplicates": None, "decontamination": None, "groups": 1})
    all_languages = Selection(groups=1, group=0, reserved=frozenset(recipe.reserved_languages))
    named = digest_json(
        [
            mmbert.__version__,
            {name: source.model_dump(mode="json") for name, source in recipe.sources.items()},
            {
                name: [u.version for u in make_reader(name, s).units(all_languages)]
                for name, s in recipe.sources.items()
            },
            curation.model_dump(mode="json"),
            list(recipe.reserved_languages),
        ]
    )[:16]

    def make(folder: Path) -> None:
        from mmbert.data.curation import Executor, WorkStore, curate

        work = folder / "work"
        found = curate(recipe.sources, curation, recipe.reserved_languages, 0, WorkStore(str(work)), Executor())
        for file in found.files:
            if file.path.startswith(f"{HELD_OUT}/"):
                target = folder / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file.stored.uri, target)
        shutil.rmtree(work)

    return kept_folder(cache / "demo-text" / named, make) / HELD_OUT
