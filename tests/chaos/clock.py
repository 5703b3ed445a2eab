"""The wall clock of a component set back and forth while it works, by a library that is loaded into it (clock.c)."""

from __future__ import annotations

import functools
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.matrix import Fault, Setting, Trial
from tests.chaos.processes import run_to_end, started
from tests.chaos.stack import Scene, make_scene

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


def set_clock(scene: Scene, library: Path, component: str, chance: random.Random, name: str, killed: bool) -> float:
    """Run a step under a jumping clock, or kill it and run it again with the clock set far back."""
    step, place = scene.steps[component], scene.place(name)
    seconds = scene.seconds(component)
    clock, log = place.folder / "clock", place.folder / "log"
    env = place.environment(step) | {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(clock)}
    began = time.monotonic()
    if killed:
        clock.write_text(str(400 * _DAY))
        with started(place.command(step), env, log) as attempt:
            if attempt.alive_after(chance.uniform(0.3, 0.8) * seconds):
                attempt.kill()
        clock.write_text(str(-400 * _DAY))
        run_to_end(place.command(step), env, log)
    else:
        with jumping(clock, chance):
            run_to_end(place.command(step), env, log)
    lost = time.monotonic() - began - seconds
    place.check(step)
    return max(0.0, lost)


def _trials(setting: Setting) -> Iterator[Trial]:
    scene = make_scene(setting)
    library = setting.folder / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, Path(__file__).with_suffix(".c")], check=True)
    for component in _QUICK if setting.quick else _FULL:
        for killed in (False, True):
            name = f"{component}-{'killed' if killed else 'jumping'}"
            attempt = functools.partial(set_clock, scene, library, component, setting.random(name), name, killed)
            yield Trial(f"clock/{name}", attempt)


CLOCK = Fault("clock", "wall clock set back and forth", _trials)
