"""Processes that work together: they decide as one, and what ends one ends all, with one message and its exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures_stack import clean_environment, free_port

CODE = """
import os, signal, sys, time
from pathlib import Path
from components.cli import _exit_code
from mmbert import ranks
from mmbert.errors import UserError

def work():
    with ranks.together() as among:
        chosen = among.agree(lambda: ["chosen by", among.rank])
        once = among.once_a_node(lambda: among.rank)
        how, who = sys.argv[1].split("-")
        # Nobody ends before all have come; what ends one while it waits here is not heard, as the store has one user.
        among._store.set(f"came:{among.rank}", "")
        among._store.wait([f"came:{rank}" for rank in range(among.size)])
        print(among.rank, chosen, once, flush=True)
        if len(sys.argv) > 2:
            import torch.distributed
            torch.distributed.init_process_group("gloo")
            torch.distributed.barrier()
        if among.rank == int(who):
            if how == "user":
                raise UserError("the recipe is wrong")
            if how == "bug":
                raise ZeroDivisionError
            if how == "lost":
                os.kill(os.getpid(), 9)
            if how == "broken":
                raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
        elif how == "user" and len(sys.argv) > 2:
            end_slowly(among, Path(sys.argv[2]))
        if how != "none":
            time.sleep(60)

def end_slowly(among, scratch):
    import torch.distributed
    ranks._GRACE_SECONDS = 3
    among.scratch = scratch
    among.before_force = lambda seconds: store(among, "by force")
    if scratch.name == "stuck":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    try:
        torch.distributed.all_reduce(torch.zeros(1))
    except (KeyboardInterrupt, RuntimeError):
        among.end()
        store(among, "at its end")
        raise

def store(among, how):
    time.sleep(5)
    print("stored", how, "while the other one", "waits" if ranks._runs(among._neighbours[1]) else "is gone", flush=True)

sys.exit(_exit_code(work))
"""


def start(size: int, *how: str) -> list[subprocess.Popen[str]]:
    port = str(free_port())
    return [
        subprocess.Popen(
            [sys.executable, "-c", CODE, *how],
            env=clean_environment()
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
            | {"MASTER_PORT": port, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]


def end(processes: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    said = [process.communicate(timeout=120)[0] for process in processes]
    return [process.returncode for process in processes], said


def test_they_decide_as_one() -> None:
    codes, said = end(start(3, "none-0"))
    assert codes == [0, 0, 0]
    assert said == [f"{rank} ['chosen by', 0] 0\n" for rank in range(3)]


@pytest.mark.parametrize(
    ("how", "codes", "message"),
    [
        ("user-1", [2, 2], "error: the recipe is wrong"),
        ("user-0", [2, 2], "error: the recipe is wrong"),
        ("bug-1", [1, 1], "ZeroDivisionError"),
        ("broken-1", [3, 3], "error: the connection to another process broke"),
        ("lost-1", [3, -signal.SIGKILL], "error: process 1 was lost: killed from outside"),
    ],
)
def test_what_ends_one_ends_all_and_is_told_once(how: str, codes: list[int], message: str) -> None:
    ended, said = end(start(2, how))
    assert ended == codes, said
    assert said[0].count(message) == 1
    assert said[1] == ("1 ['chosen by', 0] 0\n" if how != "lost-1" else said[1])


def test_process_0_has_time_to_store_what_is_in_flight(tmp_path: Path) -> None:
    ended, said = end(start(2, "user-1", str(tmp_path / "in a collective")))
    assert ended == [2, 2], said
    assert "stored at its end while the other one waits\n" in said[0]
    assert said[0].count("error: the recipe is wrong") == 1


def test_a_process_ended_by_force_leaves_no_scratch_folder(tmp_path: Path) -> None:
    scratch = tmp_path / "stuck"
    scratch.mkdir()
    (scratch / "weights").touch()
    ended, said = end(start(2, "user-1", str(scratch)))
    assert ended == [2, 2], said
    assert said[0].count("error: the recipe is wrong") == 1
    assert "stored by force while the other one waits\n" in said[0]
    assert not scratch.exists()


def test_when_process_0_is_lost_another_tells() -> None:
    ended, said = end(start(2, "lost-0"))
    assert ended == [-signal.SIGKILL, 3]
    assert "error: process 0 was lost" in said[1]


def test_stopping_one_from_outside_stops_all() -> None:
    processes = start(2, "sleep-0")
    for process in processes:
        assert process.stdout is not None
        assert "chosen by" in process.stdout.readline()
    os.kill(processes[1].pid, signal.SIGTERM)
    assert end(processes)[0] == [130, 130]
