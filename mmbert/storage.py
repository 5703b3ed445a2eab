"""Files in object storage (`s3://bucket/key`) or in a folder, behind one small interface.

S3's address and credentials come from the usual variables: AWS_ENDPOINT_URL (or S3_ENDPOINT_URL, which Composer and
streaming read), AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import io
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar, cast
from urllib.parse import urlsplit

from mmbert import metrics
from mmbert.errors import InfrastructureError, UserError

P = ParamSpec("P")
R = TypeVar("R")

_S3_ATTEMPTS = 5
_S3_RANGE_BYTES = 2**23
DELETED_AT_ONCE = 1000  # what S3 takes in one request
_WITH_CHECKSUM = {"ChecksumMode": "ENABLED"}
_ACCESS_CODES = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden"}
_UNSUPPORTED_CODES = {"NotImplemented", "MethodNotAllowed", "501", "405"}
_MISSING_CODES = {"404", "NoSuchKey", "NotFound"}
_INCOMING = re.compile(r"\..+\.[0-9a-f]{8}\.incoming", re.DOTALL)
"""A file that is being written (in S3 such a file does not show). Taking it for a whole one would break its writer."""


class MissingFileError(UserError):
    """A file that should be there is not."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as the store lists it; `path` below the prefix, `size` in bytes, `modified` in seconds since 1970."""

    path: str
    size: int
    modified: float


@dataclass(frozen=True)
class UnfinishedUpload:
    """A multipart upload that was begun and not ended: its parts take space and are in no listing of files."""

    uri: str
    upload_id: str
    begun: float
    size: int


class AccessError(InfrastructureError):
    """The store refuses to do this for these credentials."""


class DamagedError(InfrastructureError):
    """An object is not, time and again, what the server's checksum of it says."""


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
        retries={"total_max_attempts": _S3_ATTEMPTS, "mode": "standard"},
        connect_timeout=5,
        read_timeout=60,
        s3={"addressing_style": "path"} if endpoint else {},
        # Some servers send the whole object's checksum with a range of it: it is asked for with whole objects only.
        response_checksum_validation="when_required",
    )
    client = boto3.session.Session().client(
        "s3", endpoint_url=endpoint, config=config, region_name=os.environ.get("AWS_REGION", "us-east-1")
    )
    client.meta.events.register("before-parse.s3.GetObject", _bare_error)
    return client


def _bare_error(response_dict: dict[str, Any], **_: object) -> None:
    """Botocore wraps an error's body, too, where some server's error bears a checksum, and fails to parse the wrapper.

    The body has been read by then, so what is told is its status alone (boto/boto3 issues 4754 and 4765).
    """
    if response_dict["status_code"] >= 300 and not isinstance(response_dict["body"], bytes):
        response_dict["body"] = b""


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
                # What is downloaded comes from one disk and fills another.
                place = args[1] if function.__name__ == "download" else uri
                raise InfrastructureError(f"{place}: the disk is full; free some space and run it again") from error
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
    from botocore.exceptions import ClientError

    endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("S3_ENDPOINT_URL") or "AWS"
    code = error.response.get("Error", {}).get("Code", "") if isinstance(error, ClientError) else ""
    # upload_file and download_file wrap the client's error in one of their own, with the code in the text.
    text = str(error)
    if code == "NoSuchBucket" or "NoSuchBucket" in text:
        return InfrastructureError(
            f"{uri}: there is no bucket '{split_s3(uri)[0]}' at {endpoint}; create it or correct the root"
        )
    if code in _ACCESS_CODES or any(f"({c})" in text for c in _ACCESS_CODES):
        return AccessError(f"{uri}: {endpoint} refused the credentials; {_CREDENTIALS}")
    if code in _MISSING_CODES or any(f"({c})" in text for c in _MISSING_CODES):
        return MissingFileError(f"{uri}: no such object")
    return _failure(uri, error, endpoint)


def _failure(uri: str, error: Exception, endpoint: str) -> InfrastructureError:
    from botocore.exceptions import EndpointConnectionError, FlexibleChecksumError, NoCredentialsError

    if isinstance(error, NoCredentialsError):
        return InfrastructureError(f"{uri}: no S3 credentials; {_CREDENTIALS}")
    if isinstance(error, FlexibleChecksumError):
        return DamagedError(f"{uri}: what comes from {endpoint} is not what was stored there: {error}")
    if isinstance(error, EndpointConnectionError):
        return InfrastructureError(
            f"{uri}: no answer from S3 at {endpoint} after {_S3_ATTEMPTS} attempts; is it running?"
        )
    return InfrastructureError(f"{uri}: S3 at {endpoint} failed: {error}")


class _CutError(OSError):
    """An answer's body is shorter than the range that its header names."""


def _body(uri: str, **request: str) -> tuple[bytes, str]:
    """An object's bytes and ETag, against the checksum that the server has of a whole one.

    botocore repeats a request, but not the reading of its answer: where that is cut or altered, it is asked for again.
    """
    bucket, key = split_s3(uri)
    if "Range" not in request:
        request |= _WITH_CHECKSUM
    for attempt in range(1, _S3_ATTEMPTS + 1):
        answer = s3_client().get_object(Bucket=bucket, Key=key, **request)
        try:
            data: bytes = answer["Body"].read()
            # A proxy that cuts a body may tell its new length.
            span = re.match(r"bytes (\d+)-(\d+)/", answer.get("ContentRange", ""))
            if span is not None and len(data) != (size := int(span[2]) - int(span[1]) + 1):
                raise _CutError(f"the answer was cut: {len(data)} bytes instead of {size}")
        except Exception:
            if attempt == _S3_ATTEMPTS:
                raise
            continue
        return data, answer["ETag"]
    raise AssertionError("unreachable")


@_said_plainly
def read_bytes(uri: str) -> bytes:
    if is_s3(uri):
        return _body(uri)[0]
    return Path(uri).read_bytes()


def fetched_twice(fetch: Callable[[], R], damaged: type[Exception]) -> R:
    """What `fetch` returns, tried again where it raises `damaged`: what was spoilt on its way comes whole then, and
    what lies spoilt in the store does not."""
    try:
        return fetch()
    except damaged:
        return fetch()


@_said_plainly
def read_range(uri: str, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` on; fewer where the file ends before."""
    if not size:
        return b""
    if is_s3(uri):
        return _body(uri, Range=f"bytes={offset}-{offset + size - 1}")[0]
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
            fetched_twice(lambda: _download(bucket, key, temporary), _checksum_error())
        else:
            shutil.copyfile(uri, temporary)


def _download(bucket: str, key: str, target: Path) -> None:
    s3_client().download_file(bucket, key, str(target), ExtraArgs=_WITH_CHECKSUM)


def _checksum_error() -> type[Exception]:
    from botocore.exceptions import FlexibleChecksumError

    return FlexibleChecksumError


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
def modified(uri: str) -> float:
    """When a file was written last, by the store's clock, in seconds since 1970."""
    if not is_s3(uri):
        return Path(uri).stat().st_mtime
    bucket, key = split_s3(uri)
    return float(s3_client().head_object(Bucket=bucket, Key=key)["LastModified"].timestamp())


@_said_plainly
def list_files(uri: str) -> list[str]:
    """Paths of all files below a prefix, relative to it, sorted; empty where there are none.

    Raises UserError where one of them leaves it: an object whose key has `..`, a link that points outside.
    """
    if is_s3(uri):
        return sorted(_checked(uri, path) for path, _ in _s3_objects(uri))
    root = Path(uri)
    files = (p for p in root.rglob("*") if p.is_file() and not _INCOMING.fullmatch(p.name))
    return sorted(str(_inside(root, p).relative_to(root)) for p in files)


@_said_plainly
def list_folders(uri: str) -> list[str]:
    """Names of the folders directly below a prefix, sorted, without listing what is in them; empty where none are."""
    if not is_s3(uri):
        return sorted(p.name for p in Path(uri).iterdir() if p.is_dir()) if Path(uri).is_dir() else []
    bucket, key = split_s3(uri)
    prefix = key.rstrip("/") + "/" if key else ""
    pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
    found = (folder["Prefix"] for page in pages for folder in page.get("CommonPrefixes", []))
    return sorted(_checked(uri, path[len(prefix) : -1]) for path in found)


@_said_plainly
def list_stored(uri: str, go_on: Callable[[], None] = lambda: None) -> list[StoredFile]:
    """All files below a prefix, hidden ones too, by path; empty where there are none.

    `go_on` is called between the parts of the listing. Raises InfrastructureError where a part of it cannot be listed,
    as behind a link to a folder, UserError where an object's key has `..`.
    """
    found = []
    if is_s3(uri):
        bucket, key = split_s3(uri)
        prefix = key.rstrip("/") + "/" if key else ""
        for page in s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            go_on()
            for item in page.get("Contents", []):
                path = _checked(uri, item["Key"][len(prefix) :])
                found.append(StoredFile(path, int(item["Size"]), item["LastModified"].timestamp()))
        return sorted(found, key=lambda file: file.path)
    root = Path(uri)
    if not root.exists():
        return []
    for folder, folders, names in os.walk(root, onerror=_raise):
        go_on()
        for name in folders:
            _no_link(Path(folder, name))
        for name in names:
            place = Path(folder, name)
            try:
                state = place.stat()
            except FileNotFoundError:  # deleted since it was listed
                _no_link(place)
                continue
            if place.is_symlink() and not place.resolve().is_relative_to(root.resolve()):
                _no_link(place)
            found.append(StoredFile(str(place.relative_to(root)), state.st_size, state.st_mtime))
    return sorted(found, key=lambda file: file.path)


def _no_link(path: Path) -> None:
    if path.is_symlink():
        raise InfrastructureError(
            f"{path}: a link, to {path.resolve()}: what is behind it cannot be listed, and may be on a disk that is "
            "away; put the files themselves there, or give their own folder as the root"
        )


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # a folder that was deleted since it was listed
        raise error


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
    data, found = _body(uri, Range=f"bytes={start}-{start + length - 1}")
    if found != etag:
        raise InfrastructureError(f"{uri}: the object changed while it was read; run it again")
    return data


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
    for begin in range(0, len(keys), DELETED_AT_ONCE):
        request = {"Objects": keys[begin : begin + DELETED_AT_ONCE], "Quiet": True}
        s3_client().delete_objects(Bucket=bucket, Delete=request)


@_said_plainly
def delete_files(uri: str, paths: Sequence[str]) -> None:
    """Delete files below a prefix, 1,000 a request at most; those that are gone already are no error.

    Raises InfrastructureError where one could not be deleted.
    """
    if len(paths) > DELETED_AT_ONCE:
        raise ValueError(f"{len(paths)} files in one request")
    if not is_s3(uri):
        for path in paths:
            Path(uri, path).unlink(missing_ok=True)
        return
    bucket, key = split_s3(uri)
    request = {"Objects": [{"Key": join(key, path) if key else path} for path in paths], "Quiet": True}
    failed = s3_client().delete_objects(Bucket=bucket, Delete=request).get("Errors", [])
    if failed:
        raise InfrastructureError(
            f"s3://{bucket}/{failed[0].get('Key', '')} and {len(failed) - 1} more could not be deleted: "
            f"{failed[0].get('Code', '')} {failed[0].get('Message', '')}"
        )


@_said_plainly
def unfinished_uploads(uri: str) -> list[UnfinishedUpload] | None:
    """The multipart uploads below a prefix that were begun and not ended; None where the server does not list them (to
    this user)."""
    if not is_s3(uri):
        return []
    from botocore.exceptions import ClientError

    bucket, key = split_s3(uri)
    prefix = key.rstrip("/") + "/" if key else ""
    client = s3_client()
    try:
        pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
        listed = [upload for page in pages for upload in page.get("Uploads", [])]
    except client.exceptions.NoSuchUpload:  # rclone says so of a bucket that never had one
        return []
    except ClientError as error:
        if error.response.get("Error", {}).get("Code", "") in _UNSUPPORTED_CODES | _ACCESS_CODES:
            return None
        raise
    found = []
    # Some servers list all of a bucket's, whatever the prefix.
    for upload in (one for one in listed if one["Key"].startswith(prefix)):
        try:
            parts = client.get_paginator("list_parts").paginate(
                Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
            )
            size = sum(int(part["Size"]) for page in parts for part in page.get("Parts", []))
        except client.exceptions.NoSuchUpload:  # ended meanwhile
            continue
        begun: datetime.datetime = upload["Initiated"]
        found.append(UnfinishedUpload(f"s3://{bucket}/{upload['Key']}", upload["UploadId"], begun.timestamp(), size))
    return found


@_said_plainly
def abort_upload(uri: str, upload_id: str) -> None:
    """Delete the parts of an upload that was not ended; one that has ended is no error."""
    bucket, key = split_s3(uri)
    client = s3_client()
    with contextlib.suppress(client.exceptions.NoSuchUpload):
        client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)


@_said_plainly
def old_versions(uri: str) -> tuple[int, int]:
    """Versions that a bucket with versioning keeps of what was overwritten or deleted below a prefix: number, bytes."""
    if not is_s3(uri):
        return 0, 0
    from botocore.exceptions import ClientError

    bucket, key = split_s3(uri)
    prefix = key.rstrip("/") + "/" if key else ""
    client = s3_client()
    try:
        if "Status" not in client.get_bucket_versioning(Bucket=bucket):
            return 0, 0
        pages = client.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=prefix)
        old = [int(v["Size"]) for page in pages for v in page.get("Versions", []) if not v["IsLatest"]]
    except ClientError as error:
        if error.response.get("Error", {}).get("Code", "") in _UNSUPPORTED_CODES | _ACCESS_CODES:
            return 0, 0
        raise
    return len(old), sum(old)


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A temporary file beside `target` that takes its place only when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.incoming")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
