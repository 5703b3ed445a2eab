"""Long-lived processes with a pid file each: start, recognise, stop with everything below them."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil

from infra.local.settings import MARKER

# The start time tells our process from a later one with the same pid; the clock may have been corrected since.
_SAME_START_SECONDS = 2.0
_KILL_SECONDS = 5.0


def start(name: str, command: Sequence[str], environment: Mapping[str, str], run: Path, log: Path) -> psutil.Process:
    """Start a command in a session of its own, its output in `log`, its pid in `run`."""
    if log.exists():
        log.replace(log.with_suffix(".previous.log"))
    with log.open("ab") as output:
        popen = subprocess.Popen(
            command,
            env=dict(environment),
            cwd=run,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    process = psutil.Process(popen.pid)
    temporary = run / f".{name}.json"
    temporary.write_text(json.dumps({"pid": process.pid, "started": process.create_time()}) + "\n")
    temporary.replace(_pid_file(run, name))
    return process


def find(name: str, run: Path) -> psutil.Process | None:
    """The process that `start` recorded under this name, if it still runs."""
    try:
        recorded = json.loads(_pid_file(run, name).read_text())
        process = psutil.Process(recorded["pid"])
        same = abs(process.create_time() - recorded["started"]) < _SAME_START_SECONDS
        return process if same and _alive(process) else None
    except (OSError, ValueError, KeyError, psutil.Error):
        return None


def forget(name: str, run: Path) -> None:
    _pid_file(run, name).unlink(missing_ok=True)


def with_descendants(leaders: Iterable[psutil.Process], home: Path, everywhere: bool = False) -> list[psutil.Process]:
    """These processes, their descendants and sessions; `everywhere` adds all that carry the stack's mark.

    Airflow puts each task into a process group of its own, and a dead parent's children belong to init: no single
    way of looking finds them all.
    """
    roots = list(leaders)
    sessions = {p.pid for p in roots}
    found = {p.pid: p for p in roots}
    for root in roots:
        try:
            found.update({p.pid: p for p in root.children(recursive=True)})
        except psutil.Error:
            continue
    for process in psutil.process_iter():
        if process.pid != os.getpid() and (
            _session(process.pid) in sessions or (everywhere and _marked(process, home))
        ):
            found[process.pid] = process
    return list(found.values())


def stop(processes: Iterable[psutil.Process], patience: float) -> None:
    """SIGTERM, wait up to `patience` seconds, SIGKILL."""
    processes = list(processes)
    for process in processes:
        _signal(process, kill=False)
    for process in _still_alive(processes, patience):
        _signal(process, kill=True)
    _still_alive(processes, _KILL_SECONDS)


def memory_bytes(processes: Iterable[psutil.Process]) -> int:
    """Memory of these processes with shared pages counted once (PSS where the system tells it, else RSS)."""
    total = 0
    for process in processes:
        try:
            total += getattr(process.memory_full_info(), "pss", 0) or process.memory_info().rss
        except psutil.Error:
            continue
    return total


def _pid_file(run: Path, name: str) -> Path:
    return run / f"{name}.json"


def _signal(process: psutil.Process, kill: bool) -> None:
    try:
        process.kill() if kill else process.terminate()
    except psutil.Error:
        return


def _still_alive(processes: list[psutil.Process], patience: float) -> list[psutil.Process]:
    """Wait until all have ended, and return those that have not. Zombies, which their parent may never reap, have."""
    deadline = time.monotonic() + patience
    while alive := [p for p in processes if _alive(p)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return alive


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1


def _marked(process: psutil.Process, home: Path) -> bool:
    try:
        return bool(process.environ().get(MARKER) == str(home))
    except (psutil.Error, OSError):
        return False
