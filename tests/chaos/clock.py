"""The wall clock of a component set back and forth while it works, by a library that is loaded into it (clock.c).

On a local store: S3 refuses what is signed at another time than its own.
"""

from __future__ import annotations

import functools
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import small_run
from tests.chaos.data_run import Step, fresh_machine, undisturbed
from tests.chaos.matrix import Fault, Setting, Trial
from tests.chaos.processes import run_to_end, started

_DAY = 24 * 60 * 60
_JUMPS = (-400 * _DAY, -_DAY, -600, -1, 0, 1, 600, _DAY, 400 * _DAY)
_SECONDS_BETWEEN = 0.1
_FULL = ("curate", "tokenizer", "tokenize", "data_report")
_QUICK = ("tokenize",)


@contextmanager
def jumping(clock: Path, chance: random.Random) -> Iterator[None]:
    """The clock in a file, set to another time ten times a second."""
    stop = threading.Event()

    def jump() -> None:
        while not stop.is_set():
            following = clock.with_suffix(".next")
            following.write_text(str(chance.choice(_JUMPS)))
            following.replace(clock)
            stop.wait(_SECONDS_BETWEEN)

    jumper = threading.Thread(target=jump)
    jumper.start()
    try:
        yield
    finally:
        stop.set()
        jumper.join()


def set_clock(step: Step, folder: Path, library: Path, chance: random.Random, seconds: float) -> float:
    """Run a step under a jumping clock; `seconds`: kill it after so many, and run it again with an old clock."""
    folder.mkdir()
    root, clock, log = str(folder / "root"), folder / "clock", folder / "log"
    env = small_run.environment(folder, LD_PRELOAD=str(library), CHAOS_CLOCK=str(clock))
    began = time.monotonic()
    if seconds:
        clock.write_text(str(400 * _DAY))
        with started(step.command(root), env, log) as attempt:
            if attempt.alive_after(seconds):
                attempt.kill()
        clock.write_text(str(-400 * _DAY))
        run_to_end(step.command(root), env, log)
    else:
        with jumping(clock, chance):
            run_to_end(step.command(root), env, log)
    lost = time.monotonic() - began
    with fresh_machine(folder):
        step.check_same(root)
    return lost


def _trials(setting: Setting) -> Iterator[Trial]:
    steps = undisturbed(setting.shared)
    library = setting.folder / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, Path(__file__).with_suffix(".c")], check=True)
    for component in _QUICK if setting.quick else _FULL:
        for name, seconds in (("jumping", 0.0), ("killed", setting.random(component).uniform(1, 8))):
            own, chance = setting.folder / f"{component}-{name}", setting.random(f"{component}-{name}")
            attempt = functools.partial(set_clock, steps[component], own, library, chance, seconds)
            yield Trial(f"clock/{component}-{name}", attempt)


CLOCK = Fault("clock", "wall clock set back and forth", _trials)
