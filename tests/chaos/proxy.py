"""An HTTP proxy before a real S3 server that misbehaves by rules, and notes each request.

It passes on what it gets as it is, the Host header too: signatures are made over it. Bodies are streamed.
"""

from __future__ import annotations

import contextlib
import fnmatch
import http.client
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import unquote, urlsplit

Action = Literal[
    "slow",  # the first byte comes late, and the body in pieces with pauses
    "503",  # SlowDown, nothing is done
    "503 checksum",  # it is done, and the answer is SlowDown with the checksums of the right one
    "500 after",  # it is done, and the answer is an error
    "cut before",  # it is done, and the connection ends without an answer
    "cut body",  # the connection is reset in the middle of the answer's body
    "short body",  # the connection ends in order in the middle of it; Content-Length is of the whole
    "shorter",  # half of the body, with its own Content-Length
    "flip",  # a bit of the body changed
    "wrong etag",
    "reset upload",  # the connection is reset in the middle of the request's body
    "flip upload",  # a bit of the request's body changed
]
OF_BODIES = ("cut body", "short body", "shorter", "flip")
_PIECE = 2**16
_PAUSE_SECONDS = 0.04
_PIECES = 12
_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}
_ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>injected</Message></Error>'


@dataclass(frozen=True)
class Request:
    """One that went through. `target` is its path and query, `bytes` its answer's length, `action` what was done."""

    method: str
    target: str
    status: int
    bytes: int
    action: str = ""


@dataclass
class Rule:
    """What happens to the requests number `at` to `at + times - 1` of those that match both patterns."""

    action: Action
    method: str = "*"
    target: str = "*"
    at: int = 1
    times: int = 1
    seen: int = 0

    def hits(self, method: str, target: str) -> bool:
        if not (fnmatch.fnmatchcase(method, self.method) and fnmatch.fnmatchcase(target, self.target)):
            return False
        self.seen += 1
        return self.at <= self.seen < self.at + self.times


@dataclass
class Proxy:
    endpoint: str
    upstream: str
    rules: list[Rule] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def action(self, method: str, target: str) -> str:
        with self.lock:
            hit = [rule.action for rule in self.rules if rule.hits(method, target)]
            return hit[0] if hit else ""

    def note(self, request: Request) -> None:
        with self.lock:
            self.requests.append(request)

    def clear(self) -> None:
        with self.lock:
            self.rules, self.requests = [], []

    @property
    def met(self) -> int:
        """How many requests something was done to."""
        with self.lock:
            return sum(bool(request.action) for request in self.requests)


@contextlib.contextmanager
def proxied(upstream: str) -> Iterator[Proxy]:
    """A proxy before the server at an http:// endpoint, on a free port."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that went away is no news."""

    class Handler(_Handler):
        proxy: Proxy

    server = Server(("127.0.0.1", 0), Handler)
    proxy = Handler.proxy = Proxy(f"http://127.0.0.1:{server.server_port}", urlsplit(upstream).netloc)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def log_message(self, *arguments: object) -> None:
        """It is noted in the proxy's list."""

    def _pass_on(self) -> None:
        action = self.proxy.action(self.command, unquote(self.path))
        length = int(self.headers.get("Content-Length", 0))
        if action == "503":
            self._drain(length)
            self._answer_error(503, "SlowDown", action)
        elif action == "reset upload":
            self._drain(length // 2)
            self._note(0, 0, action)
            self._reset()
        else:
            self._forward(action, length)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on  # noqa: N815

    def _forward(self, action: str, length: int) -> None:
        upstream = http.client.HTTPConnection(self.proxy.upstream, timeout=120)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP:
                    upstream.putheader(name, value)
            upstream.endheaders()
            for piece in self._pieces(length):
                changed = action == "flip upload" and piece
                upstream.send(bytes([piece[0] ^ 1]) + piece[1:] if changed else piece)
            answer = upstream.getresponse()
            if action in ("500 after", "503 checksum", "cut before"):
                answer.read()
                if action == "500 after":
                    self._answer_error(500, "InternalError", action)
                elif action == "503 checksum":
                    kept = [h for h in answer.headers.items() if h[0].lower().startswith("x-amz-checksum-")]
                    self._answer_error(503, "SlowDown", action, kept)
                else:
                    self._note(0, 0, action)
                    self._close()
                return
            self._send(answer, action)
        finally:
            upstream.close()

    def _send(self, answer: http.client.HTTPResponse, action: str) -> None:
        if self.command == "HEAD" or answer.length is None:
            body = None if self.command == "HEAD" else answer.read()
            size = int(answer.headers.get("Content-Length", 0)) if body is None else len(body)
        else:
            body, size = None, answer.length
        has_body = self.command != "HEAD" and size > 0 and answer.status < 300
        if action in OF_BODIES and not has_body:
            action = ""
        sent = size // 2 if action == "shorter" else size
        self._note(answer.status, size, action)
        if action == "slow":
            time.sleep(_PAUSE_SECONDS * _PIECES)
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.headers.items():
            if name.lower() not in {*_HOP, "content-length"}:
                wrong = name.lower() == "etag" and action == "wrong etag"
                self.send_header(name, f'"{"0" * 32}"' if wrong else value)
        if answer.status not in (204, 304):
            self.send_header("Content-Length", str(sent))
        self.end_headers()
        if self.command == "HEAD":
            return
        whole = iter([body]) if body is not None else iter(lambda: answer.read(_piece(action, size)), b"")
        self._send_body(whole, action, size)

    def _send_body(self, whole: Iterator[bytes], action: str, size: int) -> None:
        done, end = 0, size // 2 if action in OF_BODIES and action != "flip" else size
        for given in whole:
            piece = given[: end - done]
            if action == "flip" and done <= size // 2 < done + len(piece):
                at = size // 2 - done
                piece = piece[:at] + bytes([piece[at] ^ 1]) + piece[at + 1 :]
            self.wfile.write(piece)
            done += len(piece)
            if done >= end:
                break
            if action == "slow":
                time.sleep(_PAUSE_SECONDS)
        self.wfile.flush()
        if action == "cut body":
            self._reset()
        elif action == "short body":
            self._close()
        elif action == "shorter":
            self.close_connection = True

    def _pieces(self, length: int) -> Iterator[bytes]:
        while length:
            piece = self.rfile.read(min(length, _PIECE))
            if not piece:
                raise ConnectionResetError("the client went away")
            length -= len(piece)
            yield piece

    def _drain(self, length: int) -> None:
        for _ in self._pieces(length):
            pass

    def _answer_error(self, status: int, code: str, action: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        data = b"" if self.command == "HEAD" else _ERROR.format(code).encode()
        self._note(status, len(data), action)
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _note(self, status: int, size: int, action: str) -> None:
        self.proxy.note(Request(self.command, unquote(self.path), status, size, action))

    def _close(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _reset(self) -> None:
        self.close_connection = True
        # Closed at once, with a reset instead of an end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def _piece(action: str, size: int) -> int:
    return max(1, min(_PIECE, size // _PIECES)) if action == "slow" else _PIECE
