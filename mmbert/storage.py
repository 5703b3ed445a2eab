"""Files in object storage (`s3://bucket/key`) or in a folder, behind one small interface.

S3's address and credentials come from the usual variables: AWS_ENDPOINT_URL (or S3_ENDPOINT_URL, which Composer and
streaming read), AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar, cast
from urllib.parse import urlsplit

from mmbert import metrics
from mmbert.errors import InfrastructureError, UserError

P = ParamSpec("P")
R = TypeVar("R")

_S3_ATTEMPTS = 5
_S3_RANGE_BYTES = 2**23
_DELETED_AT_ONCE = 1000  # what S3 takes in one request
_ACCESS_CODES = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden"}
_MISSING_CODES = {"404", "NoSuchKey", "NotFound"}


class MissingFileError(UserError):
    """A file that should be there is not."""


def is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *[p.strip("/") for p in parts if p]])


def stays_below(path: str) -> bool:
    """Whether a relative path, joined to a folder, names something below that folder."""
    return not path.startswith("/") and ".." not in path.split("/") and "\0" not in path


def split_s3(uri: str) -> tuple[str, str]:
    """`s3://bucket/a/b` -> (`bucket`, `a/b`). Raises UserError where there is no bucket."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise UserError(f"'{uri}' names no bucket; write s3://BUCKET/PREFIX")
    return bucket, key


@functools.cache
def s3_client() -> Any:
    """One client a process: opening one costs about 0.2 s."""
    import boto3
    from botocore.config import Config

    endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("S3_ENDPOINT_URL")
    if endpoint and "@" in urlsplit(endpoint).netloc:
        raise UserError(
            "AWS_ENDPOINT_URL holds a login, which would stand in logs; take it out and set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    config = Config(
        retries={"max_attempts": _S3_ATTEMPTS, "mode": "standard"},
        connect_timeout=5,
        read_timeout=60,
        s3={"addressing_style": "path"} if endpoint else {},
        # Some servers send the whole object's checksum with a range of it. Artifacts carry their own.
        response_checksum_validation="when_required",
    )
    return boto3.session.Session().client(
        "s3", endpoint_url=endpoint, config=config, region_name=os.environ.get("AWS_REGION", "us-east-1")
    )


os.register_at_fork(after_in_child=s3_client.cache_clear)


def _said_plainly(function: Callable[P, R]) -> Callable[P, R]:
    """Turn what boto3 and the file system raise into the project's errors, and count the call in the metrics."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        uri = str(args[0])
        try:
            return function(*args, **kwargs)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise MissingFileError(f"{uri}: no such file") from error
            if error.errno == errno.ENOSPC:
                raise InfrastructureError(f"{uri}: the disk is full; free some space and run it again") from error
            raise InfrastructureError(f"{uri}: {error.strerror or error}") from error
        except Exception as error:
            if not type(error).__module__.startswith(("botocore", "boto3", "s3transfer")):
                raise
            raise _s3_error(uri, error) from error

    return _counted(wrapped)


def _counted(function: Callable[P, R]) -> Callable[P, R]:
    operation = function.__name__.lstrip("_")

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        if not metrics.active():
            return function(*args, **kwargs)
        began, outcome = time.monotonic(), "error"
        try:
            value = function(*args, **kwargs)
            outcome = "ok"
        except MissingFileError:
            outcome = "missing"
            raise
        except UserError:
            outcome = "refused"
            raise
        finally:
            metrics.observe(metrics.STORE_SECONDS, time.monotonic() - began, operation)
            metrics.add(metrics.STORE_REQUESTS, 1, operation, outcome)
        return value

    return wrapped


_CREDENTIALS = (
    "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or on AWS the role: of the pod's service account (EKS Pod "
    "Identity), or of who is logged in"
)


def _s3_error(uri: str, error: Exception) -> Exception:
    from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

    endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("S3_ENDPOINT_URL") or "AWS"
    if isinstance(error, NoCredentialsError):
        return InfrastructureError(f"{uri}: no S3 credentials; {_CREDENTIALS}")
    code = error.response.get("Error", {}).get("Code", "") if isinstance(error, ClientError) else ""
    # upload_file and download_file wrap the client's error in one of their own, with the code in the text.
    text = str(error)
    if code == "NoSuchBucket" or "NoSuchBucket" in text:
        return InfrastructureError(
            f"{uri}: there is no bucket '{split_s3(uri)[0]}' at {endpoint}; create it or correct the root"
        )
    if code in _ACCESS_CODES or any(f"({c})" in text for c in _ACCESS_CODES):
        return InfrastructureError(f"{uri}: {endpoint} refused the credentials; {_CREDENTIALS}")
    if code in _MISSING_CODES or any(f"({c})" in text for c in _MISSING_CODES):
        return MissingFileError(f"{uri}: no such object")
    if isinstance(error, EndpointConnectionError):
        return InfrastructureError(
            f"{uri}: no answer from S3 at {endpoint} after {_S3_ATTEMPTS} attempts; is it running?"
        )
    return InfrastructureError(f"{uri}: S3 at {endpoint} failed: {text}")


@_said_plainly
def read_bytes(uri: str) -> bytes:
    if is_s3(uri):
        bucket, key = split_s3(uri)
        body: bytes = s3_client().get_object(Bucket=bucket, Key=key)["Body"].read()
        return body
    return Path(uri).read_bytes()


@_said_plainly
def read_range(uri: str, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` on; fewer where the file ends before."""
    if not size:
        return b""
    if is_s3(uri):
        bucket, key = split_s3(uri)
        wanted = f"bytes={offset}-{offset + size - 1}"
        body: bytes = s3_client().get_object(Bucket=bucket, Key=key, Range=wanted)["Body"].read()
        return body
    with Path(uri).open("rb") as stream:
        stream.seek(offset)
        return stream.read(size)


@_said_plainly
def copy(source: str, target: str) -> None:
    """Copy a file within one store, without moving its bytes where that is possible. Neither may be changed after."""
    if is_s3(source):
        (from_bucket, from_key), (bucket, key) = split_s3(source), split_s3(target)
        s3_client().copy_object(CopySource={"Bucket": from_bucket, "Key": from_key}, Bucket=bucket, Key=key)
        return
    with _replacing(Path(target)) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # another file system
            shutil.copyfile(source, temporary)


@_said_plainly
def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file; a reader sees all of it or nothing."""
    if is_s3(uri):
        bucket, key = split_s3(uri)
        s3_client().put_object(Bucket=bucket, Key=key, Body=data)
        return
    with _replacing(Path(uri)) as temporary:
        temporary.write_bytes(data)


@_said_plainly
def upload(uri: str, source: Path) -> None:
    if is_s3(uri):
        bucket, key = split_s3(uri)
        s3_client().upload_file(str(source), bucket, key)
        return
    with _replacing(Path(uri)) as temporary:
        shutil.copyfile(source, temporary)


@_said_plainly
def download(uri: str, target: Path) -> None:
    with _replacing(target) as temporary:
        if is_s3(uri):
            bucket, key = split_s3(uri)
            s3_client().download_file(bucket, key, str(temporary))
        else:
            shutil.copyfile(uri, temporary)


@_said_plainly
def exists(uri: str) -> bool:
    if not is_s3(uri):
        return Path(uri).exists()
    bucket, key = split_s3(uri)
    try:
        s3_client().head_object(Bucket=bucket, Key=key)
    except Exception as error:
        if isinstance(_s3_error(uri, error), MissingFileError):
            return False
        raise
    return True


@_said_plainly
def list_files(uri: str) -> list[str]:
    """Paths of all files below a prefix, relative to it, sorted; empty where there are none.

    Raises UserError where one of them leaves it: an object whose key has `..`, a link that points outside.
    """
    if is_s3(uri):
        return sorted(_checked(uri, path) for path, _ in _s3_objects(uri))
    root = Path(uri)
    return sorted(str(_inside(root, p).relative_to(root)) for p in root.rglob("*") if p.is_file())


def _s3_objects(uri: str) -> Iterator[tuple[str, str]]:
    """(path below the prefix, version) of each object."""
    bucket, key = split_s3(uri)
    prefix = key.rstrip("/") + "/" if key else ""
    pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return ((item["Key"][len(prefix) :], item["ETag"]) for page in pages for item in page.get("Contents", []))


def _checked(uri: str, path: str) -> str:
    if not stays_below(path):
        raise UserError(f"{uri}: an object here is named {path!r}, which leaves its folder; rename or delete it")
    return path


def _inside(root: Path, path: Path) -> Path:
    if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
        raise UserError(
            f"{path}: a link that points out of {root}, to {path.resolve()}; put the file itself there, or "
            "name its own folder"
        )
    return path


@_said_plainly
def list_versions(uri: str) -> list[list[str]]:
    """[path, version] of all files below a prefix, sorted; a version changes whenever a file is written anew.

    A file stands for itself, with its name as path.
    """
    if is_s3(uri):
        bucket, key = split_s3(uri)
        found = sorted([_checked(uri, path), version] for path, version in _s3_objects(uri))
        if not found and key and exists(uri):
            return [[key.rpartition("/")[2], s3_client().head_object(Bucket=bucket, Key=key)["ETag"]]]
        return found
    paths = {path: Path(uri, path) for path in list_files(uri)} or {p.name: p for p in [Path(uri)] if p.is_file()}
    states = {path: place.stat() for path, place in paths.items()}
    return [[path, f"{state.st_size}-{state.st_mtime_ns}"] for path, state in states.items()]


@_said_plainly
def open_read(uri: str) -> BinaryIO:
    """A file for reading and seeking; one in S3 is read in ranges, never downloaded whole.

    Raises MissingFileError, InfrastructureError, and the latter when an object changes while it is read.
    """
    if not is_s3(uri):
        return Path(uri).open("rb")
    bucket, key = split_s3(uri)
    head = s3_client().head_object(Bucket=bucket, Key=key)
    return cast(BinaryIO, io.BufferedReader(_S3Object(uri, head["ContentLength"], head["ETag"]), _S3_RANGE_BYTES))


class _S3Object(io.RawIOBase):
    def __init__(self, uri: str, size: int, etag: str) -> None:
        self._uri, self._size, self._etag = uri, size, etag
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size - self._position)
        if length <= 0:
            return 0
        data = _read_range(self._uri, self._etag, self._position, length)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


@_said_plainly
def _read_range(uri: str, etag: str, start: int, length: int) -> bytes:
    bucket, key = split_s3(uri)
    span = f"bytes={start}-{start + length - 1}"
    for attempt in range(1, _S3_ATTEMPTS + 1):
        answer = s3_client().get_object(Bucket=bucket, Key=key, Range=span)
        if answer["ETag"] != etag:
            raise InfrastructureError(f"{uri}: the object changed while it was read; run it again")
        try:
            data: bytes = answer["Body"].read()
        except Exception:
            # botocore repeats a request, but not the reading of its answer.
            if attempt == _S3_ATTEMPTS:
                raise
            continue
        return data
    raise AssertionError("unreachable")


@_said_plainly
def delete_file(uri: str) -> None:
    """Delete a file; one that is gone already is no error."""
    if is_s3(uri):
        bucket, key = split_s3(uri)
        s3_client().delete_object(Bucket=bucket, Key=key)
        return
    Path(uri).unlink(missing_ok=True)


@_said_plainly
def delete_tree(uri: str) -> None:
    """Delete every file below a prefix."""
    if not is_s3(uri):
        shutil.rmtree(uri, ignore_errors=True)
        return
    bucket, key = split_s3(uri)
    keys = [{"Key": join(key, path)} for path, _ in _s3_objects(uri)]
    for begin in range(0, len(keys), _DELETED_AT_ONCE):
        request = {"Objects": keys[begin : begin + _DELETED_AT_ONCE], "Quiet": True}
        s3_client().delete_objects(Bucket=bucket, Delete=request)


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A temporary file beside `target` that takes its place only when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
