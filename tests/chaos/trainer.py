"""The trainer, killed from outside over and over: it goes on from its newest whole checkpoint and ends with the same
bytes as a run that was let alone."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from components.contract import get_component
from components.runtime import run_component
from mmbert.artifacts import open_artifact
from mmbert.sealed import unseal
from tests.chaos.matrix import Fault, Setting, Trial
from tests.chaos.proxy import Action, Rule
from tests.chaos.stores import BUCKET, Store, in_this_process, small_run, start_store
from tests.killing import Trainer, training, wait_until_gone
from tests.small_run import SmallRun, environment

INTERVAL = 4
"""Batches from one checkpoint to the next: some 1,000 tokens each."""
_SECONDS = 300.0
_GONE_SECONDS = 60  # 20 were too few on a machine overloaded five times

Kill = Callable[[Trainer], None]


@dataclass
class Run:
    """One phase that is killed over and over. `lost` are the batches that each start had to train again."""

    line: list[str]
    environment: dict[str, str]
    checkpoints: Callable[[], list[int]]
    """Batches of the whole checkpoints that it has at the moment."""
    interval: int = INTERVAL
    last: int = 0
    whole: int = 0
    lost: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @contextlib.contextmanager
    def going_on(self) -> Iterator[Trainer]:
        """Start it and wait for its next batch, which must be the one behind the newest checkpoint."""
        began = time.monotonic()
        with training(self.line, self.environment) as trainer:
            trainer.wait_for_batch(1)
            self.seconds.append(time.monotonic() - began)
            first = next(int(n) for line in trainer.lines for n in re.findall(r"^batch (\d+):", line))
            assert first == self.whole + 1, f"batch {first} after the whole checkpoint of batch {self.whole}"
            if self.last:
                self.lost.append(self.last - self.whole)
            # An upload may be in flight: the checkpoint before it was whole when that one was taken.
            assert self.last - self.whole <= 2 * self.interval, f"batches {first} to {self.last} were lost"
            yield trainer

    def killed(self, at: int, kill: Kill) -> None:
        """Go on to so many batches behind the newest checkpoint, and end it by force; nothing of it is left."""
        with self.going_on() as trainer:
            trainer.wait_for_batch(self.whole + at)
            family = trainer.family()
            kill(trainer)
            trainer.process.wait(_SECONDS)
            wait_until_gone(family, _GONE_SECONDS)
            trainer.end()
            self.last = trainer.batch
        self.whole = max(self.checkpoints(), default=0)

    def stopped_at_start(self, seconds: float) -> None:
        """Killed before its first batch: nothing changes."""
        with training(self.line, self.environment) as trainer:
            time.sleep(seconds)
            family = trainer.family()
            trainer.kill_group()
            wait_until_gone(family, _GONE_SECONDS)
        assert max(self.checkpoints(), default=0) == self.whole

    def ended(self, batches_left: bool = True) -> str:
        """Its digest, once it has come to its end."""
        with self.going_on() if batches_left else training(self.line, self.environment) as trainer:
            family = trainer.family()
            code, said = trainer.end()
        assert code == 0, said
        wait_until_gone([process for process in family if process.is_running()], _GONE_SECONDS)
        return open_artifact(json.loads(said.splitlines()[-1])["uri"]).digest


def alone(trainer: Trainer) -> None:
    trainer.process.kill()


def group(trainer: Trainer) -> None:
    trainer.kill_group()


def asked(trainer: Trainer) -> None:
    """SIGTERM: it cleans up, and says that it was stopped."""
    trainer.process.terminate()
    assert trainer.process.wait(_SECONDS) == 130


def a_child(trainer: Trainer) -> None:
    """One of its processes alone: the others notice."""
    trainer.family()[-1].kill()
    assert trainer.process.wait(_SECONDS) == 3


def saving(scratch: Path) -> Kill:
    """While a checkpoint is written to the local disk."""
    return _when(lambda: any(scratch.glob("*/resume-*")))


def uploading(root: Path) -> Kill:
    """While one is on its way to the store."""

    def begun() -> bool:
        places = {path.parent for path in root.rglob("resume/*/*/*")}
        return any(not (place / "complete.json").exists() for place in places)

    return _when(begun)


def _when(begun: Callable[[], bool]) -> Kill:
    def kill(trainer: Trainer) -> None:
        end = time.monotonic() + _SECONDS
        while not begun() and trainer.process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.0005)
        assert trainer.process.poll() is None, "it ended before that"
        trainer.kill_group()

    return kill


def trials(setting: Setting) -> Iterator[Trial]:
    chance = setting.random("trainer")

    @functools.cache
    def recipe() -> tuple[SmallRun, str]:
        run = small_run(setting.folder.parent)
        return run, _recipe(run, setting.folder, 16 if setting.quick else 60)

    def line(root: str) -> list[str]:
        run, changed = recipe()
        return run.command("train", root, {**run.train, "recipe": changed})

    undisturbed = functools.cache(functools.partial(_undisturbed, line, setting.folder))
    rounds = 1 if setting.quick else 3
    for number in range(rounds):
        kinds = _kinds(chance, setting.quick)
        yield Trial(
            f"trainer/over-and-over-{number}",
            functools.partial(_over_and_over, line, setting.folder / str(number), kinds, undisturbed),
            injected=len(kinds),
        )
    if setting.quick:
        return
    yield Trial("trainer/uploads-through-a-slow-S3", functools.partial(_through_s3, setting, recipe), injected=8)
    yield Trial("trainer/two-processes", functools.partial(_two_processes, line, setting.folder / "two"), injected=5)


FAULT = Fault("trainer", "the trainer killed", trials, figure=("trainer_restart_seconds", 20))


def _kinds(chance: random.Random, quick: bool) -> list[str]:
    each = ["alone", "group", "asked", "a child", "saving", "uploading", "start"]
    if quick:
        return ["start", *chance.sample(["alone", "group", "saving", "uploading"], 2)]
    kinds = each + [chance.choice(each[:4]) for _ in range(3)]
    chance.shuffle(kinds)
    return kinds


def _recipe(run: SmallRun, folder: Path, batches: int) -> str:
    """The small run's recipe with a first phase of about so many batches."""
    preset = open_artifact(run.recipe).remote("recipe.yaml")
    changes = [f"phases.pretrain.tokens={batches * 1000}", f"training.checkpoint_tokens={INTERVAL * 1000}"]
    changes += ["training.keep_checkpoints=3", "training.workers=1", "training.log_every=1"]
    return run_component(get_component("recipe"), {"preset": preset, "overrides": changes}, str(folder / "recipe")).uri


def _environment(folder: Path, **more: str) -> dict[str, str]:
    scratch = folder / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    return environment(folder, MMBERT_SCRATCH=str(scratch), **more)


def _whole(root: Path) -> list[int]:
    """Batches of the checkpoints whose marker stands, read without any code of ours but the seal's."""
    found = []
    for marker in root.rglob("resume/*/*/complete.json"):
        with contextlib.suppress(FileNotFoundError):
            found.append(int(unseal(marker.read_bytes())["batch"]))
    return found


def _undisturbed(line: Callable[[str], list[str]], folder: Path) -> str:
    place = folder / "undisturbed"
    made = Run(line(str(place / "root")), _environment(place), list)
    return made.ended()


def _over_and_over(
    line: Callable[[str], list[str]], folder: Path, kinds: Sequence[str], undisturbed: Callable[[], str]
) -> float:
    root = folder / "root"
    run = Run(line(str(root)), _environment(folder), lambda: _whole(root))
    ways = {"alone": alone, "group": group, "asked": asked, "a child": a_child,
            "saving": saving(folder / "scratch"), "uploading": uploading(root)}  # fmt: skip
    for kind, at in zip(kinds, itertools.cycle((6, 5, 7)), strict=False):
        if kind == "start":
            run.stopped_at_start(1.5)
        else:
            run.killed(2 if kind in ("saving", "uploading") else at, ways[kind])
    made = run.ended()
    assert made == undisturbed(), "other weights than those of the undisturbed run"
    assert not list(root.rglob("resume/*/*")), "resume checkpoints were left"
    _say(run)
    return max(run.seconds)


def _through_s3(setting: Setting, recipe: Callable[[], tuple[SmallRun, str]]) -> float:
    """Killed while a slow store takes a checkpoint in, its marker too, and during the last upload of all."""
    folder = setting.folder / "s3"
    folder.mkdir()
    local, changed = recipe()
    store = start_store(folder, local, setting.stack)
    in_this_process(store.environment, setting.stack)
    variables = _environment(folder, **store.environment)

    def run(name: str) -> Run:
        line = store.run.command("train", store.root(name), {**store.run.train, "recipe": changed})
        return Run(line, variables, lambda: _whole(store.s3.folder / BUCKET / name))

    killed = run("killed")
    wanted = run("lone").ended()
    for target in ("*/resume/*composer.pt*", "*/resume/*complete.json*"):
        killed.killed(1, _at_request(store, Rule("slow", "PUT", target, at=2)))
    killed.killed(1, _at_request(store, Rule("reset upload", "PUT", "*/resume/*complete.json*", times=2)))
    # What it goes on from comes damaged and cut, too; then it is killed in its last upload.
    shutil.rmtree(folder / "cache")
    bad: tuple[tuple[Action, str], ...] = (
        ("flip", "*composer.pt*"), ("shorter", "*loader.bin*"), ("flip", "*.mds*"), ("cut body", "*mixture.json*"),
    )  # fmt: skip
    store.proxy.clear()
    store.proxy.rules = [Rule(action, "GET", target) for action, target in bad]

    def in_the_last_upload(trainer: Trainer) -> None:
        assert store.proxy.met == len(bad)
        _at_request(store, Rule("slow", "PUT", "*weights.safetensors*"))(trainer)

    killed.killed(1, in_the_last_upload)
    assert killed.ended(batches_left=False) == wanted
    _say(killed)
    return max(killed.seconds)


def _at_request(store: Store, rule: Rule) -> Kill:
    def kill(trainer: Trainer) -> None:
        store.proxy.clear()
        store.proxy.rules = [rule]
        _when(lambda: store.proxy.met > 0)(trainer)
        store.proxy.clear()

    return kill


def _two_processes(line: Callable[[str], list[str]], folder: Path) -> float:
    folder.mkdir()
    profile = folder / "two.yaml"
    profile.write_text("threads: {train: 1}\nprocesses: {train: 2}\n", "utf-8")
    variables = _environment(folder, MMBERT_PROFILE=str(profile))
    wanted = Run(line(str(folder / "lone")), variables, list).ended()
    root = folder / "root"
    run = Run(line(str(root)), variables, lambda: _whole(root))

    def second(trainer: Trainer) -> None:
        next(p for p in trainer.family() if _rank(p) == "1").kill()
        assert trainer.process.wait(_SECONDS) == 3

    def first(trainer: Trainer) -> None:
        next(p for p in trainer.family() if _rank(p) == "0").kill()
        assert trainer.process.wait(_SECONDS) == 3

    for at, kill in ((6, group), (5, second), (6, alone), (5, first), (7, asked)):
        run.killed(at, kill)
    assert run.ended() == wanted
    _say(run)
    return max(run.seconds)


def _rank(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return str(process.environ().get("RANK", ""))
    return ""


def _say(run: Run) -> None:
    shown = ", ".join(f"{seconds:.1f}" for seconds in run.seconds)
    lost = ", ".join(map(str, run.lost))
    print(
        f"  seconds to the next batch: {shown}; batches trained again: {lost}, of {run.interval} between checkpoints",
        flush=True,
    )
