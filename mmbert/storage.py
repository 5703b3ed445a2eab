"""Files in object storage (`s3://bucket/key`) or in a folder, behind one small interface.

S3's address and credentials come from the usual variables: AWS_ENDPOINT_URL (or S3_ENDPOINT_URL, which Composer and
streaming read), AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from mmbert.errors import InfrastructureError, UserError

P = ParamSpec("P")
R = TypeVar("R")

_S3_ATTEMPTS = 5
_DELETED_AT_ONCE = 1000  # what S3 takes in one request
_ACCESS_CODES = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden"}
_MISSING_CODES = {"404", "NoSuchKey", "NotFound"}


class MissingFileError(UserError):
    """A file that should be there is not."""


def is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *[p.strip("/") for p in parts if p]])


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
    config = Config(
        retries={"max_attempts": _S3_ATTEMPTS, "mode": "standard"},
        connect_timeout=5,
        read_timeout=60,
        s3={"addressing_style": "path"} if endpoint else {},
    )
    return boto3.session.Session().client(
        "s3", endpoint_url=endpoint, config=config, region_name=os.environ.get("AWS_REGION", "us-east-1")
    )


os.register_at_fork(after_in_child=s3_client.cache_clear)


def _said_plainly(function: Callable[P, R]) -> Callable[P, R]:
    """Turn what boto3 and the file system raise into the project's errors."""

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

    return wrapped


def _s3_error(uri: str, error: Exception) -> Exception:
    from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

    endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("S3_ENDPOINT_URL") or "AWS"
    if isinstance(error, NoCredentialsError):
        return InfrastructureError(f"{uri}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    code = error.response.get("Error", {}).get("Code", "") if isinstance(error, ClientError) else ""
    # upload_file and download_file wrap the client's error in one of their own, with the code in the text.
    text = str(error)
    if code == "NoSuchBucket" or "NoSuchBucket" in text:
        return InfrastructureError(
            f"{uri}: there is no bucket '{split_s3(uri)[0]}' at {endpoint}; create it or correct the root"
        )
    if code in _ACCESS_CODES or any(f"({c})" in text for c in _ACCESS_CODES):
        return InfrastructureError(
            f"{uri}: {endpoint} refused the credentials; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
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
    """Paths of all files below a prefix, relative to it, sorted; empty where there are none."""
    if is_s3(uri):
        bucket, key = split_s3(uri)
        prefix = key.rstrip("/") + "/" if key else ""
        pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return sorted(item["Key"][len(prefix) :] for page in pages for item in page.get("Contents", []))
    root = Path(uri)
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


@_said_plainly
def list_versions(uri: str) -> list[list[str]]:
    """[path, version] of all files below a prefix, sorted; a version changes whenever a file is written anew."""
    if is_s3(uri):
        bucket, key = split_s3(uri)
        prefix = key.rstrip("/") + "/" if key else ""
        pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return sorted([i["Key"][len(prefix) :], i["ETag"]] for page in pages for i in page.get("Contents", []))
    found = [(path, (Path(uri) / path).stat()) for path in list_files(uri)]
    return [[path, f"{state.st_size}-{state.st_mtime_ns}"] for path, state in found]


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
    keys = [{"Key": join(key, path)} for path in list_files(uri)]
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
