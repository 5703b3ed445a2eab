"""Several processes at the same piece of work: at once, and a predecessor that wakes up behind its retry."""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import psutil

from tests.chaos.data_run import Step, fresh_machine
from tests.chaos.matrix import Fault, Setting, Trial
from tests.chaos.processes import Attempt, run_to_end, started
from tests.chaos.stack import Place, Scene, make_scene

_TOGETHER = (("curate", 2), ("tokenize", 2), ("tokenizer", 3), ("mixture", 3), ("tokenize", 3))
_OVERLAPPING = ("curate", "tokenize", "tokenizer", "curate", "tokenize", "data_report")
_QUICK = 1
_TRIES = 4


@contextlib.contextmanager
def watched(step: Step, place: Place) -> Iterator[None]:
    """Read the artifact again and again: it is there or not, always whole, and once there it stays."""
    stop, there, failures = threading.Event(), [False], list[Exception]()

    def look() -> None:
        while not stop.is_set() and not failures:
            try:
                found = step.check_readable(place.root)
                assert found or not there[0], "the artifact was there and is gone"
                there[0] = found
            except BaseException as error:
                failures.append(error)
            stop.wait(0.02)

    reader = threading.Thread(target=look)
    with fresh_machine(place.folder, **place.environment(step)):
        reader.start()
        try:
            yield
        finally:
            stop.set()
            reader.join()
    if failures:
        raise failures[0]


def together(step: Step, place: Place, count: int) -> float:
    """So many processes at once. The seconds until all ended."""
    with ExitStack() as stack:
        began = time.monotonic()
        attempts = [_start(stack, step, replace(place, folder=place.folder / str(number))) for number in range(count)]
        with watched(step, place):
            for attempt in attempts:
                attempt.end_well()
                attempt.check_gone()
        seconds = time.monotonic() - began
    place.check(step)
    return seconds


def overlapping(step: Step, place: Place, moment: float) -> float | None:
    """Suspend a process after so many seconds, do its work in another one, and let it go on. The seconds of both; None
    where it was done before that."""
    with ExitStack() as stack:
        first, second = (replace(place, folder=place.folder / name) for name in ("predecessor", "retry"))
        began = time.monotonic()
        attempt = _start(stack, step, first)
        if not attempt.alive_after(moment):
            return None
        asleep = attempt.family()
        for process in asleep:
            process.send_signal(signal.SIGSTOP)
        with watched(step, place):
            run_to_end(second.command(step), second.environment(step), second.folder / "log")
            for process in asleep:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGCONT)
            attempt.end_well()
            attempt.check_gone()
        seconds = time.monotonic() - began
    place.check(step)
    return seconds


def _start(stack: ExitStack, step: Step, place: Place) -> Attempt:
    env = place.environment(step)
    return stack.enter_context(started(place.command(step), env, place.folder / "log"))


def _together(scene: Scene, component: str, count: int, name: str) -> float:
    return max(0.0, together(scene.steps[component], scene.place(name), count) - scene.seconds(component))


def _overlapping(scene: Scene, component: str, share: float, name: str) -> float:
    moment = share * scene.seconds(component)
    for number in range(_TRIES):
        seconds = overlapping(scene.steps[component], scene.place(f"{name}-{number}"), moment / 2**number)
        if seconds is not None:
            return max(0.0, seconds - scene.seconds(component))
    raise AssertionError(f"{component} could not be caught at work")


def _trials(setting: Setting) -> Iterator[Trial]:
    scene, chance = make_scene(setting), setting.random("races")
    for number, (component, count) in enumerate(_TOGETHER[:_QUICK] if setting.quick else _TOGETHER):
        name = f"together-{component}-{number}"
        yield Trial(f"races/{name}", functools.partial(_together, scene, component, count, name), count - 1)
    for number, component in enumerate(_OVERLAPPING[:_QUICK] if setting.quick else _OVERLAPPING):
        name = f"overlapping-{component}-{number}"
        yield Trial(f"races/{name}", functools.partial(_overlapping, scene, component, chance.uniform(0.3, 0.9), name))


RACES = Fault("races", "several processes at one piece of work", _trials)
