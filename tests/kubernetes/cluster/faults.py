"""Failures that the API server has when told to."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.kubernetes.cluster.errors import ApiError

_REASONS = {
    401: ("Unauthorized", "Unauthorized"),
    403: ("Forbidden", "forbidden"),
    429: ("TooManyRequests", "The server has received too many requests and has asked us to try again later."),
    500: ("InternalError", "Internal error occurred: etcdserver: leader changed"),
    503: ("ServiceUnavailable", "the server is currently unable to handle the request"),
    504: ("Timeout", "Timeout: request did not complete within the allotted timeout"),
}


@dataclass
class _Fault:
    method: str
    path: str
    times: int
    error: ApiError | None = None

    def takes(self, method: str, path: str) -> bool:
        if self.times < 1 or self.method not in ("*", method) or not re.search(self.path, path):
            return False
        self.times -= 1
        return True


@dataclass
class Faults:
    """Each kind of fault with the number of times that it will come. `wake` makes open watches and logs look."""

    changed: threading.Condition
    _faults: list[_Fault] = field(default_factory=list)
    _lost: list[_Fault] = field(default_factory=list)
    _left: dict[str, int] = field(default_factory=lambda: {"cut": 0, "gone": 0, "log": 0, "quiet log": 0})

    def fail(
        self,
        method: str,
        path: str,
        status: int = 503,
        times: int = 1,
        headers: Mapping[str, str] | None = None,
        message: str = "",
    ) -> None:
        """Answer these requests (`*`: any method; a regular expression of the path and query) without doing them.

        With 429 and 503 comes what API Priority and Fairness and API conventions ("HTTP Status codes") say: 429 has the
        header Retry-After.
        """
        reason, usual = _REASONS[status]
        headers = {"Retry-After": "1"} if headers is None and status == 429 else dict(headers or {})
        seconds = headers.get("Retry-After", "")
        details = {"retryAfterSeconds": int(seconds)} if seconds.isdigit() else {}
        with self.changed:
            self._faults.append(
                _Fault(method, path, times, ApiError(status, reason, message or usual, details, headers))
            )

    def lose_answers(self, method: str, path: str, times: int = 1) -> None:
        """Do what is asked and close the connection without an answer."""
        with self.changed:
            self._lost.append(_Fault(method, path, times))

    def cut_watches(self, times: int = 1) -> None:
        """Break the connection of the next watches: open ones at once, else those that come."""
        self._expect("cut", times)

    def gone(self, times: int = 1) -> None:
        """Tell the next watches that their version is too old (Kubernetes API Concepts, "410 Gone responses")."""
        self._expect("gone", times)

    def drop_logs(self, times: int = 1, quietly: bool = True) -> None:
        """End the next followed logs though the container runs on: as at its end, or by breaking the connection."""
        self._expect("quiet log" if quietly else "log", times)

    def _expect(self, what: str, times: int) -> None:
        with self.changed:
            self._left[what] += times
            self.changed.notify_all()

    def comes(self, what: str) -> bool:
        """Whether this fault is due now; then it is one less."""
        with self.changed:
            if not self._left[what]:
                return False
            self._left[what] -= 1
            return True

    def raise_for(self, method: str, path: str) -> None:
        with self.changed:
            for fault in self._faults:
                if fault.takes(method, path) and fault.error:
                    raise fault.error

    def loses(self, method: str, path: str) -> bool:
        with self.changed:
            return any(fault.takes(method, path) for fault in self._lost)
