"""A Kubeflow Pipelines API server on loopback, as far as its client needs one to start runs."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_API = "/apis/v2beta1"


class KubeflowServer:
    """`sent` holds kind, body and token of each thing that was made.

    `refuse` is a status to answer requests with instead that ask for what is in `refused`.
    """

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any, str]] = []
        self.refuse = 0
        self.refused = {"healthz", "experiments", "runs", "recurringruns"}
        self.login_page = False
        self.asked = 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if not self._answered_otherwise():
                    self._answer({"multi_user": False} if self.path == f"{_API}/healthz" else {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                what = self.path.removeprefix(f"{_API}/")
                if self._answered_otherwise():
                    return
                owner.sent.append((what, body, self.headers.get("Authorization", "")))
                ids = {"experiments": "experiment_id", "runs": "run_id", "recurringruns": "recurring_run_id"}
                self._answer({ids[what]: f"the-{what}", "display_name": body["display_name"]})

            def _answered_otherwise(self) -> bool:
                if (other := owner.other_answer(self.path)) is not None:
                    self._send(*other)
                return other is not None

            def _answer(self, value: Any, status: int = 200) -> None:
                self._send(json.dumps(value).encode(), "application/json", status)

            def _send(self, text: bytes, kind: str, status: int) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *words: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def other_answer(self, path: str) -> tuple[bytes, str, int] | None:
        """What to answer in place of what was asked for: text, type and status."""
        self.asked += 1
        if self.login_page:
            return b"<html>who are you?</html>", "text/html", 200
        if self.refuse and path.removeprefix(f"{_API}/").partition("?")[0] in self.refused:
            return b'{"error": "the server says no"}', "application/json", self.refuse
        return None

    def made(self, what: str) -> tuple[Any, str]:
        """Body and token of the only thing of that kind."""
        ((body, token),) = [(body, token) for kind, body, token in self.sent if kind == what]
        return body, token

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
