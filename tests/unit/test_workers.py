"""Processes that share work out: errors come back, and a killed one is an error and no wait."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path

import pytest

from mmbert.errors import InfrastructureError, UserError
from mmbert.workers import Workers


def _write(folder: Path, number: int) -> None:
    (folder / str(number)).write_text(str(os.getpid()))
    if number == 13:
        raise UserError("13 is none")


def _be_killed(number: int) -> None:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def test_processes_stay_from_one_piece_of_work_to_the_next_and_errors_come_back(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="13 is none"), Workers(1, "tests") as workers:
        workers.each(functools.partial(_write, tmp_path), range(2))
        workers.each(functools.partial(_write, tmp_path), [2, 13])
    assert len({path.read_text() for path in tmp_path.iterdir()} - {str(os.getpid())}) == 1


def test_a_killed_process_is_an_error_worth_a_retry() -> None:
    with (
        pytest.raises(InfrastructureError, match=r"a process of tests was killed, .* run it again, with fewer threads"),
        Workers(1, "tests") as workers,
    ):
        workers.each(_be_killed, range(3))
