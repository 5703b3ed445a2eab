"""The data of a suite's tasks, wherever the mirror lies: a folder, a prefix in S3, or none (the hub)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from mmbert import hub, storage
from mmbert.artifacts import digest_json
from mmbert.errors import UserError
from mmbert.evaluation.suites.base import DataSet, Task
from mmbert.evaluation.suites.data import DataAccess, how_to_mirror, hub_commit


def data_sets(tasks: Iterable[Task]) -> dict[str, DataSet]:
    """The data sets of some tasks by repo."""
    return {data.repo: data for task in tasks for data in task.data}


def pinned_revisions(tasks: Iterable[Task], root: str, wanted: Mapping[str, str], where: str) -> dict[str, str]:
    """The state of each data set now: the hub's commit, or the digest of its files in the mirror at `root`.

    `wanted` are branches, tags or commits by repo; commits, and states of a mirror, stay as they are. `where` is named
    in messages.

    Raises UserError for a data set that is not there, or a wanted one that no task reads; InfrastructureError where the
    hub or S3 cannot be reached.
    """
    found = data_sets(tasks)
    if unknown := [repo for repo in wanted if repo not in found]:
        read = ", ".join(found) or "none"
        raise UserError(f"{where}.revisions: no task that is run reads {', '.join(unknown)}; they read {read}")
    if root:
        access = DataAccess(None if storage.is_s3(root) else Path(root))
        return {repo: wanted.get(repo) or _mirrored(root, data, access) for repo, data in found.items()}
    asked = {repo: wanted.get(repo, data.revision) for repo, data in found.items()}
    return {repo: r if hub.is_commit(r) else hub_commit(repo, r) for repo, r in asked.items()}


def open_data(tasks: Iterable[Task], root: str, cache: Path, pinned: Mapping[str, str]) -> DataAccess:
    """The data of some tasks in their pinned state; from S3 they are fetched into `cache` first.

    Without a pinned state a data set's present one counts. Raises UserError where a mirror is in another state, or
    lacks a data set.
    """
    if not root:
        return DataAccess(revisions=pinned)
    access = DataAccess(None if storage.is_s3(root) else Path(root))
    folders, revisions = {}, {}
    for repo, data in data_sets(tasks).items():
        revisions[repo] = _mirrored(root, data, access)
        if pinned.get(repo, revisions[repo]) != revisions[repo]:
            raise UserError(
                f"{storage.join(root, repo)}: its files are not those that the recipe's `revisions` name "
                f"({pinned[repo][:12]}, now {revisions[repo][:12]}); start the run again, or remove `revisions`"
            )
        if storage.is_s3(root):
            folders[repo] = _fetched(storage.join(root, repo), cache / "mirror" / revisions[repo][:32] / repo)
    return DataAccess(access.root, folders, revisions)


def _mirrored(root: str, data: DataSet, access: DataAccess) -> str:
    if not storage.is_s3(root):
        return access.revision(data)
    listed = storage.list_versions(storage.join(root, data.repo))
    if not listed:
        raise UserError(f"{storage.join(root, data.repo)}: nothing there; {how_to_mirror(data)}")
    return digest_json(listed)


def _fetched(uri: str, folder: Path) -> Path:
    # Loads numpy, and orchestrators read this module.
    from mmbert.evaluation.suites.keeping import kept_folder

    def make(incoming: Path) -> None:
        for path in storage.list_files(uri):
            storage.download(storage.join(uri, path), incoming / path)

    return kept_folder(folder, make)
