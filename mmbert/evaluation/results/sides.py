"""What a person names to be compared: files, folders, artifacts, registered models and published baselines."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from mmbert import artifacts, storage
from mmbert.errors import UserError
from mmbert.evaluation.published import baseline, baseline_names
from mmbert.evaluation.results.promotion import version_scores
from mmbert.evaluation.results.scorecard import Scorecard, merged, read_scorecard
from mmbert.evaluation.results.store import SCORES, artifact_scorecard, from_parquet
from mmbert.tracking.registry import Registry

FORMS = (
    "a scores.json or .parquet file, a folder or artifact with scores, NAME@ALIAS or NAME/VERSION of a registered "
    "model, or a published baseline"
)


def scorecard_of(named: str, registry: Callable[[], Registry | None]) -> Scorecard:
    """The scores that `named` means; a registered model, which `registry` is asked for, is called NAME/VERSION.

    Raises UserError where there is no such thing, or it holds no scores, or those of several models.
    """
    if named in baseline_names():
        return baseline(named)
    if named.endswith((".json", ".parquet")):
        data = storage.read_bytes(named)
        return from_parquet(data, named) if named.endswith(".parquet") else read_scorecard(data, named)
    if found := artifacts.find(named):
        return _of_artifact(found)
    if files := [path for path in storage.list_files(named) if path.rsplit("/", 1)[-1] == SCORES]:
        places = [storage.join(named, path) for path in files]
        return merged((read_scorecard(storage.read_bytes(place), place) for place in places), named)
    if (parts := re.fullmatch(r"(?:models:/)?([\w.-]+)([@/])([\w.-]+)", named)) and not storage.exists(named):
        return _registered(registry(), parts[1], parts[3] if parts[2] == "@" else "", parts[3])
    raise UserError(f"'{named}': no scores there; it must be {FORMS} ({', '.join(baseline_names())})")


def _of_artifact(found: artifacts.Artifact) -> Scorecard:
    if SCORES not in found.paths():
        raise UserError(
            f"{found.uri}: a {found.manifest.kind} artifact without {SCORES}; name the scores artifact that was made "
            "of it, or the registered model"
        )
    return artifact_scorecard(found)


def _registered(registry: Registry | None, name: str, alias: str, version: str) -> Scorecard:
    if registry is None:
        raise UserError(f"{name}: MLFLOW_TRACKING_URI is not set, so no registered model can be found")
    found = registry.by_alias(name, alias) if alias else registry.version(name, version)
    if found is None:
        raise UserError(f"no registered model '{name}' with the alias '{alias}'")
    # All of them were made as "released model", which tells no two versions apart.
    return replace(version_scores(found), model=f"{name}/{found.version}")
