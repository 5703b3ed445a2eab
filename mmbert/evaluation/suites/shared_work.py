"""What a suite's tasks have finished, in the object store: another machine goes on where one was killed.

Only what tasks keep of their own is there (scores, predictions, finished seeds): files that are written whole, each of
which counts by itself. Models that were fine-tuned on the way stay on the machine. Hidden files are in the making.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmbert import storage
from mmbert.errors import MmbertError

_SECONDS = 30.0
_FILE = ".json"


@contextlib.contextmanager
def shared_work(folder: Path, uri: str, names: Sequence[str], seconds: float = _SECONDS) -> Iterator[None]:
    """The folders and .json files `names` of `folder`, with what is kept of them below `uri`.

    What is added to them is sent there every `seconds`, and at the end. Raises as `storage` does where the store cannot
    be read, or not be written at the end of a block that ended well.
    """
    sent = _fetch(folder, uri, names)
    ended = threading.Event()

    def send_now_and_then() -> None:
        while not ended.wait(seconds):
            with contextlib.suppress(MmbertError):
                _send(folder, uri, names, sent)

    thread = threading.Thread(target=send_now_and_then, daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        _end(thread, ended)
        with contextlib.suppress(MmbertError):
            _send(folder, uri, names, sent)
        raise
    _end(thread, ended)
    _send(folder, uri, names, sent)


def _end(thread: threading.Thread, ended: threading.Event) -> None:
    ended.set()
    thread.join()


def _fetch(folder: Path, uri: str, names: Sequence[str]) -> set[str]:
    found = {path for name in names for path in _stored(uri, name)}
    for path in sorted(found):
        if not (folder / path).is_file():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            # Somebody may be clearing the store up.
            with contextlib.suppress(storage.MissingFileError):
                storage.download(storage.join(uri, path), folder / path)
    return found


def _stored(uri: str, name: str) -> list[str]:
    below = [f"{name}/{path}" for path in storage.list_files(storage.join(uri, name))]
    if below or not name.endswith(_FILE):
        return below
    return [name] if storage.exists(storage.join(uri, name)) else []


def _send(folder: Path, uri: str, names: Sequence[str], sent: set[str]) -> None:
    for path in (path for name in names for path in _finished(folder, name)):
        if path not in sent:
            with contextlib.suppress(storage.MissingFileError, FileNotFoundError):
                storage.upload(storage.join(uri, path), folder / path)
                sent.add(path)


def _finished(folder: Path, name: str) -> Iterator[str]:
    if (folder / name).is_file():
        yield name
    for place, folders, files in os.walk(folder / name):
        folders[:] = [f for f in folders if not f.startswith(".")]
        yield from (str(Path(place, f).relative_to(folder)) for f in files if not f.startswith("."))
