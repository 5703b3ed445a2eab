"""Object storage against a real S3 server, and what is said when it fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mmbert import artifacts, storage
from mmbert.errors import InfrastructureError, UserError
from tests.fixtures_stack import S3, free_port


@pytest.fixture
def bucket(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    storage.s3_client.cache_clear()
    yield s3_server.make_bucket("storage-test")
    storage.s3_client.cache_clear()


def test_files_go_there_and_back(bucket: str, tmp_path: Path) -> None:
    local = tmp_path / "a.bin"
    local.write_bytes(b"x" * 100_000)
    storage.upload(f"{bucket}/folder/a.bin", local)
    storage.write_bytes(f"{bucket}/folder/b.txt", b"two")
    assert storage.list_files(f"{bucket}/folder") == ["a.bin", "b.txt"]
    assert storage.read_bytes(f"{bucket}/folder/b.txt") == b"two"
    storage.download(f"{bucket}/folder/a.bin", tmp_path / "back.bin")
    assert (tmp_path / "back.bin").read_bytes() == local.read_bytes()
    assert storage.exists(f"{bucket}/folder/b.txt")
    storage.delete_tree(f"{bucket}/folder")
    assert not storage.exists(f"{bucket}/folder/b.txt")
    assert storage.list_files(f"{bucket}/folder") == []


def test_an_artifact_has_the_same_digest_in_s3_and_in_a_folder(bucket: str, tmp_path: Path) -> None:
    digests = []
    for root in (f"{bucket}/root", str(tmp_path / "root")):
        writer = artifacts.ArtifactWriter(f"{root}/documents/f", "documents", "f", {}, {})
        writer.add_bytes("train/a.txt", b"text")
        digests.append(writer.commit({}).digest)
        assert artifacts.open_artifact(writer.uri).read("train/a.txt") == b"text"
    assert digests[0] == digests[1]


def test_a_missing_object_is_the_users_error(bucket: str) -> None:
    with pytest.raises(UserError, match="no such object"):
        storage.read_bytes(f"{bucket}/absent")


def test_a_missing_bucket_is_named(bucket: str) -> None:
    with pytest.raises(InfrastructureError, match="there is no bucket 'absent-bucket'"):
        storage.read_bytes("s3://absent-bucket/key")
    with pytest.raises(InfrastructureError, match="there is no bucket 'absent-bucket'"):
        artifacts.find("s3://absent-bucket/documents/f")


def test_wrong_credentials_are_said_plainly(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    storage.s3_client.cache_clear()
    with pytest.raises(InfrastructureError, match="refused the credentials; check AWS_ACCESS_KEY_ID"):
        storage.write_bytes(f"{bucket}/a", b"1")
    with pytest.raises(InfrastructureError, match="refused the credentials"):
        storage.exists(f"{bucket}/a")


def test_no_credentials_name_both_ways_to_have_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    storage.s3_client.cache_clear()
    with pytest.raises(InfrastructureError, match=r"no S3 credentials; check AWS_ACCESS_KEY_ID .*EKS Pod Identity"):
        storage.read_bytes("s3://bucket/key")
    storage.s3_client.cache_clear()


def test_s3_down_is_tried_again_and_then_said_plainly(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    storage.s3_client.cache_clear()
    with pytest.raises(InfrastructureError, match=r"no answer from S3 at .* after 5 attempts"):
        storage.read_bytes(f"{bucket}/a")


def test_a_name_without_a_bucket_is_the_users_error() -> None:
    with pytest.raises(UserError, match="names no bucket"):
        storage.split_s3("s3:///key")
