"""The suites' data: from the hub by name, or from a local mirror that needs no network."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmbert import hub
from mmbert.errors import InfrastructureError, UserError
from mmbert.evaluation.suites.base import DataSet
from mmbert.evaluation.suites.states import in_use
from mmbert.places import cache_folder

PARQUET_EXPORT = "refs/convert/parquet"
"""The revision with the hub's own parquet files, for data sets that are a script, which nothing runs any more."""


@dataclass(frozen=True)
class DataAccess:
    """`root` is a mirror's folder (see `DataSet`); without, data sets come from the hub.

    `folders` are the places of single data sets that lie elsewhere, by repo, and `revisions` the states of data sets
    where these are known.
    """

    root: Path | None = None
    folders: Mapping[str, Path] = field(default_factory=dict)
    revisions: Mapping[str, str] = field(default_factory=dict)

    def folder(self, data: DataSet) -> Path | None:
        """Where the data set's files lie on this machine; None where it comes from the hub.

        Raises UserError where the mirror does not have it.
        """
        if data.repo in self.folders:
            return self.folders[data.repo]
        return None if self.root is None else _mirrored(self.root, data)

    def load(self, data: DataSet, config: str, split: str, columns: Sequence[str] = ()) -> Any:
        """The rows of one split, as a `datasets.Dataset` that has these columns.

        Raises UserError where the mirror has no such data set, or it has no such subset, split or column;
        InfrastructureError where the hub cannot be reached.
        """
        import datasets

        folder = self.folder(data)
        place = data.repo if folder is None else str(folder)
        revision = {"revision": self.revision(data)} if folder is None else {}
        # The export is folders of files, <subset>/<split>/0000.parquet, with no description of its subsets.
        subset = {"data_dir": config} if data.revision == PARQUET_EXPORT else {"name": config}
        try:
            with _without_progress_bars(), self.reading(data):
                rows = datasets.load_dataset(place, split=split, **subset, **revision)
        # An unknown subset or split, files of another schema, a script, a file that is not there or is damaged.
        except (ValueError, RuntimeError, OSError, datasets.exceptions.DatasetGenerationError) as error:
            raise UserError(
                f"{place}, subset {config}, split {split}: {_reason(error)}; {how_to_mirror(data)}"
            ) from error
        if missing := [column for column in columns if column not in rows.column_names]:
            raise UserError(
                f"{place}, subset {config}, split {split}: no column {', '.join(missing)}; it has "
                f"{', '.join(rows.column_names)}, and its schema should be that of {data.card or data.repo}"
            )
        return rows

    @contextlib.contextmanager
    def reading(self, data: DataSet) -> Iterator[None]:
        """Around what reads the data set through `datasets`.

        What is made of a mirror's files is kept by their digest. What the hub's libraries raise becomes messages that
        say what to do; a mirror's errors pass through.
        """
        if self.folder(data) is not None:
            if data.repo in self.folders:
                os.utime(self.folders[data.repo])
            with _kept_in(in_use(cache_folder() / "datasets" / data.repo / self.revision(data)[:32])):
                yield
            return
        with _advised(data), hub.explained("the suites' data", data.repo, data.revision):
            yield

    def revision(self, data: DataSet) -> str:
        """The hub's commit, or the content digest of the files on this machine. Raises as `load` does."""
        if data.repo in self.revisions:
            return self.revisions[data.repo]
        folder = self.folder(data)
        return hub_commit(data.repo, data.revision) if folder is None else _digest(folder)


@contextlib.contextmanager
def _kept_in(folder: Path) -> Iterator[None]:
    """`datasets` tells local folders apart by their card's head alone, and takes one's rows for another's."""
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = folder
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before


def _reason(error: Exception) -> str:
    """Why rows could not be loaded; an unknown subset in our own words."""
    told = str(error)
    if told.startswith("BuilderConfig"):
        there = re.findall(r"'([^']+)'", told.partition("Available: ")[2])
        return f"there is no such subset; it has {', '.join(there) or 'none'}"
    return f"{told} ({error.__cause__})" if error.__cause__ else told


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    from datasets.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def how_to_mirror(data: DataSet) -> str:
    return (
        f"mirror it where there is a network: hf download {data.repo} --repo-type dataset --revision {data.revision} "
        f"--local-dir DIR/{data.repo}, and give --data-root DIR (in a recipe evaluation.data_root)"
    )


def _mirrored(root: Path, data: DataSet) -> Path:
    folder = root / data.repo
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder in the mirror; {how_to_mirror(data)}")
    return folder


def hub_commit(repo: str, revision: str) -> str:
    """The commit that a branch or tag of a data set stands for. Raises as `DataAccess.load` does."""
    with _advised(DataSet(repo, revision=revision)):
        return hub.resolve_commit("the suites' data", repo, revision)


@contextlib.contextmanager
def _advised(data: DataSet) -> Iterator[None]:
    """Says how to do without the hub, where it does not answer or refuses."""
    try:
        yield
    except (UserError, InfrastructureError) as error:
        raise type(error)(f"{error}; or {how_to_mirror(data)}") from error


@functools.cache
def _digest(folder: Path) -> str:
    found = hashlib.sha256()
    files = [p for p in folder.rglob("*") if p.is_file() and not p.relative_to(folder).parts[0].startswith(".")]
    for path in sorted(files):
        with path.open("rb") as stream:
            found.update(f"{path.relative_to(folder)} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return found.hexdigest()
