"""MLflow's REST API: one call, and which of its failures pass with time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import requests
from requests.auth import AuthBase, HTTPBasicAuth

from mmbert.errors import InfrastructureError, MmbertError, UserError

T = TypeVar("T")

_CONNECT_SECONDS = 3
_READ_SECONDS = 30
_ATTEMPTS = 4
_FIRST_WAIT_SECONDS = 0.5
_PAGE = 1000


class Unavailable(InfrastructureError):  # noqa: N818 - a state of the server, and the message says the error
    """MLflow gave no answer of its own: connection refused, timeout, 5xx, a proxy's page."""


class Denied(Unavailable):
    """MLflow asks for another login. Asking again at once is of no use; what is unsent is kept as for any absence."""


class Refused(MmbertError):  # noqa: N818
    """MLflow answered that this request is wrong; sending it again gives the same answer."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"MLflow: {message} ({code})")
        self.code = code


class Api:
    """Calls to one MLflow server. Not for several threads at once: a session is one thread's."""

    def __init__(self, uri: str) -> None:
        """Raises UserError where `uri` is not an MLflow server's address.

        The login comes from the variables that MLflow's own client reads: MLFLOW_TRACKING_USERNAME and
        MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.
        """
        if not uri.startswith(("http://", "https://")):
            raise UserError(
                f"MLFLOW_TRACKING_URI is '{uri}'; it must be a server's address, like http://127.0.0.1:5000 "
                "(unset it to work without MLflow)"
            )
        if "@" in urlsplit(uri).netloc:
            raise UserError(
                "MLFLOW_TRACKING_URI holds a login, which would stand in logs; take it out and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        self.uri = uri.rstrip("/")
        self._session = requests.Session()
        self._session.auth = _login()

    def get(self, path: str, query: Mapping[str, str]) -> Any:
        return self._json(self._send("GET", f"/api/2.0/mlflow/{path}", params=query))

    def call(self, path: str, body: Mapping[str, Any], method: str = "POST") -> Any:
        return self._json(self._send(method, f"/api/2.0/mlflow/{path}", json=body))

    def upload(self, path: str, data: bytes) -> None:
        """Store `data` as the artifact at `path` (below the server's artifact root)."""
        self._send("PUT", f"/api/2.0/mlflow-artifacts/artifacts/{quote(path)}", data=data)

    def check(self) -> None:
        """Return when the server is healthy. Raises InfrastructureError after a few attempts, within 13 seconds."""
        patiently(lambda: self._send("GET", "/health", timeout=2))

    def _send(self, method: str, path: str, timeout: float = _READ_SECONDS, **content: Any) -> requests.Response:
        try:
            response = self._session.request(
                method, self.uri + path, timeout=(min(_CONNECT_SECONDS, timeout), timeout), **content
            )
        except requests.RequestException as error:
            raise Unavailable(
                f"no answer from MLflow at {self.uri} ({type(error).__name__}); start it or correct MLFLOW_TRACKING_URI"
            ) from error
        if response.ok:
            return response
        if response.status_code in {401, 403}:
            raise Denied(
                f"MLflow at {self.uri} refused access ({response.status_code}: {response.text[:200].strip()}); check "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN), what that user may "
                "do, and the server's --allowed-hosts"
            )
        refusal = _refusal(response)
        if refusal is not None:
            raise refusal
        raise Unavailable(f"MLflow at {self.uri} answered {response.status_code}: {response.text[:200].strip()}")

    def _json(self, response: requests.Response) -> Any:
        try:
            return response.json()
        except ValueError as error:
            raise Unavailable(f"{self.uri} answered something that is not JSON; is it an MLflow server?") from error


def pages(api: Api, path: str, query: Mapping[str, Any], key: str) -> Iterator[Any]:
    """All that a search finds, `key` in its answers, page after page. Raises as `patiently`."""
    page = ""
    while True:
        body = {**query, "max_results": _PAGE, **({"page_token": page} if page else {})}
        answer = patiently(lambda body=body: api.call(path, body))  # type: ignore[misc]
        yield from answer.get(key, [])
        page = answer.get("next_page_token", "")
        if not page:
            return


def quoted(text: str) -> str:
    """A value in a search's filter. MLflow takes either quote and unescapes none. Raises UserError for both at once."""
    if "'" not in text:
        return f"'{text}'"
    if '"' in text:
        raise UserError(f"{text}: MLflow cannot look for a name that has both ' and \" in it; leave one out")
    return f'"{text}"'


def _login() -> AuthBase | None:
    name, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if name and password:
        return HTTPBasicAuth(name.encode(), password.encode())
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return _Token(token) if token else None


class _Token(AuthBase):
    """As a header of the session it would give way to what ~/.netrc says of the host."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _refusal(response: requests.Response) -> Refused | None:
    """MLflow's own 4xx are JSON with an error code; anything else (a proxy's page, 429, 5xx) may pass with time.

    So may what MLflow makes a 400 of: two callers who wrote the same row of its database at once.
    """
    if not 400 <= response.status_code < 500 or response.status_code == 429:
        return None
    try:
        body = response.json()
        code, message = body["error_code"], str(body.get("message", ""))
        at_once = code == "BAD_REQUEST" and "IntegrityError" in message
        return None if at_once else Refused(code, message)
    except (ValueError, KeyError, TypeError):
        return None


def connected() -> Api | None:
    """The server at MLFLOW_TRACKING_URI; None where that is unset.

    Raises UserError for an address that is none, InfrastructureError where no healthy server answers within 13 seconds.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return None
    api = Api(uri)
    api.check()
    return api


def patiently(action: Callable[[], T]) -> T:
    """`action()`, tried a few times while MLflow is unavailable. Raises Unavailable after the last."""
    for attempt in range(_ATTEMPTS - 1):
        try:
            return action()
        except Denied:
            raise
        except Unavailable:
            time.sleep(_FIRST_WAIT_SECONDS * 2**attempt)
    return action()
