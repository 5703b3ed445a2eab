"""A run small enough for tests: eld's sentences in four languages as a user's own files, and a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from components import planning
from components.contract import get_component
from components.runtime import run_component
from tests.fixtures_stack import clean_environment

LANGUAGES = {"en": "eng_Latn", "de": "deu_Latn", "ru": "rus_Cyrl", "am": "amh_Ethi"}

OVERRIDES = (
    "curation.groups=1",
    "language_sets={}",
    "reserved_languages=[]",
    "model.vocab_size=600",
    "model.hidden_size=32",
    "model.intermediate_size=48",
    "model.attention_output_dropout=0.1",
    "phases.pretrain.languages=[eng_Latn, deu_Latn]",
    "phases.pretrain.tokens=30k",
    "phases.pretrain.batch={global_batch_size: 8, microbatch_size: 4}",
    "phases.pretrain.schedule={warmup_tokens: 4k}",
    "phases.extend.languages=[eng_Latn, deu_Latn, rus_Cyrl]",
    "phases.extend.tokens=16k",
    "phases.extend.max_seq_len=256",
    "phases.decay.tokens=8k",
    "phases.decay.max_seq_len=256",
    "phases.decay.schedule={decay_tokens: 8k}",
    "phases.decay.variants={decay-all: {languages: all}}",
    "training.checkpoint_tokens=4k",
    "training.log_every=1",
    "shards.row_tokens=512",
)

WHOLE_WORKFLOW = (
    *OVERRIDES,
    "release.gate={}",
    "evaluation.bits_per_byte_bytes_per_language=300",
    "evaluation.bootstrap_samples=100",
    "evaluation.retrieval_languages=4",
    "evaluation.language_id_sentences=10",
    "evaluation.intent_languages=2",
    "evaluation.intent_sentences=20",
)
"""Small to its end too. A test gives it a `name` and a `release.model_name`."""


@dataclass(frozen=True)
class SmallRun:
    """Artifacts up to the first mixture. `train` holds the arguments of the first phase's training."""

    root: str
    recipe: str
    documents: str
    tokenizer: str
    shards: str
    mixture: str

    @property
    def train(self) -> dict[str, str]:
        return {
            "recipe": self.recipe,
            "phase": "pretrain",
            "mixture": self.mixture,
            "shards": self.shards,
            "tokenizer": self.tokenizer,
            "documents": self.documents,
        }

    def command(self, component: str, root: str, arguments: dict[str, str]) -> list[str]:
        line = [sys.executable, "-m", "components.cli", "run", component, "--root", root]
        for name, value in arguments.items():
            line += [f"--{name}", value]
        return line


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Of a component's process that shares nothing with the machine's user."""
    return clean_environment() | {"MMBERT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", **more}


def own_text(folder: Path, codes: Iterable[str] = LANGUAGES, most: int | None = None) -> str:
    """Write the sentences of these languages below `folder`, so many of each at most; the override that makes them a
    recipe's source."""
    text = resources.files("eld").joinpath("tests/data/big-test.txt").read_text("utf-8")
    lines = [line.partition("\t") for line in text.splitlines()]
    for code in codes:
        path = folder / "text" / LANGUAGES[code] / "sentences.txt"
        path.parent.mkdir(parents=True)
        sentences = [sentence for language, _, sentence in lines if language == code]
        path.write_text("".join(f"{sentence}\n" for sentence in sentences[:most]), "utf-8")
    return f"sources={{own: {{kind: files, path: {json.dumps(str(folder / 'text'))}, held_out_share: 0.1}}}}"


def make_small_run(folder: Path, *overrides: str) -> SmallRun:
    """Curate, tokenize and mix, in this process."""
    source = own_text(folder)
    root = str(folder / "root")
    os.environ["MMBERT_CACHE"] = str(folder / "cache")

    def run(component: str, **arguments: object) -> str:
        return run_component(get_component(component), arguments, root).uri

    recipe = run("recipe", preset="tiny", overrides=[*OVERRIDES, source, *overrides])
    documents = run("curate", recipe=recipe, group="0")
    tokenizer = run("tokenizer", recipe=recipe, documents=[documents])
    shards = run("tokenize", recipe=recipe, documents=documents, tokenizer=tokenizer)
    mixture = run("mixture", recipe=recipe, shards=[shards], phase="pretrain")
    return SmallRun(root, recipe, documents, tokenizer, shards, mixture)


def run_here(plan: planning.Plan, arguments: list[str], root: str, _: object) -> tuple[int, str]:
    """A launcher that starts no process: loading torch anew for each component would be most of a test's time."""
    run_component(plan.component, plan.arguments, root, arguments[arguments.index("--task") + 1])
    return 0, ""


def run_to_end(command: list[str], env: dict[str, str]) -> str:
    """The URI that a component's command prints. Fails with its output where it does not end well."""
    found = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    uri: str = json.loads(found.stdout.splitlines()[-1])["uri"]
    return uri
