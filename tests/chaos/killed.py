"""Data components as processes, on a real S3 and MLflow, killed from outside at random moments."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.data_run import Step, fresh_machine
from tests.chaos.matrix import Fault, Setting, Trial
from tests.chaos.processes import run_to_end, started
from tests.chaos.stack import Place, Scene, make_scene
from tests.killing import mapped_shared_memory

_FULL = {"recipe": 2, "curate": 6, "tokenizer": 3, "tokenize": 6, "mixture": 2, "data_report": 2}
_QUICK = {"curate": 1, "tokenize": 1}
_FULL_WORKERS = {"curate": 2, "tokenize": 2}
_QUICK_WORKERS = {"curate": 1}
_TRIES = 4


def killed(step: Step, place: Place, moment: float, worker: bool) -> float | None:
    """Kill a step's process, or a worker of it, after so many seconds, and run it again. The seconds of both; None
    where it was done before."""
    env, log = place.environment(step), place.folder / "log"
    shared: list[str] = []
    began = time.monotonic()
    with started(place.command(step), env, log) as attempt:
        if not attempt.alive_after(moment):
            return None
        if worker:
            while not (workers := attempt.workers()):
                if not attempt.alive_after(0.01):
                    return None
            workers[-1].kill()
            code = attempt.end()
            attempt.check_gone()
            if code == 0:
                return None  # it had done its last work
            assert code == 3, attempt.said
        else:
            shared = [line.split()[-1] for process in attempt.family() for line in mapped_shared_memory(process)]
            attempt.kill()
    with fresh_machine(place.folder, **env):
        step.check_readable(place.root)
    run_to_end(place.command(step), env, log)
    seconds = time.monotonic() - began
    place.check(step)
    assert not [path for path in shared if Path(path).exists()], f"shared memory is left: {shared}"
    return seconds


def _attempt(scene: Scene, component: str, share: float, worker: bool, name: str) -> float:
    moment = share * scene.seconds(component)
    for number in range(_TRIES):
        # The machine is not always as slow as when the undisturbed run was measured.
        seconds = killed(scene.steps[component], scene.place(f"{name}-{number}"), moment / 2**number, worker)
        if seconds is not None:
            return max(0.0, seconds - scene.seconds(component))
    raise AssertionError(f"{component} could not be caught at work")


def _trials(setting: Setting) -> Iterator[Trial]:
    scene = make_scene(setting)
    for worker, kills in (
        (False, _QUICK if setting.quick else _FULL),
        (True, _QUICK_WORKERS if setting.quick else _FULL_WORKERS),
    ):
        for component, times in kills.items():
            name = f"{component}-worker" if worker else component
            chance = setting.random(f"killed/{name}")
            for number in range(times):
                share = chance.uniform(0.02, 0.9)
                attempt = functools.partial(_attempt, scene, component, share, worker, f"{name}-{number}")
                yield Trial(f"killed/{name}/{number}", attempt)


KILLED = Fault("killed", "data component, or a worker of it, killed from outside", _trials)
