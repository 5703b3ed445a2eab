"""Airflow's REST API, as much of it as the stack needs."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from mmbert.errors import InfrastructureError, UserError

# The services are on loopback: a proxy from the environment must not be asked for them.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_TIMEOUT = 20
_PATIENCE_SECONDS = 60.0
_PAGE = 100


class NotFoundError(UserError):
    """Airflow does not know what was asked for."""


class AirflowApi:
    """A logged-in client. Calls raise UserError where Airflow refuses, InfrastructureError where it fails."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url = url
        self._login = {"username": user, "password": password}
        self._token = ""

    def get(self, path: str, **query: Any) -> Any:
        """GET with patience: a busy or restarting server is asked again for a minute."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return self._call("GET", f"{path}?{urllib.parse.urlencode(query)}" if query else path)
            except InfrastructureError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def post(self, path: str, body: Any) -> Any:
        return self._call("POST", path, body)

    def patch(self, path: str, body: Any) -> Any:
        return self._call("PATCH", path, body)

    def pages(self, path: str, key: str) -> list[Any]:
        """All entries of a listing."""
        found: list[Any] = []
        while True:
            page = self.get(path, limit=_PAGE, offset=len(found))
            found += page[key]
            if not page[key] or len(found) >= page["total_entries"]:
                return found

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        if not self._token:
            self._token = self._request("POST", "/auth/token", self._login)["access_token"]
        return self._request(method, f"/api/v2{path}", body)

    def _request(self, method: str, path: str, body: Any) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=headers)  # noqa: S310
        try:
            with OPENER.open(request, timeout=_TIMEOUT) as response:
                return json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            raise self._refusal(method, path, error) from error
        except (OSError, ValueError) as error:
            raise InfrastructureError(f"Airflow at {self.url} does not answer ({error}); is the stack up?") from error

    def _refusal(self, method: str, path: str, error: urllib.error.HTTPError) -> UserError | InfrastructureError:
        text = error.read().decode(errors="replace")
        try:
            detail = json.loads(text)["detail"]
        except (ValueError, KeyError, TypeError):
            detail = text[:500]
        if error.code == 401:
            self._token = ""
            return UserError(f"Airflow at {self.url} refused the login ({detail})")
        if error.code == 404:
            return NotFoundError(f"Airflow at {self.url}: {detail}")
        if error.code < 500:
            return UserError(f"Airflow at {self.url} refused {method} {path}: {detail}")
        return InfrastructureError(f"Airflow at {self.url} failed on {method} {path} ({error.code}): {detail}")


def ensure_pool(api: AirflowApi, name: str, slots: int, description: str) -> None:
    """Make the pool, or give it this number of slots."""
    body = {"slots": slots, "description": description, "include_deferred": False}
    try:
        if api.get(f"/pools/{name}")["slots"] != slots:
            api.patch(f"/pools/{name}", {"name": name, **body})
    except NotFoundError:
        api.post("/pools", {"name": name, **body})


def quote(text: str) -> str:
    """A path segment."""
    return urllib.parse.quote(text, safe="")
