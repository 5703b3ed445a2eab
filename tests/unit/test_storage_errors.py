"""What is made of S3's errors, without a server."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from urllib3 import HTTPResponse

from mmbert import storage
from mmbert.errors import InfrastructureError


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    storage.s3_client.cache_clear()
    yield "s3://bucket"
    storage.s3_client.cache_clear()


@pytest.mark.parametrize(
    ("status", "error", "asked"),
    [(500, InfrastructureError, 5), (503, InfrastructureError, 5), (403, storage.AccessError, 1),
     (404, storage.MissingFileError, 1)],
)  # fmt: skip
def test_an_error_that_bears_a_checksum_is_the_servers(
    bucket: str, status: int, error: type[Exception], asked: int
) -> None:
    headers = {"x-amz-checksum-crc32": "mg4MjA==", "Content-Length": "29"}
    sent = []

    def answers(request: object, **_: object) -> AWSResponse:
        sent.append(request)
        raw = HTTPResponse(io.BytesIO(b"<Error><Code>X</Code></Error>"), headers, status, preload_content=False)
        return AWSResponse("", status, HTTPHeaders.from_dict(headers), raw)

    storage.s3_client().meta.events.register("before-send.s3.GetObject", answers)
    with pytest.raises(error):
        storage.read_bytes(f"{bucket}/a")
    assert len(sent) == asked
