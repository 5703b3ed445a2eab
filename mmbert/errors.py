"""Errors for the person who reads them, and the exit code that each one ends a command with."""

from __future__ import annotations

from mmbert.showing import shown


class MmbertError(Exception):
    """An error whose message is meant to be read: what was wrong, where, what to do. Exit code 1.

    Messages quote what came from outside, and end in logs: they are made fit to be shown.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(shown(message))


class UserError(MmbertError):
    """The recipe, the data or the arguments are wrong. Exit code 2; trying again does not help."""

    exit_code = 2


class InfrastructureError(MmbertError):
    """A store, a server, a disk or the network failed. Exit code 3; worth a retry."""

    exit_code = 3
