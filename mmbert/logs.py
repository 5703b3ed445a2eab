"""What a component writes, as text for people or as one JSON object a message: MMBERT_LOG_FORMAT is `text` or `json`.

With MMBERT_QUIET=1 only warnings and errors are told, and results.

    {"time": "2026-01-31T12:00:00.123Z", "level": "warning", "message": "batch 7 is skipped: the loss is nan",
     "component": "train", "task": "train extend", "fingerprint": "...", "workflow_run": "...", "rank": 0}

Levels are `info`, `warning` and `error`; messages have no secrets and no control characters, and a stack trace is one
message. What is not known yet is empty. Libraries' messages come along; what is written past Python's streams, by C++
code or by other programs, stays as it is.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import io
import json
import logging
import multiprocessing
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any, TextIO, cast

from mmbert.errors import UserError
from mmbert.showing import shown

FORMAT = "MMBERT_LOG_FORMAT"
QUIET = "MMBERT_QUIET"
_CONTEXT = "MMBERT_LOG_CONTEXT"
"""What `about` said, for the processes that this one starts."""
_FIELDS = ("component", "task", "fingerprint")
_LEVEL = re.compile(r"(warning|error): ", re.IGNORECASE)
_BEGIN = '{"time": "'
_TRACE = "Traceback (most recent call last):"
# What a progress bar wrote over.
_OVERWRITTEN = re.compile(r"[^\n]*\r(?!\n)")
_ERASE = "\r\x1b[2K"
_is_live = False


def about(**fields: str) -> None:
    """Say what this process works on: component, task, fingerprint. Later messages, also of its children, tell it."""
    os.environ[_CONTEXT] = json.dumps({**_context(), **fields})


def quiet() -> bool:
    """Whether progress and informational messages are left out."""
    return os.environ.get(QUIET, "0") not in {"", "0"}


def is_json() -> bool:
    return os.environ.get(FORMAT) == "json"


def in_colour() -> bool:
    """Whether what goes to standard error may have colours: on a terminal without NO_COLOR."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def set_up(results: bool = True) -> None:
    """Have this process write as MMBERT_LOG_FORMAT and MMBERT_QUIET say. Again changes nothing.

    `results`: standard output too is messages, as a component's is. Raises UserError for another format.
    """
    wanted = os.environ.get(FORMAT) or "text"
    if wanted not in ("text", "json"):
        raise UserError(f"{FORMAT}={wanted}: it must be text or json")
    is_worker = multiprocessing.parent_process() is not None
    if quiet() or not sys.stderr.isatty():
        # Libraries' bars, which write over their line.
        os.environ.setdefault("TQDM_DISABLE", "1")
    if quiet():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if results or is_worker:
        sys.stdout = _made(sys.stdout, wanted, quiet() and is_worker)
    sys.stderr = _made(sys.stderr, wanted, quiet())
    if wanted == "text" and not quiet():
        return
    if not any(isinstance(handler, _Handler) for handler in logging.getLogger().handlers):
        logging.getLogger().addHandler(_Handler(logging.WARNING))
        logging.captureWarnings(True)
        threading.excepthook = _thread_failed


def _made(stream: TextIO, wanted: str, only_warnings: bool) -> TextIO:
    """The stream, or what writes to it by messages where that is another thing."""
    if isinstance(stream, Messages) or (wanted == "text" and not only_warnings and not stream.isatty()):
        return stream
    made = (Messages if wanted == "json" else Lines)(stream, only_warnings)
    atexit.register(made.end)
    return cast(TextIO, made)


def bare(stream: TextIO) -> TextIO:
    """What a stream of ours writes to."""
    return stream.stream if isinstance(stream, Messages) else stream


@contextlib.contextmanager
def above_a_live_line() -> Iterator[None]:
    """While the block runs, the terminal's last line is a live one: what is printed takes its place."""
    global _is_live  # noqa: PLW0603 - there is one terminal
    _is_live = True
    try:
        yield
    finally:
        _is_live = False


@contextlib.contextmanager
def results_apart() -> Iterator[None]:
    """What is printed within the block goes to standard error, by started processes and C++ code too.

    So standard output holds the result alone. Of the processes of one component this is done in the first one.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def relay(text: str) -> None:
    """Write what another process said. It has heeded MMBERT_QUIET itself."""
    if isinstance(sys.stdout, Lines):
        sys.stdout.pass_on(text)
    else:
        sys.stdout.write(text)
        sys.stdout.flush()


def plain(line: str) -> str:
    """A line of a component's output as text for people, whichever format it was written in."""
    if not line.startswith(_BEGIN):
        return line
    try:
        record = json.loads(line)
        level, message = str(record["level"]), str(record["message"])
    except (ValueError, KeyError, TypeError):
        return line
    told = level == "info" or message.startswith(_TRACE)
    return f"{message}\n" if told else f"{level}: {message}\n"


class Messages(io.TextIOBase):
    """A text stream that writes each message as a JSON object to the stream that it stands for.

    A message is what one thread wrote until a text ended with a line: one call of `print`.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, stream: TextIO, only_warnings: bool = False) -> None:
        self.stream, self.only_warnings = stream, only_warnings
        self._begun: dict[int, str] = {}

    def write(self, text: str) -> int:
        thread = threading.get_ident()
        begun = self._begun.get(thread, "") + text
        whole = begun.endswith("\n") and not _cut_off(begun[:-1])
        self._begun[thread] = "" if whole else begun
        if whole:
            self._tell(begun)
        return len(text)

    def tell_message(self, level: str, message: str) -> None:
        self.pass_on(_record(level, message) + "\n")

    def pass_on(self, line: str) -> None:
        """Write a line that is a JSON object already."""
        self.stream.write(line)
        self.stream.flush()

    def end(self) -> None:
        """Write what no end of a line came for."""
        for text in self._begun.values():
            self._tell(text)
        self._begun.clear()

    def _tell(self, text: str) -> None:
        text = _OVERWRITTEN.sub("", text).strip("\r\n")
        if not text.strip():
            return
        if text.startswith(_BEGIN):  # of a process that this one started
            self.pass_on(text + "\n")
            return
        level, message = _parts(text)
        if level != "info" or not self.only_warnings:
            self.tell_message(level, message)

    def flush(self) -> None:
        self.stream.flush()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    @property
    def buffer(self) -> Any:
        """For those who write bytes, past the messages."""
        return self.stream.buffer


class Lines(Messages):
    """A text stream that writes messages as they are: only warnings and errors, or above a terminal's live line."""

    def write(self, text: str) -> int:
        if self.only_warnings or self._is_below():
            return super().write(text)
        return self.stream.write(text)

    def tell_message(self, level: str, message: str) -> None:
        self.pass_on(f"{level}: {shown(message)}\n")

    def pass_on(self, line: str) -> None:
        super().pass_on(f"{_ERASE}{line}" if self._is_below() else line)

    def _is_below(self) -> bool:
        """Whether the last line may be a live one; of a process that shares work out, its children cannot know."""
        return self.isatty() and (_is_live or multiprocessing.parent_process() is not None)

    def _tell(self, text: str) -> None:
        if text and (not self.only_warnings or _parts(text)[0] != "info"):
            self.pass_on(text)


def _parts(text: str) -> tuple[str, str]:
    """A message's level, and the message without it."""
    level = _LEVEL.match(text)
    if level:
        return level[1].lower(), text[level.end() :]
    return "error" if text.startswith(_TRACE) else "info", text


def _cut_off(text: str) -> bool:
    """Whether lines of a stack trace are still to come; they are often written one by one."""
    return text.startswith(_TRACE) and text.rpartition("\n")[2].startswith((" ", _TRACE))


class _Handler(logging.Handler):
    """Python's own log messages and warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr
        if isinstance(stream, Messages):
            level = "error" if record.levelno >= logging.ERROR else "warning"
            stream.tell_message(level, self.format(record).rstrip())


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    if failure.exc_type is not SystemExit:
        trace = traceback.format_exception(failure.exc_type, failure.exc_value, failure.exc_traceback)
        print("".join(trace), end="", file=sys.stderr, flush=True)


def _record(level: str, message: str) -> str:
    now = datetime.datetime.now(datetime.UTC)
    context = _context()
    fields = {
        "time": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": level,
        "message": shown(message),
        **{name: context.get(name, "") for name in _FIELDS},
        "workflow_run": os.environ.get("MMBERT_WORKFLOW_RUN", ""),
        "rank": int(os.environ.get("RANK", "0")),
    }
    # A lone surrogate, as file names may hold, is no UTF-8.
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def _context() -> dict[str, str]:
    found: dict[str, str] = json.loads(os.environ.get(_CONTEXT, "{}"))
    return found
