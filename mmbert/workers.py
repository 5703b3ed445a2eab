"""Processes that share work out: they end with the one that started them, however that ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from typing import Any, Self, TypeVar

from mmbert import logs
from mmbert.errors import InfrastructureError
from mmbert.progress import Advance

T = TypeVar("T")


class Workers:
    """So many processes, started when there is something to do; they end with the block. `what` says whose they are."""

    def __init__(self, processes: int, what: str) -> None:
        self._processes, self._what = processes, what
        self._started: tuple[ProcessPoolExecutor, Connection] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end(at_once=kind is not None)

    def each(self, function: Callable[[T], Any], items: Iterable[T], advance: Advance = lambda _: None) -> None:
        """Call a function with each item; both can be pickled. `advance` is told of each that is done.

        Raises the first error of the function, and InfrastructureError where a process was killed.
        """
        if self._started is None:
            # Fresh processes: threads of this one must not be forked.
            context = multiprocessing.get_context("spawn")
            # Not an event: setting one waits for those who wait for it, a killed one too.
            ended, going_on = context.Pipe(duplex=False)
            self._started = ProcessPoolExecutor(self._processes, context, _start_stoppable, (ended,)), going_on
        try:
            futures = [self._started[0].submit(function, item) for item in items]
            for future in futures:
                future.add_done_callback(lambda _: advance(1))
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException as error:
            # None of them works on while the caller clears up.
            self._end(at_once=True)
            if isinstance(error, BrokenProcessPool):
                raise lost(self._what, "fewer threads") from error
            raise

    def _end(self, at_once: bool) -> None:
        if self._started is None:
            return
        pool, going_on = self._started
        self._started = None
        if at_once:
            going_on.close()
        pool.shutdown(cancel_futures=True)
        going_on.close()


def lost(what: str, remedy: str) -> InfrastructureError:
    return InfrastructureError(
        f"a process of {what} was killed, for want of memory perhaps; run it again, with {remedy}"
    )


def start_worker() -> None:
    """What every such process does first."""
    logs.set_up()
    # The parent decides what an interrupt means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        _end_with(parent.sentinel)


def _start_stoppable(ended: Connection) -> None:
    start_worker()
    threading.Thread(target=_end_with, args=(ended,), daemon=True).start()


def _end_with(ended: Any) -> None:
    wait_for([ended])
    os._exit(1)
