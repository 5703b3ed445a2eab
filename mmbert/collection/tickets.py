"""One collection at a time on a store: each leaves a ticket, then looks for others'; of two one at least gives way."""

from __future__ import annotations

import contextlib
import datetime
import json
import platform
import uuid
from collections.abc import Iterator

from mmbert import marks, storage
from mmbert.collection.layout import TICKETS
from mmbert.errors import InfrastructureError

_LARGEST_SKEW_SECONDS = 900.0
_TICKET_SECONDS = 3600.0


class Ticket:
    """Renewed while the collection is at work; others take it for dead some time after it was renewed last.

    Which tickets are dead is judged by the store's clock alone.
    """

    def __init__(self, root: str) -> None:
        self._folder = storage.join(root, TICKETS)
        self._name = f"{uuid.uuid4().hex}.json"
        self._since = marks.now()
        self._written = self._until = 0.0
        self._renew()

    def go_on(self) -> None:
        """Raises LostError where the collection stood still for so long that another may have begun."""
        if marks.elapsed() > self._until:
            raise marks.LostError(f"{self._folder}: the collection stood still for too long; run it again")
        if marks.elapsed() > self._until - _TICKET_SECONDS / 2:
            self._renew()

    def others(self) -> list[str]:
        """Who else is at work, looked at once this ticket is there. Dead collections' tickets are thrown away.

        Raises InfrastructureError where the store's clock and this machine's differ by a quarter of an hour.
        """
        listed = {file.path: file.modified for file in storage.list_stored(self._folder)}
        if self._name not in listed:
            raise InfrastructureError(f"{self._folder}: what was just written is not listed; is this store consistent?")
        own = listed.pop(self._name)
        skew = own - self._written
        if abs(skew) > _LARGEST_SKEW_SECONDS:
            raise InfrastructureError(
                f"{self._folder}: the store's clock and this machine's differ by {abs(skew) / 60:.0f} minutes, and "
                "ages decide what goes; set the clock right"
            )
        found = []
        for path, renewed in listed.items():
            uri = storage.join(self._folder, path)
            with contextlib.suppress(storage.MissingFileError):
                if own > renewed + _TICKET_SECONDS + marks.STALL_SECONDS:
                    storage.delete_file(uri)
                else:
                    found.append(_told(uri, renewed))
        return found

    def end(self) -> None:
        storage.delete_file(storage.join(self._folder, self._name))

    def _renew(self) -> None:
        self._written, self._until = marks.now(), marks.elapsed() + _TICKET_SECONDS
        text = json.dumps({"host": platform.node(), "since": self._since})
        storage.write_bytes(storage.join(self._folder, self._name), text.encode())


def _told(uri: str, renewed: float) -> str:
    """Who is at work, since when, and until when that counts where it was killed."""
    try:
        ticket = json.loads(storage.read_bytes(uri))
        host, since = str(ticket["host"]), float(ticket.get("since", renewed))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InfrastructureError(f"{uri}: no ticket of `mmbert storage collect`; delete it") from error
    until = renewed + _TICKET_SECONDS + marks.STALL_SECONDS
    return f"on {host} since {_minute(since)}; if it was killed, it counts until {_minute(until)}, by its ticket {uri}"


def _minute(when: float) -> str:
    return f"{datetime.datetime.fromtimestamp(when, datetime.UTC):%Y-%m-%d %H:%M} UTC"


@contextlib.contextmanager
def alone(root: str) -> Iterator[Ticket]:
    """Raises InfrastructureError where another collection is at work, or the clocks differ by a quarter of an hour."""
    ticket = Ticket(root)
    try:
        if others := ticket.others():
            raise InfrastructureError(
                f"{root}: another collection is at work ({'; '.join(others)}). Run this again when it has ended"
            )
        yield ticket
    finally:
        ticket.end()
