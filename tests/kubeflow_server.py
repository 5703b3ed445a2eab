"""A Kubeflow Pipelines API server on loopback, as far as its client needs one to start runs."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_API = "/apis/v2beta1"


class KubeflowServer:
    """`sent` holds kind, body and token of each thing that was made; `refuse` is a status to answer with instead."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any, str]] = []
        self.refuse = 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer({"multi_user": False} if self.path == f"{_API}/healthz" else {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                what = self.path.removeprefix(f"{_API}/")
                if owner.refuse and what != "experiments":
                    self._answer({"error": "the server says no"}, owner.refuse)
                    return
                owner.sent.append((what, body, self.headers.get("Authorization", "")))
                ids = {"experiments": "experiment_id", "runs": "run_id", "recurringruns": "recurring_run_id"}
                self._answer({ids[what]: f"the-{what}", "display_name": body["display_name"]})

            def _answer(self, value: Any, status: int = 200) -> None:
                text = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *words: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def made(self, what: str) -> tuple[Any, str]:
        """Body and token of the only thing of that kind."""
        ((body, token),) = [(body, token) for kind, body, token in self.sent if kind == what]
        return body, token

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
