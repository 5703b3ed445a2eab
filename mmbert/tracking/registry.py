"""MLflow's model registry: registered models, their versions, tags and aliases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmbert.errors import UserError
from mmbert.tracking.api import Api, Refused, Unavailable, connected, patiently, quoted

DIGEST = "mmbert.content_digest"
CANDIDATE, CHAMPION = "candidate", "champion"
_TAG_LENGTH = 4000
_PAGE = 200


@dataclass(frozen=True)
class ModelVersion:
    """One version of a registered model. `created` is in seconds since 1970."""

    name: str
    version: str
    source: str
    run_id: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]
    created: float

    @property
    def digest(self) -> str:
        """The content digest of the model's artifact; empty where another program registered it."""
        return self.tags.get(DIGEST, "")


class Registry:
    """All methods raise InfrastructureError where MLflow stays away for some seconds."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def register(
        self,
        *,
        name: str,
        source_uri: str,
        content_digest: str,
        run_id: str | None,
        tags: Mapping[str, str],
        description: str,
        alias: str | None,
    ) -> str:
        """Register the model at `source_uri` and return its version; the same content keeps its version, with new tags.

        `alias` (`candidate`) moves to that version. Two calls at the same moment can make two versions.
        Raises UserError where MLflow does not take the source: it refuses paths on a local disk.
        """
        api = self._api
        try:
            patiently(lambda: api.call("registered-models/create", {"name": name}))
        except Refused as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":
                raise
        new = {
            "name": name,
            "source": source_uri,
            "tags": [{"key": key, "value": value} for key, value in {**tags, DIGEST: content_digest}.items()],
            "description": description,
            **({"run_id": run_id} if run_id else {}),
        }
        # Looked for again before each attempt: an attempt whose answer was lost has made it.
        found = patiently(lambda: self._of_digest(name, content_digest) or _made(api, new))
        version = str(found["version"])
        kept = _tags(found)
        self.set_tags(name, version, {key: value for key, value in tags.items() if kept.get(key) != value})
        if alias:
            self.set_alias(name, alias, version)
        return version

    def models(self) -> dict[str, dict[str, str]]:
        """The names of all registered models, each with its aliases and the versions that these point at."""
        found: dict[str, dict[str, str]] = {}
        page = ""
        while True:
            query = {"max_results": str(_PAGE), **({"page_token": page} if page else {})}
            answer = patiently(lambda query=query: self._api.get("registered-models/search", query))  # type: ignore[misc]
            for model in answer.get("registered_models", []):
                found[str(model["name"])] = {str(a["alias"]): str(a["version"]) for a in model.get("aliases", ())}
            page = answer.get("next_page_token", "")
            if not page:
                return found

    def version(self, name: str, version: str) -> ModelVersion:
        """Raises UserError where there is no such version."""
        query = {"name": name, "version": version}
        try:
            return _parsed(patiently(lambda: self._api.get("model-versions/get", query))["model_version"])
        except Refused as error:
            raise UserError(f"no version {version} of the registered model '{name}': {error}") from error

    def by_alias(self, name: str, alias: str) -> ModelVersion | None:
        """The version that an alias points at; None where there is no such model or alias."""
        query = {"name": name, "alias": alias}
        try:
            found = patiently(lambda: self._api.get("registered-models/alias", query))["model_version"]
        except Refused:
            return None
        # This answer carries no aliases of its own.
        return self.version(name, str(found["version"]))

    def versions(self, name: str) -> list[ModelVersion]:
        """All versions of a model, the oldest first; empty where there is no such model."""
        found: list[ModelVersion] = []
        page = ""
        while True:
            query = {
                "filter": f"name = {quoted(name)}",
                "max_results": str(_PAGE),
                **({"page_token": page} if page else {}),
            }
            answer = patiently(lambda query=query: self._api.get("model-versions/search", query))  # type: ignore[misc]
            found += [_parsed(version) for version in answer.get("model_versions", [])]
            page = answer.get("next_page_token", "")
            if not page:
                return sorted(found, key=lambda v: int(v.version))

    def of_content(self, content_digest: str) -> list[ModelVersion]:
        """The versions of any model that were registered with this content, by name and version."""
        wanted = f"tags.`{DIGEST}` = '{content_digest}'"
        query = {"filter": wanted, "max_results": str(_PAGE)}
        found = patiently(lambda: self._api.get("model-versions/search", query)).get("model_versions", [])
        # This answer carries no aliases.
        versions = [self.version(str(item["name"]), str(item["version"])) for item in found]
        return sorted(versions, key=lambda v: (v.name, int(v.version)))

    def names(self) -> list[str]:
        """Names of the registered models, the first hundred."""
        found = patiently(lambda: self._api.get("registered-models/search", {"max_results": "100"}))
        return sorted(str(item["name"]) for item in found.get("registered_models", []))

    def set_tags(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        """Set tags of a version, one after the other, in the order given. Long values are cut."""
        for key, value in tags.items():
            body = {"name": name, "version": version, "key": key, "value": _cut(value)}
            patiently(lambda body=body: self._api.call("model-versions/set-tag", body))  # type: ignore[misc]

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point an alias at a version, in one step."""
        body = {"name": name, "alias": alias, "version": version}

        def point() -> None:
            try:
                self._api.call("registered-models/alias", body)
            except Refused as error:
                # Two that make the same alias at once: the server's database refuses the second, which may try again.
                if "unique constraint" in str(error).lower():
                    raise Unavailable(str(error)) from error
                raise

        patiently(point)

    def _of_digest(self, name: str, content_digest: str) -> Any:
        wanted = f"name = {quoted(name)} and tags.`{DIGEST}` = '{content_digest}'"
        found = self._api.get("model-versions/search", {"filter": wanted, "max_results": "100"})
        return min(found.get("model_versions", []), key=lambda v: int(v["version"]), default=None)


def connect_registry() -> Registry | None:
    """The registry at MLFLOW_TRACKING_URI; None where that is unset. Raises as `tracking.connect`."""
    api = connected()
    return Registry(api) if api else None


def _made(api: Api, body: Mapping[str, Any]) -> Any:
    try:
        return api.call("model-versions/create", body)["model_version"]
    except Refused as error:
        raise UserError(
            f"MLflow does not register {body['source']} as a version of '{body['name']}': {error}"
        ) from error


def _parsed(data: Mapping[str, Any]) -> ModelVersion:
    return ModelVersion(
        name=str(data["name"]),
        version=str(data["version"]),
        source=str(data.get("source", "")),
        run_id=str(data.get("run_id", "")),
        tags=_tags(data),
        aliases=tuple(data.get("aliases", ())),
        created=float(data.get("creation_timestamp", 0)) / 1000,
    )


def _tags(data: Mapping[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag.get("value", "") for tag in data.get("tags", ())}


def _cut(text: str) -> str:
    note = f" ... [cut: {len(text)} characters in all]"
    return text if len(text) <= _TAG_LENGTH else text[: _TAG_LENGTH - len(note)] + note
