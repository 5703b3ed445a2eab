"""The Hugging Face hub through its own client: commits, files, and what its errors mean for a user."""

from __future__ import annotations

import contextlib
import difflib
import functools
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from mmbert.errors import InfrastructureError, MmbertError, UserError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_BLOCK_BYTES = 2**23
_BUSY = 429


def is_commit(revision: str) -> bool:
    return _COMMIT.fullmatch(revision) is not None


def is_local(dataset: str) -> bool:
    """Whether a data set is a folder on this machine, as the hub's own libraries decide it."""
    return Path(dataset).is_dir()


def resolve_commit(source: str, dataset: str, revision: str) -> str:
    """The commit that a branch or tag stands for, asked once a process, so that a run reads one state.

    A commit is returned as it is, without asking; for a data set in a local folder the revision is. `source` is named
    in messages. Raises UserError or InfrastructureError.
    """
    if is_commit(revision) or is_local(dataset):
        return revision
    with explained(source, dataset, revision):
        return _ask_commit(dataset, revision)


@functools.cache
def _ask_commit(dataset: str, revision: str) -> str:
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(dataset, revision=revision, timeout=60).sha)


@functools.cache
def model_commit(name: str) -> str:
    """The commit that a model's name stands for, `@` and a revision after it perhaps; asked once a process.

    Raises UserError where the hub has no such model for this user, InfrastructureError where it cannot be reached.
    """
    from huggingface_hub import HfApi, constants

    repo, _, revision = name.partition("@")
    try:
        with retries_told_once():
            return str(HfApi().model_info(repo, revision=revision or None, timeout=60).sha)
    except Exception as error:
        causes = _causes(error)
        where = f"{name}: no such file or folder here, and"
        if _status(causes) in {401, 403, 404}:
            raise UserError(f"{where} the hub has no model of that name that you may read") from error
        if _unreachable(causes):
            raise InfrastructureError(
                f"{where} {constants.ENDPOINT} cannot be reached for a model of that name: {error}; check the network "
                "and HF_ENDPOINT"
            ) from error
        raise


def forget_commits() -> None:
    """Ask again for the commits of branches and tags: for a process that outlives a run."""
    _ask_commit.cache_clear()


def root_of(dataset: str, commit: str) -> tuple[Any, str]:
    """(file system, the data set's root in it)."""
    if is_local(dataset):
        import fsspec  # type: ignore[import-untyped]

        return fsspec.filesystem("file"), str(Path(dataset).resolve())
    from huggingface_hub import HfFileSystem

    return HfFileSystem(), f"datasets/{dataset}@{commit}"


def open_file(dataset: str, commit: str, path: str) -> BinaryIO:
    """A file of a data set for reading and seeking, fetched in ranges."""
    fs, root = root_of(dataset, commit)
    return cast(BinaryIO, fs.open(f"{root}/{path}", "rb", block_size=_BLOCK_BYTES))


@contextlib.contextmanager
def explained(source: str, dataset: str, revision: str) -> Iterator[None]:
    """Turn what the hub's libraries raise into messages that say what to do."""
    try:
        with retries_told_once():
            yield
    except MmbertError:
        raise
    except Exception as error:
        raise _explanation(source, dataset, revision, error) from error


@contextlib.contextmanager
def retries_told_once() -> Iterator[None]:
    """The client warns twice an attempt; the first of these lines is enough."""
    told = False

    def first(record: logging.LogRecord) -> bool:
        nonlocal told
        record.msg, record.args = f"{record.getMessage()}; trying again", ()
        already, told = told, True
        return not already

    client = logging.getLogger("huggingface_hub.utils._http")
    client.addFilter(first)
    try:
        yield
    finally:
        client.removeFilter(first)


def _explanation(source: str, dataset: str, revision: str, error: Exception) -> Exception:
    from huggingface_hub import constants, errors

    where = f"{source}: the data set {dataset}"
    causes = _causes(error)
    if type(error).__name__ == "DatasetNotFoundError":
        # `datasets` hides why; the hub says it again.
        causes += _causes(_access_error(dataset))
    refusal = _refusal(f"{constants.ENDPOINT}/datasets/{dataset}", dataset, revision, causes)
    if refusal:
        return UserError(f"{where} {refusal}")
    if _status(causes) == _BUSY:
        return InfrastructureError(f"{where}: requests came too fast for the hub; {_token_advice('of yours')}")
    if os.environ.get("HF_HUB_OFFLINE") or _first(causes, errors.OfflineModeIsEnabled):
        return InfrastructureError(f"{where} is not in the hub's cache here, and HF_HUB_OFFLINE forbids to fetch it")
    if _is_of_the_data(error, causes):
        return UserError(f"{where} cannot be read: {error}")
    if _unreachable(causes):
        advice = "check the network and HF_ENDPOINT, and run it again"
        return InfrastructureError(f"{where} cannot be reached at {constants.ENDPOINT}: {error}; {advice}")
    return error


def _refusal(page: str, dataset: str, revision: str, causes: list[BaseException]) -> str:
    """What the user has to do before the hub hands the data set out; empty where it did not refuse."""
    from huggingface_hub import errors

    if _first(causes, errors.GatedRepoError):
        advice = _token_advice("of an account that has accepted them")
        return f"is gated: accept its terms at {page}, then {advice}"
    if _first(causes, errors.RevisionNotFoundError):
        return f"has no revision '{revision}'{_near_revisions(dataset, revision)}"
    if _first(causes, errors.RepositoryNotFoundError):
        advice = _token_advice("that may read it")
        return f"does not exist, or is private: check its name at {page}; if it is private, {advice}"
    if _status(causes) in (401, 403):
        return f"may not be read: {_token_advice('that may read it')}"
    if any(isinstance(c, RuntimeError) and "scripts are no longer supported" in str(c) for c in causes):
        return "is read by a script of its own, which is no longer run; name its files in data_files"
    return ""


def _is_of_the_data(error: Exception, causes: list[BaseException]) -> bool:
    """Whether trying again gives the same: something is missing, or is not what it should be."""
    from huggingface_hub import errors

    if _first(causes, FileNotFoundError) and not _first(causes, errors.LocalEntryNotFoundError):
        return True
    return isinstance(error, ValueError) or type(error).__module__.startswith(("datasets", "pyarrow"))


def _status(causes: list[BaseException]) -> int | None:
    from huggingface_hub import errors

    return getattr(getattr(_first(causes, errors.HfHubHTTPError), "response", None), "status_code", None)


def _access_error(dataset: str) -> Exception | None:
    from huggingface_hub import HfApi

    try:
        HfApi().auth_check(dataset, repo_type="dataset")
    except Exception as error:
        return error
    return None


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _first(causes: list[BaseException], kinds: Any) -> BaseException | None:
    return next((cause for cause in causes if isinstance(cause, kinds)), None)


def _unreachable(causes: list[BaseException]) -> bool:
    return (
        _status(causes) is not None
        or _first(causes, OSError) is not None
        or any(type(cause).__module__.startswith(("httpx", "httpcore", "requests", "aiohttp")) for cause in causes)
    )


def _token_advice(whose: str) -> str:
    from huggingface_hub import get_token

    return f"set HF_TOKEN to a token {whose}" + (" (the present one is not)" if get_token() else " (none is set)")


def _near_revisions(dataset: str, revision: str) -> str:
    from huggingface_hub import HfApi

    with contextlib.suppress(Exception):
        refs = HfApi().list_repo_refs(dataset, repo_type="dataset")
        names = [ref.name for ref in (*refs.branches, *refs.tags)]
        return f"; it has {', '.join(difflib.get_close_matches(revision, names, n=5, cutoff=0) or names[:5])}"
    return ""
