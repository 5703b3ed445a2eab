"""What has been recorded and not yet sent: a queue of operations that is a file, one JSON line an operation.

The file is the queue, so memory stays flat however long MLflow is away, and what a killed process had recorded is there
for the next attempt. It is emptied each time that everything has been sent.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import threading
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmbert import metrics
from mmbert.errors import InfrastructureError

Operation = dict[str, Any]
_READ_BYTES = 1 << 20


class Spool:
    """An append-only file with a mark up to which it has been sent. One process writes it and holds its lock."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = threading.Lock()
        self._file = path.open("a+b", buffering=0)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._size = 0
        self._sent = 0
        self._entries = 0

    def append(self, operations: Iterable[Operation]) -> None:
        """Record operations, in order. Raises InfrastructureError where the disk does not take them."""
        lines = [json.dumps(operation).encode() + b"\n" for operation in operations]
        data = b"".join(lines)
        with self._lock:
            try:
                written = self._file.write(data)
                if written != len(data):
                    raise OSError(f"{written} of {len(data)} bytes written")
            except OSError as error:
                self._file.truncate(self._size)
                raise InfrastructureError(f"{self.path}: cannot keep what is meant for MLflow: {error}") from error
            self._size += len(data)
            self._count(len(lines))

    def read(self) -> list[tuple[Operation, int]]:
        """The next unsent operations, about 1 MiB of them, each with the mark to set when it has been sent."""
        with self._lock:
            if self._file.closed:
                return []
            mark = self._sent
            with self.path.open("rb") as reader:
                reader.seek(mark)
                lines = reader.readlines(_READ_BYTES)
        entries = []
        for line in lines:
            mark += len(line)
            entries.append((json.loads(line), mark))
        return entries

    def mark_sent(self, mark: int, entries: int) -> None:
        """`entries`: operations between the mark before and this one."""
        with self._lock:
            if self._file.closed:
                return
            self._sent = mark
            self._count(-entries)
            if self._sent == self._size:
                self._file.truncate(0)
                self._size = self._sent = 0

    def _count(self, more: int) -> None:
        self._entries += more
        metrics.set_to(metrics.MLFLOW_BUFFERED, self._entries)

    def close(self) -> Path | None:
        """Close it and return its path if something is unsent; else remove it and return None."""
        with self._lock:
            self._file.seek(self._sent)
            unsent = self._file.read()
            if unsent:
                incoming = self.path.with_suffix(".incoming")
                incoming.write_bytes(unsent)
                incoming.replace(self.path)
            else:
                self.path.unlink()
            self._file.close()
        return self.path if unsent else None


def spool_path(folder: Path, run_id: str) -> Path:
    return folder / f"mlflow-spool-{run_id}-{uuid.uuid4().hex[:8]}.jsonl"


def abandoned(folder: Path, run_id: str) -> Iterator[Path]:
    """Spools of a run whose processes have ended."""
    for path in sorted(folder.glob(f"mlflow-spool-{run_id}-*.jsonl")):
        # Others look at the same moment; who held the lock before may have sent and deleted it.
        with contextlib.suppress(FileNotFoundError), path.open("rb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if path.exists():
                yield path


def parse(data: bytes) -> list[Operation]:
    """The operations of a spool's bytes. A last line that a kill tore off is left out."""
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]
