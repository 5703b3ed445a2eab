"""Disks that fill up: the scratch folder, the cache or the store on a file system that is really that small."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests import small_run
from tests.chaos.data_run import Step, fresh_machine, undisturbed
from tests.chaos.matrix import Fault, Setting, Trial
from tests.chaos.processes import run_to_end, started

_PAGE = 4096
_ROOM = "size=1g,nr_inodes=100k"


@dataclass(frozen=True)
class Small:
    """A place's file system: `options` are tmpfs's."""

    place: str
    component: str
    options: str


def _small(setting: Setting, steps: Mapping[str, Step]) -> list[Small]:
    """How small each is: too small for what the step puts there, by chance more or less."""
    chance = setting.random("disk")
    pages = {name: sum(-(-file.size // _PAGE) for file in s.artifact.manifest.files) for name, s in steps.items()}

    def size(most: int) -> str:
        return f"size={chance.randrange(1, most) * _PAGE},nr_inodes=1k"

    found = [
        # Inodes run out as well as bytes; by bytes the cache has its own limit, which is looked at first.
        Small("cache", "tokenizer", f"size=1g,nr_inodes={chance.randrange(3, 9)}"),
        Small("scratch", "curate", size(3)),
        Small("store", "tokenize", size(pages["tokenize"])),
    ]
    if setting.quick:
        return found[1:]
    return [
        *found,
        Small("cache", "tokenizer", f"size=1g,nr_inodes={chance.randrange(3, 9)}"),
        Small("cache", "mixture", "size=100m"),
        Small("scratch", "tokenizer", size(4)),
        Small("scratch", "tokenize", size(4)),
        *(Small("store", name, size(pages[name])) for name in ("recipe", "curate", "tokenizer", "tokenize")),
    ]


def filled(step: Step, small: Small, folder: Path) -> float:
    """Run a step into the full disk, make room, and run it again. The seconds of both."""
    folder.mkdir(parents=True)
    with mounted(folder / "small", small.options) as disk:
        places = {name: folder / name for name in ("cache", "scratch", "store")} | {small.place: disk / "own"}
        env = small_run.environment(folder, MMBERT_CACHE=str(places["cache"]), MMBERT_SCRATCH=str(places["scratch"]))
        command, log = step.command(str(places["store"])), folder / "log"
        began = time.monotonic()
        with started(command, env, log) as attempt:
            assert attempt.end() == 3, attempt.said
            last = attempt.said.splitlines()[-1]
            assert str(disk) in last, f"it does not say which disk is full: {last}"
            attempt.check_gone()
        with fresh_machine(folder):
            assert not step.check_readable(str(places["store"])), "there, and not all of it was written"
        _mount("-o", f"remount,{_ROOM}", str(disk))
        run_to_end(command, env, log)
        seconds = time.monotonic() - began
        with fresh_machine(folder):
            step.check_same(str(places["store"]))
    return seconds


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system in memory. Needs root, or sudo without a password."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"{options},mode=0777", "mmbert-chaos", str(folder))
    try:
        yield folder
    finally:
        subprocess.run([*_sudo(), "umount", str(folder)], check=True)


def _mount(*arguments: str) -> None:
    subprocess.run([*_sudo(), "mount", *arguments], check=True)


def _sudo() -> list[str]:
    return [] if os.geteuid() == 0 else ["sudo", "-n"]


def _trials(setting: Setting) -> Iterator[Trial]:
    steps = undisturbed(setting.shared)
    for number, small in enumerate(_small(setting, steps)):
        name = f"disk/{small.place}-{small.component}/{number}"
        yield Trial(name, functools.partial(filled, steps[small.component], small, setting.folder / str(number)))


DISK = Fault("disk", "disk full: scratch, cache, store", _trials)
