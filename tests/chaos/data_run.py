"""A small run of all data components that nothing disturbs, and what disturbed ones are held against it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from components import planning
from components.contract import get_component
from components.runtime import run_component
from mmbert import storage
from mmbert.artifacts import Artifact, open_artifact
from mmbert.errors import UserError
from tests import small_run
from tests.fixtures_stack import clean_environment

OVERRIDES = (
    *small_run.OVERRIDES,
    "curation.language_identification=null",
    "evaluation.intent_languages=1",
    "evaluation.intent_sentences=11",
    "shards.row_tokens=128",
    "shards.shard_size_mb=0.01",
)
"""Two languages in several shards each."""
_SENTENCES = 60


@dataclass(frozen=True)
class Step:
    """A piece of work, and its artifact in the undisturbed run."""

    component: str
    arguments: Mapping[str, Any]
    artifact: Artifact

    def place(self, root: str) -> str:
        """Where its artifact stands below `root`."""
        return storage.join(root, self.artifact.manifest.kind, self.artifact.manifest.fingerprint)

    def moved(self, old: str, new: str) -> Step:
        """The same work on inputs that stand below another root."""
        uris = json.loads(json.dumps(self.arguments).replace(f"{old}/", f"{new}/"))
        return dataclasses.replace(self, arguments=uris)

    def command(self, root: str, task: str = "") -> list[str]:
        line = [sys.executable, "-m", "components.cli", "run", self.component, "--root", root]
        line += ["--task", task or self.component]
        for name, value in self.arguments.items():
            for one in value if isinstance(value, list) else [value]:
                line += [f"--{name.replace('_', '-')}", one]
        return line

    def run(self, root: str) -> None:
        """Do it in this process, as a fresh one would."""
        planning.read_recipe.cache_clear()
        with contextlib.redirect_stdout(io.StringIO()):
            run_component(get_component(self.component), self.arguments, root)

    def check_same(self, root: str) -> None:
        """Raises where its artifact below `root` is not whole, or its digested files are not the undisturbed run's."""
        found = open_artifact(self.place(root))
        assert found.digest == self.artifact.digest, f"{found.uri}: another content digest"
        for file in found.manifest.files:
            data = found.read(file.path)
            assert not file.digested or data == self.artifact.read(file.path), f"{found.uri}: {file.path} differs"

    def check_readable(self, root: str) -> bool:
        """Whether the artifact is there. Raises where a reader would see anything but all of it, or a clear error."""
        try:
            open_artifact(self.place(root))
        except UserError as error:
            if "no complete artifact here" not in str(error):
                raise
            return False
        self.check_same(root)
        return True


@contextlib.contextmanager
def fresh_machine(folder: Path, **more: str) -> Iterator[None]:
    """This process's environment is that of a machine of its own: nothing cached, no server named but by `more`."""
    own = clean_environment() | {"MMBERT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"} | more
    with mock.patch.dict(os.environ, own, clear=True):
        storage.s3_client.cache_clear()
        yield


@functools.cache
def undisturbed(folder: Path) -> dict[str, Step]:
    """All data components' steps by name, in their order; made once, in `folder`."""
    own = folder / "undisturbed"
    own.mkdir()
    source = small_run.own_text(own, ("en", "de"), _SENTENCES)
    for path in (own / "text").glob("*/*"):  # duplicates, so that curation has something to drop
        path.write_text(path.read_text("utf-8") + "".join(path.read_text("utf-8").splitlines(keepends=True)[:5]))
    root = str(own / "root")
    steps: dict[str, Step] = {}

    def run(component: str, **arguments: Any) -> str:
        with contextlib.redirect_stdout(io.StringIO()):
            uri = run_component(get_component(component), arguments, root).uri
        steps[component] = Step(component, arguments, open_artifact(uri))
        return uri

    with fresh_machine(own):
        recipe = run("recipe", preset="tiny", overrides=[*OVERRIDES, source])
        documents = run("curate", recipe=recipe, group="0")
        tokenizer = run("tokenizer", recipe=recipe, documents=[documents])
        shards = run("tokenize", recipe=recipe, documents=documents, tokenizer=tokenizer)
        mixture = run("mixture", recipe=recipe, shards=[shards], phase="pretrain")
        run("data_report", recipe=recipe, documents=[documents], shards=[shards], mixtures=[mixture])
    return steps
