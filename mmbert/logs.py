"""What a component writes, as text for people or as one JSON object a message: MMBERT_LOG_FORMAT is `text` or `json`.

    {"time": "2026-01-31T12:00:00.123Z", "level": "warning", "message": "batch 7 is skipped: the loss is nan",
     "component": "train", "task": "train extend", "fingerprint": "...", "workflow_run": "...", "rank": 0}

Levels are `info`, `warning` and `error`; messages have no secrets and no control characters, and a stack trace is one
message. What is not known yet is empty. Libraries' messages come along; what is written past Python's streams, by C++
code or by other programs, stays as it is.
"""

from __future__ import annotations

import atexit
import datetime
import io
import json
import logging
import os
import re
import sys
import threading
import traceback
from typing import Any, TextIO, cast

from mmbert.errors import UserError
from mmbert.showing import shown

FORMAT = "MMBERT_LOG_FORMAT"
_CONTEXT = "MMBERT_LOG_CONTEXT"
"""What `about` said, for the processes that this one starts."""
_FIELDS = ("component", "task", "fingerprint")
_LEVEL = re.compile(r"(warning|error): ", re.IGNORECASE)
_BEGIN = '{"time": "'
_TRACE = "Traceback (most recent call last):"
# What a progress bar wrote over.
_OVERWRITTEN = re.compile(r"[^\n]*\r(?!\n)")


def about(**fields: str) -> None:
    """Say what this process works on: component, task, fingerprint. Later messages, also of its children, tell it."""
    os.environ[_CONTEXT] = json.dumps({**_context(), **fields})


def set_up() -> None:
    """Have this process write as MMBERT_LOG_FORMAT says. Again changes nothing. Raises UserError for another format."""
    wanted = os.environ.get(FORMAT) or "text"
    if wanted not in ("text", "json"):
        raise UserError(f"{FORMAT}={wanted}: it must be text or json")
    if wanted == "text" or isinstance(sys.stdout, Messages):
        return
    out, error = Messages(sys.stdout), Messages(sys.stderr)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, error)
    atexit.register(out.end)
    atexit.register(error.end)
    logging.getLogger().addHandler(_Handler(logging.WARNING))
    logging.captureWarnings(True)
    threading.excepthook = _thread_failed


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

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
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
        self._stream.write(line)
        self._stream.flush()

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
        level = _LEVEL.match(text)
        if level:
            self.tell_message(level[1].lower(), text[level.end() :])
        else:
            self.tell_message("error" if text.startswith(_TRACE) else "info", text)

    def flush(self) -> None:
        self._stream.flush()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def buffer(self) -> Any:
        """For those who write bytes, past the messages."""
        return self._stream.buffer


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
