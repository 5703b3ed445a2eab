"""A registered model and the raw checkpoints that led to it, as two repositories of the Hugging Face hub.

Everything is found from the registered version alone: its tags name the model's artifact, and manifests name what that
was made from. Each repository gets one commit, and the model's comes last, so nobody sees half of either; content that
was uploaded before an interruption is known to the hub and is not sent again.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmbert import progress
from mmbert.artifacts import Artifact, ancestry, open_artifact
from mmbert.errors import InfrastructureError, MmbertError, UserError
from mmbert.evaluation.results.promotion import GATE, REASON, version_scores
from mmbert.hub import retries_told_once
from mmbert.places import scratch_folder
from mmbert.release.names import COMPOSER_FOLDER, OPTIMIZER, STATE, WEIGHTS
from mmbert.release.released_card import CHECKPOINT, released_card
from mmbert.tracking import ModelVersion, Registry
from mmbert.tracking.registry import CHAMPION

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD = "README.md"
PARITY = "parity"
"""The output of a model's artifact that holds the figures of the parity gate."""
PUBLISHED = "mmbert.published"
_RELEASABLE = ("passed", "overridden")
# The published checkpoints' folders, by this project's names of the phases.
_FOLDERS = {"pretrain": "pretrain", "extend": "ext", "decay": "decay"}
_CHECKPOINTS_CARD = """---
library_name: composer
tags:
- modernbert
- masked-lm
- checkpoints
---

# Raw training checkpoints

Each model has a folder with three subfolders: `pretrain/`, `ext/` (the context extension) and `decay/` (a folder a
variant). Each holds the end of its phase: Composer's checkpoint (`.pt`) with weights, optimiser and time, to go on
training from, and `training_state.json`, which states the model's shape and the phase.

They are meant for training. To run a model, take the released one, or convert a checkpoint:

    mmbert convert <model>/<phase>/ep0-ba<batch>-rank0.pt OUT --recipe RECIPE --tokenizer TOKENIZER
"""


@dataclass(frozen=True)
class PlannedFile:
    """A file to publish as `path`: one of an artifact (`source` in it), or `data`."""

    path: str
    size: int
    sha256: str
    artifact: Artifact | None = None
    source: str = ""
    data: bytes = b""


@dataclass(frozen=True)
class PlannedRepo:
    """One repository and what is put into it; `name` is `OWNER/NAME`, or NAME in the token's own account."""

    name: str
    title: str
    files: tuple[PlannedFile, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Publication:
    """What publishing a version would do; `card` is the model's."""

    version: ModelVersion
    checkpoints: PlannedRepo
    model: PlannedRepo
    card: str

    def text(self) -> str:
        """Every file with its size, and the card, for a terminal."""
        lines = [f"{self.version.name} version {self.version.version}, {self.version.digest[:16]}"]
        for repo in (self.checkpoints, self.model):
            lines += ["", f"{repo.name}: {len(repo.files)} files, {repo.size:,} bytes"]
            lines += [f"  {file.size:>14,}  {file.path}" for file in repo.files]
        return "\n".join([*lines, "", f"{CARD} of {self.model.name}:", "", self.card])


def find_version(registry: Registry, reference: str) -> ModelVersion:
    """The version that `NAME` (its champion), `NAME@alias` or `NAME/version` stands for. Raises UserError if none."""
    if "@" in reference or "/" not in reference:
        name, _, alias = reference.partition("@")
        found = registry.by_alias(name, alias or CHAMPION)
        if found is None:
            raise UserError(
                f"{reference}: no registered model '{name}' with the alias '{alias or CHAMPION}'; promote a version, "
                f"or name one ({name}/VERSION)"
            )
        return found
    name, _, version = reference.rpartition("/")
    return registry.version(name, version)


def plan(version: ModelVersion, repo: str, checkpoints_repo: str) -> Publication:
    """What is published of a version. Reads manifests and small files, and asks the hub nothing.

    `repo` may be empty for the model's name, `checkpoints_repo` for `<repo>-checkpoints`. Raises UserError where the
    version passed no release gate or its model no parity gate, a repository cannot be named so, or an artifact is gone
    or another than was registered.
    """
    where = f"{version.name} version {version.version}"
    outcome = version.tags.get(GATE, "")
    if outcome not in _RELEASABLE:
        told = f"{GATE} is '{outcome}': {version.tags.get(REASON, '-')}" if outcome else f"it has no tag {GATE}"
        raise UserError(
            f"{where} has not passed the release gate ({told}); promote it first, or override with a reason"
        )
    name = repo or version.name
    checkpoints_name = checkpoints_repo or f"{name}-checkpoints"
    _check_repository("--repo", name)
    _check_repository("--checkpoints-repo", checkpoints_name)
    uri = version.tags.get("mmbert.uri")
    if not uri:
        raise UserError(
            f"{where} has no tag mmbert.uri; only models that the component 'register' registered are known"
        )
    model = open_artifact(uri, "model")
    if model.digest != version.digest:
        raise UserError(
            f"{where}: {uri} holds another model ({model.digest[:16]}) than was registered ({version.digest[:16]})"
        )
    if not model.outputs.get(PARITY):
        raise UserError(
            f"{where}: the manifest of {uri} has no figures of the parity gate; convert it with this version of mmbert"
        )
    lineage = [artifact for artifact in ancestry([model]) if artifact is not model]
    card = released_card(version.name, name, model, lineage, version_scores(version).scores)
    released = [_of(model, path, path) for path in model.paths() if path != CARD]
    return Publication(
        version=version,
        checkpoints=PlannedRepo(checkpoints_name, f"Checkpoints of {where}", tuple(_raw(version.name, lineage))),
        model=PlannedRepo(name, where, (*released, _text(CARD, card))),
        card=card,
    )


def _check_repository(option: str, name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{option} '{name}': no repository of the hub can be named so ({error})") from error


def _raw(name: str, lineage: Sequence[Artifact]) -> list[PlannedFile]:
    """The files of the phases' ends in the published layout; of several checkpoints of one phase the last counts."""
    ends: dict[str, Artifact] = {}
    for artifact in lineage:
        if artifact.manifest.kind == CHECKPOINT and STATE in artifact.paths():
            state = artifact.read_json(STATE)
            folder = "/".join(part for part in (_FOLDERS[state["phase"]], state.get("variant", "")) if part)
            ends[folder] = artifact
    files = [_text(CARD, _CHECKPOINTS_CARD)]
    for folder, artifact in sorted(
        ends.items(), key=lambda item: [*_FOLDERS.values()].index(item[0].partition("/")[0])
    ):
        # What was imported has no Composer checkpoint of its own.
        whole = artifact.paths(f"{COMPOSER_FOLDER}/") or [p for p in (WEIGHTS, OPTIMIZER) if p in artifact.paths()]
        files += [_of(artifact, path, f"{name}/{folder}/{path.rpartition('/')[2]}") for path in (*whole, STATE)]
    return files


def _of(artifact: Artifact, source: str, path: str) -> PlannedFile:
    file = artifact.file(source)
    return PlannedFile(path, file.size, file.sha256, artifact, source)


def _text(path: str, text: str) -> PlannedFile:
    data = text.encode()
    return PlannedFile(path, len(data), hashlib.sha256(data).hexdigest(), data=data)


def publish(publication: Publication, registry: Registry) -> list[str]:
    """Upload both repositories, the checkpoints first, and record the commits in the registry; returns their URLs.

    Run again, it sends what is missing and changes nothing else. Needs HF_TOKEN. Raises UserError where the hub refuses
    the token or the content, InfrastructureError where it cannot be reached.
    """
    from huggingface_hub import HfApi, get_token

    if not get_token():
        raise UserError("set HF_TOKEN to a token that may write to the repositories; none is set")
    api = HfApi()
    commits, urls = {}, []
    for key, repo in ((f"{PUBLISHED}_checkpoints", publication.checkpoints), (PUBLISHED, publication.model)):
        with _explained(repo.name):
            place, commit, url = _upload(api, repo)
        commits[key] = f"{place}@{commit}"
        urls.append(url)
    registry.set_tags(publication.version.name, publication.version.version, commits)
    return urls


def _upload(api: HfApi, repo: PlannedRepo) -> tuple[str, str, str]:
    """One repository in one commit: (its whole name, the commit, its URL)."""
    from huggingface_hub import CommitOperationAdd

    place = api.create_repo(repo.name, exist_ok=True).repo_id
    there = _large_files(api, place)
    missing = [file for file in repo.files if there.get(file.path) != file.sha256]
    operations = []
    counting = progress.shown(f"upload to {place}", sum(file.size for file in missing), progress.BYTES)
    with scratch_folder() as scratch, _no_bars(), counting as advance:
        for number, file in enumerate(missing):
            content: bytes | str = file.data
            if file.artifact is not None:
                local = scratch / str(number)
                file.artifact.download(file.source, local)
                content = str(local)
            addition = CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=content)
            # A large file's content is sent now, before the commit names it: one at a time takes room on this disk.
            api.preupload_lfs_files(place, [addition])
            if file.artifact is not None and addition.path_or_fileobj == b"":
                local.unlink()
            operations.append(addition)
            advance(file.size)
        if not operations:
            commit = str(api.model_info(place).sha)
            return place, commit, f"{api.endpoint}/{place}/commit/{commit}"
        made = api.create_commit(place, operations, commit_message=repo.title)
    return place, str(made.oid), str(made.commit_url)


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Without the client's progress bars, one a file."""
    from huggingface_hub import constants, utils

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:
        yield  # the user's own choice, which the client holds to
        return
    utils.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        utils.enable_progress_bars()  # type: ignore[attr-defined]


def _large_files(api: HfApi, place: str) -> dict[str, str]:
    """sha256 of the large files that the repository holds already, by path."""
    from huggingface_hub.hf_api import RepoFile

    found = {}
    for entry in api.list_repo_tree(place, recursive=True):
        if isinstance(entry, RepoFile) and entry.lfs is not None:
            found[entry.path] = entry.lfs.sha256
    return found


@contextlib.contextmanager
def _explained(repo: str) -> Iterator[None]:
    """What the hub's client raises, as messages that say what to do."""
    try:
        with retries_told_once():
            yield
    except MmbertError:
        raise
    except Exception as error:
        raise _explanation(repo, error) from error


def _explanation(repo: str, error: Exception) -> Exception:
    from huggingface_hub import constants

    status = _status(error)
    # The client raises RuntimeError where content does not reach the hub's storage.
    if not isinstance(error, RuntimeError):
        if status in {401, 403}:
            told = "set it to one that may write there"
            return UserError(f"{repo}: the hub refuses the token in HF_TOKEN ({status}); {told}")
        refused = status is not None and 400 <= status < 500 and status not in {408, 429}
        if refused or (status is None and isinstance(error, ValueError)):
            return UserError(f"{repo}: the hub refuses it: {error}")
    if status is not None or isinstance(error, OSError | RuntimeError) or type(error).__module__.startswith("http"):
        return InfrastructureError(
            f"{repo}: the upload to {constants.ENDPOINT} broke off ({error}); run it again, and it goes on from there"
        )
    return error


def _status(error: BaseException | None) -> int | None:
    """The HTTP status of the first of an error's causes that has one."""
    while error is not None:
        response: Any = getattr(error, "response", None)
        if (status := getattr(response, "status_code", None)) is not None:
            return int(status)
        error = error.__cause__
    return None
