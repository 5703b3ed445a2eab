"""Suites' finished work in the object store, so that another machine goes on where one was killed.

Below a prefix: `files/` as they lie in the folder, and `complete/<writer>.json`, the files that a writer has sent. A
file counts once it is listed there: folders that a task makes whole are seen whole. Hidden files are in the making.
"""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from mmbert import storage
from mmbert.errors import MmbertError

_SECONDS = 30.0


@contextlib.contextmanager
def shared_work(folder: Path, uri: str, seconds: float = _SECONDS) -> Iterator[None]:
    """`folder` with all that is kept below `uri`; what is added to it is sent there every `seconds`, and at the end.

    Raises as `storage` does; a failure to send in between is tried again, only the last one counts.
    """
    sent = _fetch(folder, uri)
    writer = storage.join(uri, "complete", f"{uuid.uuid4().hex}.json")
    ended = threading.Event()

    def send_now_and_then() -> None:
        while not ended.wait(seconds):
            with contextlib.suppress(MmbertError):
                _send(folder, uri, writer, sent)

    thread = threading.Thread(target=send_now_and_then, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _send(folder, uri, writer, sent)


def _fetch(folder: Path, uri: str) -> set[str]:
    complete = storage.join(uri, "complete")
    known: set[str] = set()
    for name in storage.list_files(complete):
        known |= set(json.loads(storage.read_bytes(storage.join(complete, name))))
    for path in sorted(known):
        if not (folder / path).is_file():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            storage.download(storage.join(uri, "files", path), folder / path)
    return known


def _send(folder: Path, uri: str, writer: str, sent: set[str]) -> None:
    new = [path for path in _finished(folder) if path not in sent]
    for path in new:
        storage.upload(storage.join(uri, "files", path), folder / path)
    if new:
        before = json.loads(storage.read_bytes(writer)) if storage.exists(writer) else []
        storage.write_bytes(writer, json.dumps([*before, *new]).encode())
        sent.update(new)


def _finished(folder: Path) -> list[str]:
    paths = (p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file())
    return [str(path) for path in paths if not any(part.startswith(".") for part in path.parts)]
