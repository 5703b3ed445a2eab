"""Secrets that a test plants and then looks for wherever they must not be."""

from __future__ import annotations

import base64
import gzip
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil
import zstandard

CANARIES: Mapping[str, str] = {
    "AWS_SECRET_ACCESS_KEY": "canary-s3-secret-4f1e9b7c2d",
    "AWS_SESSION_TOKEN": "canary-s3-session-8a6d3e5f10",
    "MLFLOW_TRACKING_PASSWORD": "canary-mlflow-password-71c0",
    "MLFLOW_TRACKING_TOKEN": "canary-mlflow-token-b93e55",
    "HF_TOKEN": "hf_canaryHuggingFaceToken0123456789",
    "AIRFLOW__API_AUTH__JWT_SECRET": "canary-airflow-jwt-secret-2207",
}
"""By the variable that carries each."""


def forms(secret: str) -> set[bytes]:
    """How a secret may be written: as it is, quoted for a URL, as base64 or within the base64 of a text around it."""
    found = {secret.encode(), urllib.parse.quote(secret, safe="").encode()}
    for shift in range(3):
        # Without the characters that depend on what stands before and after.
        encoded = base64.b64encode(b"\0" * shift + secret.encode())
        found.add(encoded[4 if shift else 0 : -4])
    return found


def search_bytes(data: bytes, secrets: Iterable[str]) -> set[str]:
    """Those of the secrets that stand in `data`, also compressed by gzip or zstd."""
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    elif data[:4] == b"\x28\xb5\x2f\xfd":
        data = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()
    return {secret for secret in secrets if any(form in data for form in forms(secret))}


def search_folder(folder: Path, secrets: Iterable[str], allowed: Iterable[str] = ()) -> dict[str, set[str]]:
    """Files below `folder` in which, or in whose names, secrets stand; not those of the names `allowed`."""
    secrets, left_out = list(secrets), set(allowed)
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        data = path.read_bytes() if path.is_file() and name not in left_out else b""
        if there := search_bytes(name.encode(), secrets) | search_bytes(data, secrets):
            found[name] = there
    return found


def search_command_lines(secrets: Iterable[str]) -> dict[int, set[str]]:
    """Processes of this machine on whose command lines secrets stand, which every user can read."""
    secrets = list(secrets)
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if there := search_bytes(line.encode(), secrets):
            found[process.pid] = there
    return found
