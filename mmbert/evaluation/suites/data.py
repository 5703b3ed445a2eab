"""The suites' data: from the hub by name, or from a local mirror that needs no network."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmbert.errors import InfrastructureError, UserError
from mmbert.evaluation.suites.base import DataSet


@dataclass(frozen=True)
class DataAccess:
    """`root` is a mirror's folder (see `DataSet`); without, data sets come from the hub."""

    root: Path | None = None

    def load(self, data: DataSet, config: str, split: str) -> Any:
        """The rows of one split, as a `datasets.Dataset`.

        Raises UserError where the mirror has no such data set, or it has no such subset or split; InfrastructureError
        where the hub cannot be reached.
        """
        import datasets

        place = data.repo if self.root is None else str(_folder(self.root, data))
        revision = {"revision": self.revision(data)} if self.root is None else {}
        try:
            return datasets.load_dataset(place, config, split=split, **revision)
        except ValueError as error:  # an unknown subset or split
            raise UserError(f"{place}: {error}") from error
        except (ConnectionError, OSError) as error:
            raise InfrastructureError(f"{data.repo}: {error}; {how_to_mirror(data)}") from error

    def revision(self, data: DataSet) -> str:
        """The hub's commit, or the content digest of the mirror's files. Raises as `load` does."""
        return _commit(data) if self.root is None else _digest(_folder(self.root, data))


def how_to_mirror(data: DataSet) -> str:
    return (
        f"mirror it where there is a network: hf download {data.repo} --repo-type dataset --revision {data.revision} "
        f"--local-dir DIR/{data.repo}, and give --data-root DIR"
    )


def _folder(root: Path, data: DataSet) -> Path:
    folder = root / data.repo
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder in the mirror; {how_to_mirror(data)}")
    return folder


@functools.cache
def _commit(data: DataSet) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        return str(HfApi().dataset_info(data.repo, revision=data.revision).sha)
    except RepositoryNotFoundError as error:
        raise UserError(f"{data.repo}: no such data set on the hub, or it asks for a login") from error
    except (HfHubHTTPError, OSError) as error:
        raise InfrastructureError(f"{data.repo}: the hub does not answer ({error}); {how_to_mirror(data)}") from error


@functools.cache
def _digest(folder: Path) -> str:
    found = hashlib.sha256()
    files = [p for p in folder.rglob("*") if p.is_file() and not p.relative_to(folder).parts[0].startswith(".")]
    for path in sorted(files):
        with path.open("rb") as stream:
            found.update(f"{path.relative_to(folder)} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return found.hexdigest()
