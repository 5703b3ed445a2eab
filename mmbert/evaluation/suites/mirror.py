"""The data of a suite's tasks, wherever the mirror lies: a folder, a prefix in S3, or none (the hub)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from mmbert import storage
from mmbert.artifacts import digest_json
from mmbert.errors import InfrastructureError, UserError
from mmbert.evaluation.suites.base import DataSet, Task, data_sets
from mmbert.evaluation.suites.data import DataAccess, how_to_mirror, hub_commit
from mmbert.evaluation.suites.states import in_use
from mmbert.evaluation.suites.subsets import CARD, check_subsets


def present_states(tasks: Iterable[Task], root: str, wanted: Mapping[str, str]) -> dict[str, str]:
    """The state of each data set now: the hub's commit, or the digest of its files in the mirror at `root`.

    `wanted` are branches, tags or commits on the hub by repo. Raises UserError for a data set or subset that is not
    there, InfrastructureError where the hub or S3 cannot be reached.
    """
    found = data_sets(tasks)
    if root:
        access = DataAccess(None if storage.is_s3(root) else Path(root))
        return {repo: _mirrored(root, data, access) for repo, data in found.items()}
    return {repo: hub_commit(repo, wanted.get(repo, data.revision)) for repo, data in found.items()}


def open_data(tasks: Iterable[Task], root: str, cache: Path, pinned: Mapping[str, str]) -> DataAccess:
    """The data of some tasks in their pinned state; from S3 they are fetched into `cache` first.

    Without a pinned state a data set's present one counts. Raises UserError where a mirror is in another state, or
    lacks a data set or a subset of one.
    """
    if not root:
        return DataAccess(revisions=pinned)
    access = DataAccess(None if storage.is_s3(root) else Path(root))
    folders, revisions = {}, {}
    for repo, data in data_sets(tasks).items():
        revisions[repo] = _mirrored(root, data, access)
        if pinned.get(repo, revisions[repo]) != revisions[repo]:
            raise UserError(
                f"{storage.join(root, repo)}: its files changed since this run began "
                f"({pinned[repo][:12]} then, {revisions[repo][:12]} now); start the run again"
            )
        if storage.is_s3(root):
            place = storage.join(root, repo)
            folders[repo] = _fetched(place, revisions[repo], cache / "mirror" / repo / revisions[repo][:32])
    return DataAccess(access.root, folders, revisions)


def _mirrored(root: str, data: DataSet, access: DataAccess) -> str:
    place = storage.join(root, data.repo)
    if not storage.is_s3(root):
        state = access.revision(data)
        files = storage.list_files(place)
    else:
        listed = _listed(place)
        if not listed:
            raise UserError(f"{place}: nothing there; {how_to_mirror(data)}")
        state, files = digest_json(listed), [path for path, _ in listed]
    check_subsets(data, place, files, lambda: storage.read_bytes(storage.join(place, CARD)))
    return state


def _listed(uri: str) -> list[list[str]]:
    """[path, version] of the data set's files, as `DataAccess` sees a folder's: not what the hub's client notes."""
    return [[path, v] for path, v in storage.list_versions(uri) if not path.startswith(".") and not path.endswith("/")]


def _fetched(uri: str, state: str, folder: Path) -> Path:
    # Loads numpy, and orchestrators read this module.
    from mmbert.evaluation.suites.keeping import kept_folder

    def make(incoming: Path) -> None:
        for path, _ in _listed(uri):
            storage.download(storage.join(uri, path), incoming / path)
        if digest_json(_listed(uri)) != state:
            raise InfrastructureError(f"{uri}: its files changed while they were fetched; run it again")

    return in_use(kept_folder(folder, make))
