"""The processes of one piece of work: they decide together, and what ends one of them ends all.

Any launcher that sets torch's rendezvous variables can start them: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE,
NODE_RANK (or torchrun's GROUP_RANK), MASTER_ADDR, MASTER_PORT. Process 0 leads: it alone tracks, writes and speaks.

Beside torch's process groups each process holds a connection to the rendezvous store. A thread looks there, and at the
processes of its own machine, twice a second: so an error anywhere, or a process killed from outside, ends the others
with its exit code and its message told once, and not with the timeout of a collective. torch is imported in `together`
only, and only where there are several processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from mmbert.errors import InfrastructureError, MmbertError, UserError

T = TypeVar("T")

STOPPED = 130
_PR_SET_PDEATHSIG = 1
_MEETING = datetime.timedelta(minutes=10)
_LOOK_SECONDS = 0.5
_BEAT_SECONDS = 5.0
_LOST_SECONDS = 120.0
_HEARING_SECONDS = 10.0
_GRACE_SECONDS = 20.0
_LEAVING_SECONDS = 30.0
GRACE = "MMBERT_GRACE_SECONDS"
"""Whoever will kill the processes of a machine says here how long after their SIGTERM: a pod's grace. 600 without."""


def ending_seconds(share: float = 0.9) -> float:
    """How long one process may take to end after it was told to: the upload of a checkpoint that is under way, say.

    A share of the grace, since a process that is killed from outside looks like one that ran out of memory. Their
    launcher takes a larger one: it kills what has not ended by then, and says that it was stopped.
    """
    return share * float(os.environ.get(GRACE) or 600)


class RankFailedError(MmbertError):
    """A bug ended another process; its stack trace is in the message."""


@dataclass(frozen=True)
class Failure:
    rank: int
    code: int
    message: str

    def as_error(self) -> BaseException:
        if self.code == STOPPED:
            return KeyboardInterrupt(self.message)
        kinds: dict[int, type[MmbertError]] = {2: UserError, 3: InfrastructureError}
        return kinds.get(self.code, RankFailedError)(self.message)


class Alone:
    """One process: it leads, and decides by itself."""

    rank = 0
    size = 1
    leads = True
    scratch: Path | None = None
    """A folder to delete where this process is ended by force."""
    before_force: Callable[[float], None] | None = None
    """Waits, for so many seconds at most, for what other threads still have to store where it is ended by force."""

    def agree(self, decide: Callable[[], T]) -> T:
        """What `decide` returns in process 0, in every process. It must be plain JSON."""
        return decide()

    def once_a_node(self, action: Callable[[], T]) -> T:
        """What `action` returns in one process of this node, in all of its processes. It must be plain JSON."""
        return action()

    def end(self) -> None:
        """Say that this process ends after an error, and has `ending_seconds` for what is still to be stored."""

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Within, an error ends all processes, and another process's error is raised here."""
        yield


class Ranks(Alone):
    """This process among the others. `store` is torch's rendezvous store, of which it is the only user."""

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.rank, self.size, self.leads = rank, size, rank == 0
        self.failure: Failure | None = None
        self._store = store
        self._calls = {"all": 0, "node": 0}
        self._main = threading.get_ident()
        self._alone = False
        self._ending = threading.Event()
        self._stopped = threading.Event()
        self._store.set(f"place:{rank}", json.dumps([_machine(), os.getpid()]))
        places = [json.loads(store.get(f"place:{r}")) for r in range(size)]
        self._neighbours = {r: pid for r, (machine, pid) in enumerate(places) if machine == _machine() and r != rank}
        self._beats = {r: (0, time.monotonic()) for r in (range(1, size) if self.leads else [0])}
        self._thread = threading.Thread(target=self._watch, name="ranks", daemon=True)
        self._thread.start()

    def agree(self, decide: Callable[[], T]) -> T:
        return self._first(decide, "all", "all", self.leads)

    def once_a_node(self, action: Callable[[], T]) -> T:
        node, local = os.environ.get("NODE_RANK", "0"), os.environ.get("LOCAL_RANK", "0")
        return self._first(action, "node", f"node{node}", local == "0")

    def _first(self, action: Callable[[], T], scope: str, name: str, acts: bool) -> T:
        self._calls[scope] += 1
        key = f"agreed:{name}:{self._calls[scope]}"
        if acts:
            value = action()
            self._store.set(key, json.dumps(value))
            return value
        while not self._store.check([key]):
            time.sleep(_LOOK_SECONDS / 5)
        found: T = json.loads(self._store.get(key))
        return found

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        try:
            yield
        except SystemExit:
            raise
        except BaseException as error:
            self.end()
            failure = self._settle(error)
            if not self.leads and self._told(failure):
                raise SystemExit(failure.code) from None
            if failure.rank == self.rank and not _is_connection(error):
                raise
            raise failure.as_error() from None

    def end(self) -> None:
        # The launcher's own SIGTERM to the processes that are left comes while they clean up.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        if not self._ending.is_set():
            self._ending.set()
            overdue = threading.Timer(ending_seconds(), self._force)
            overdue.daemon = True
            overdue.start()

    def leave(self) -> None:
        """Say that this process ends well; process 0 waits for the others, since its end closes the store."""
        self._ending.set()
        self._stopped.set()
        self._thread.join()
        with contextlib.suppress(RuntimeError):  # process 0 is gone, which its launcher tells
            self._store.set(f"left:{self.rank}", "")
        if self.leads:
            self._wait(lambda: all(map(self._has_left, range(1, self.size))), _LEAVING_SECONDS)

    def _settle(self, error: BaseException) -> Failure:
        """The one failure that this error is, or is the consequence of; told to the others."""
        if self.failure is None:
            # A broken connection and a SIGTERM are what a process sees of another one's end.
            waits = {KeyboardInterrupt: 3 * _LOOK_SECONDS, RuntimeError: _HEARING_SECONDS}
            wait = max((seconds for kind, seconds in waits.items() if isinstance(error, kind)), default=0.0)
            self._wait(lambda: self.failure is not None, wait)
            if self.failure is None:
                self._post(_failure_of(self.rank, error))
        if self.leads:
            with contextlib.suppress(RuntimeError):
                self._wait(lambda: all(self._has_heard(r) for r in range(1, self.size)), _HEARING_SECONDS)
        return self.failure or _failure_of(self.rank, error)

    def _told(self, failure: Failure) -> bool:
        """Whether another process tells the user of it: process 0, or where it is lost the first that is left."""
        told = False
        with contextlib.suppress(RuntimeError):
            told = self._wait(lambda: bool(self._store.check(["told"])), _HEARING_SECONDS)
            self._store.set(f"heard:{self.rank}", "")
            if told:
                # The launcher ends all with the first to go, process 0 in the middle of an upload. It must come out of
                # its collectives for that. Its end closes the store.
                _break_collectives()
                self._wait(lambda: self._has_left(0), ending_seconds())
        return told or failure.code == STOPPED or not (self._speaks() or failure.rank == self.rank)

    def _speaks(self) -> bool:
        return self.leads or (self._alone and self.rank == 1)

    def _watch(self) -> None:
        next_beat = 0.0
        while not self._stopped.wait(_LOOK_SECONDS):
            try:
                if self._store.check(["failure"]):
                    self._hear(Failure(**json.loads(self._store.get("failure"))))
                    return
                lost = self._lost_neighbours()
                if time.monotonic() > next_beat:
                    next_beat = time.monotonic() + _BEAT_SECONDS
                    self._store.add(f"beat:{self.rank}", 1)
                    lost += self._silent()
            except RuntimeError:  # process 0, which held the store, is gone
                self._alone = True
                if not self._stopped.is_set():
                    self._hear(_lost(0))
                return
            if lost:
                self._post(_lost(lost[0]))

    def _post(self, failure: Failure) -> None:
        """Tell the others; the first failure counts."""
        text = json.dumps(asdict(failure))
        with contextlib.suppress(RuntimeError):
            failure = Failure(**json.loads(self._store.compare_set("failure", "", text)))
            if self.leads:
                self._store.set("told", "")
        self.failure = self.failure or failure

    def _hear(self, failure: Failure) -> None:
        """Stop the main thread, by force where it does not come out of a collective."""
        self.failure = self.failure or failure
        with contextlib.suppress(RuntimeError):
            if self.leads:
                self._store.set("told", "")
        if self._ending.is_set():
            return
        # Ignored where the main thread has begun to end meanwhile.
        signal.pthread_kill(self._main, signal.SIGTERM)
        if self._ending.wait(_GRACE_SECONDS):
            return
        if self.before_force is not None:
            self.before_force(ending_seconds())
        if not self._ending.is_set():
            self._force()

    def _force(self) -> None:
        """End this process, though its main thread does not."""
        late = f"process {self.rank} did not end within {ending_seconds():.0f} s of an error; run it again to go on"
        failure = self.failure or Failure(self.rank, 3, late)
        if self._speaks():
            print(f"error: {failure.message}", file=sys.stderr, flush=True)
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)
        os._exit(failure.code)

    def _lost_neighbours(self) -> list[int]:
        gone = [rank for rank, pid in self._neighbours.items() if not _runs(pid)]
        return [rank for rank in gone if not self._has_left(rank)]

    def _silent(self) -> list[int]:
        silent = []
        for rank, (beat, since) in self._beats.items():
            now = self._store.add(f"beat:{rank}", 0)
            if now != beat:
                self._beats[rank] = (now, time.monotonic())
            elif time.monotonic() - since > _LOST_SECONDS and not self._has_left(rank):
                silent.append(rank)
        return silent

    def _has_left(self, rank: int) -> bool:
        return bool(self._store.check([f"left:{rank}"]))

    def _has_heard(self, rank: int) -> bool:
        dead = rank in self._neighbours and not _runs(self._neighbours[rank])
        return dead or bool(self._store.check([f"heard:{rank}"])) or self._has_left(rank)

    @staticmethod
    def _wait(condition: Callable[[], bool], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not (met := condition()) and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS / 10)
        return met


@contextlib.contextmanager
def together() -> Iterator[Alone]:
    """The processes that the environment says there are; an error in one of them ends all.

    Raises InfrastructureError where the others do not come within 10 minutes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Alone()
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else each broken connection prints a C++ stack
    end_with_parent(signal.SIGTERM)  # so that a process never outlives its launcher
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.setdefault("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    ranks = _meet()
    with ranks.guarded():
        yield ranks
    ranks.leave()


def end_with_parent(number: signal.Signals) -> None:
    """Have this process sent a signal when the one that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def _meet() -> Ranks:
    from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

    try:
        store, rank, size = next(rendezvous("env://", timeout=_MEETING))
        return Ranks(PrefixStore("mmbert", store), rank, size)
    except (RuntimeError, ValueError) as error:  # the latter where a variable is missing
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise InfrastructureError(
            f"the {os.environ['WORLD_SIZE']} processes did not meet at {place}: {error}"
        ) from error


def _break_collectives() -> None:
    """Close torch's process groups, so that the others' collectives fail; given up where that hangs."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        closing = threading.Thread(target=distributed.destroy_process_group, daemon=True)
        closing.start()
        closing.join(_HEARING_SECONDS)


def _failure_of(rank: int, error: BaseException) -> Failure:
    if isinstance(error, MmbertError):
        return Failure(rank, error.exit_code, str(error))
    if isinstance(error, KeyboardInterrupt):
        return Failure(rank, STOPPED, "stopped")
    if isinstance(error, OSError):
        return Failure(rank, 3, str(error))
    if _is_connection(error):
        return Failure(rank, 3, f"the connection to another process broke, run it again: {error}")
    trace = "".join(traceback.format_exception(error))
    return Failure(rank, 1, f"this is a bug in mmbert, in process {rank}; please report it:\n{trace}")


def _is_connection(error: BaseException) -> bool:
    words = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe", "TCPStore")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _lost(rank: int) -> Failure:
    return Failure(
        rank, 3, f"process {rank} was lost: killed from outside, or by lack of memory; run it again to go on"
    )


def _machine() -> str:
    """What processes share that see each other's numbers."""
    return f"{os.uname().nodename} {Path('/proc/self/ns/pid').readlink()}"


def _runs(pid: int) -> bool:
    """Whether the process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
