"""The suite `demo` as tasks that run alone. Its settings are those of the preset `tiny`, so its figures are comparable
with that recipe's runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbert.errors import UserError
from mmbert.evaluation.scores import Score
from mmbert.evaluation.suites.base import DataSet, ModelFolder, Setup, Suite, Task
from mmbert.evaluation.suites.names import BITS_PER_BYTE, DEMO, DEMO_METRICS, INTENTS, LANGUAGE_ID, RETRIEVAL
from mmbert.recipe import load_recipe

if TYPE_CHECKING:
    from mmbert.evaluation.heldout import HeldOut
    from mmbert.evaluation.suites.demo import DemoRun

HELD_OUT_TEXT = DataSet("held-out", card="docs/evaluation.md")
"""Held-out text of curated documents, `<source>/<language>/<part>.jsonl.zst`: a folder that is always given by name."""
_RECIPE = load_recipe("tiny")
_SETTINGS = ("bits_per_byte_bytes_per_language", "retrieval_languages", "language_id_sentences", "intent_languages",
             "intent_sentences")  # fmt: skip


def _run(task: Callable[[DemoRun, HeldOut, int], list[Score]], model: ModelFolder, setup: Setup) -> list[Score]:
    from mmbert.evaluation.suites.demo import DemoRun
    from mmbert.recipe.schema import Evaluation

    network, tokenizer = _loaded(model.path)
    settings = {name: setup.settings[name] for name in _SETTINGS}
    run = DemoRun(
        network,
        tokenizer,
        Evaluation(**settings, bootstrap_samples=setup.bootstrap_samples),
        setup.seeds[0],
        setup.settings["max_seq_len"],
    )
    folder = setup.data.folder(HELD_OUT_TEXT)
    if folder is None:
        raise UserError("suite demo: it needs held-out text; give --documents")
    return task(run, _read(folder), network.config.mask_token_id)


@functools.lru_cache(maxsize=1)
def _loaded(folder: Path) -> tuple[Any, Any]:
    """The encoder and the tokenizer, once for the tasks that follow each other."""
    from mmbert.data.tokenizer import read_tokenizer
    from mmbert.model.config import EncoderConfig
    from mmbert.release import sources
    from mmbert.release.loading import model_of

    found = sources.read(folder, str(folder), optimizer=False)
    return model_of(found.weights, EncoderConfig(**found.config)), read_tokenizer(folder)


@functools.lru_cache(maxsize=1)
def _read(folder: Path) -> HeldOut:
    from mmbert.evaluation.heldout import read_held_out

    return read_held_out([folder.parent])


def _bits_per_byte(run: DemoRun, documents: HeldOut, mask_token_id: int) -> list[Score]:
    from mmbert.evaluation.suites.demo import score_bits_per_byte

    return score_bits_per_byte(run, documents, mask_token_id)


def _retrieval(run: DemoRun, documents: HeldOut, _: int) -> list[Score]:
    from mmbert.evaluation.suites.demo import score_retrieval

    return score_retrieval(run, documents)


def _language_identification(run: DemoRun, documents: HeldOut, _: int) -> list[Score]:
    from mmbert.evaluation.suites.demo import score_language_identification

    return score_language_identification(run, documents)


def _intents(run: DemoRun, _documents: HeldOut, _: int) -> list[Score]:
    from mmbert.evaluation.suites.demo import score_intents

    return score_intents(run)


def _task(name: str, run: Callable[[DemoRun, HeldOut, int], list[Score]]) -> Task:
    return Task(
        name=name,
        version=1,
        data=(HELD_OUT_TEXT,),
        languages=(),
        metrics=DEMO_METRICS[name],
        settings={
            **{key: getattr(_RECIPE.evaluation, key) for key in _SETTINGS},
            "max_seq_len": _RECIPE.phases.decay.max_seq_len,
        },
        run=functools.partial(_run, run),
        verified="real data",
    )


SUITE = Suite(
    DEMO,
    "Demo",
    (
        _task(BITS_PER_BYTE, _bits_per_byte),
        _task(RETRIEVAL, _retrieval),
        _task(LANGUAGE_ID, _language_identification),
        _task(INTENTS, _intents),
    ),
)
