"""The workflows: each graph stands once, as a function over a runner; Airflow, KFP and a plain loop are runners."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Runner(Protocol):
    """What a workflow is written against. Handles stand for artifact URIs and are only ever passed on."""

    def run(self, component: str, *, task: str = "", **arguments: Any) -> Any:
        """Run one component; arguments are plain values, handles, or (nested) lists of handles."""

    def map(self, component: str, *, over: dict[str, Any], task: str = "", **arguments: Any) -> Any:
        """Run a component once for each item of the handle in `over`; a handle for the list.

        With two parameters in `over` once for each pair of their items.
        """

    def output(self, handle: Any, name: str) -> Any:
        """A list that a component left as an output, to map over."""


def pretrain(runner: Runner, preset: Any, overrides: Any) -> list[Any]:
    """From raw text to a released model: curate, tokenize, three phases, merge, convert, evaluate, report, release."""
    recipe = runner.run("recipe", preset=preset, overrides=overrides)
    groups, variants = runner.output(recipe, "groups"), runner.output(recipe, "variants")
    suites = runner.output(recipe, "suites")

    documents = runner.map("curate", over={"group": groups}, recipe=recipe)
    tokenizer = runner.run("tokenizer", recipe=recipe, documents=documents)
    shards = runner.map("tokenize", over={"documents": documents}, recipe=recipe, tokenizer=tokenizer)

    data = {"recipe": recipe, "shards": shards, "tokenizer": tokenizer, "documents": documents}
    pretrain_mixture = runner.run("mixture", task="mixture_pretrain", recipe=recipe, shards=shards, phase="pretrain")
    extend_mixture = runner.run("mixture", task="mixture_extend", recipe=recipe, shards=shards, phase="extend")
    decay_mixtures = runner.map(
        "mixture", task="mixture_decay", over={"variant": variants}, recipe=recipe, shards=shards, phase="decay"
    )
    mixtures = [pretrain_mixture, extend_mixture, decay_mixtures]
    # No training waits for it.
    data_report = runner.run("data_report", recipe=recipe, documents=documents, shards=shards, mixtures=mixtures)

    pretrained = runner.run("train", task="train_pretrain", phase="pretrain", mixture=pretrain_mixture, **data)
    extended = runner.run(
        "train", task="train_extend", phase="extend", mixture=extend_mixture, checkpoint=pretrained, **data
    )
    decayed = runner.map(
        "train", task="train_decay", over={"mixture": decay_mixtures}, phase="decay", checkpoint=extended, **data
    )
    merged = runner.run("merge", recipe=recipe, checkpoints=decayed, base=extended)
    model = runner.run("convert", recipe=recipe, checkpoint=merged, tokenizer=tokenizer, documents=documents)

    held_out = {"recipe": recipe, "tokenizer": tokenizer, "documents": documents}
    untrained_scores = runner.run("evaluate", task="evaluate_untrained", **held_out)
    variant_scores = runner.map("evaluate", task="evaluate_variants", over={"model": decayed}, **held_out)
    # By its own tokenizer, as the workflow reevaluate does it, which then finds this done.
    model_scores = runner.map(
        "evaluate", task="evaluate_model", over={"suite": suites}, recipe=recipe, model=model, documents=documents
    )
    scores = [model_scores, variant_scores, untrained_scores]
    report = runner.run(
        "report",
        recipe=recipe,
        mixtures=mixtures,
        checkpoints=[pretrained, extended, decayed, merged],
        model=model,
        scores=scores,
    )
    registered = runner.run("register", recipe=recipe, model=model, scores=model_scores, report=report)
    promoted = runner.run("promote", recipe=recipe, release=registered, scores=model_scores)
    return [promoted, data_report]


def reevaluate(runner: Runner, preset: Any, overrides: Any, model: Any = "") -> list[Any]:
    """Evaluate champion and candidate on what changed, judge the candidate, show scores over time.

    What did not change (model, data, code, settings) is found done. All models are scored on the same held-out text.
    """
    recipe = runner.run("recipe", preset=preset, overrides=overrides)
    selection = runner.run("select", recipe=recipe, model=model)
    models, documents = runner.output(selection, "models"), runner.output(selection, "documents")
    suites = runner.output(recipe, "suites")
    scores = runner.map("evaluate", over={"model": models, "suite": suites}, recipe=recipe, documents=documents)
    promotion = runner.run("promote", recipe=recipe, release=selection, scores=scores, champion_scores=scores)
    trend = runner.run("trend", recipe=recipe, selection=selection, scores=scores, promotion=promotion)
    return [trend]


def add_languages(runner: Runner, preset: Any, overrides: Any, model: Any, text: Any = "") -> list[Any]:
    """Teach a trained model new languages: its decay phase again, on their text beside the old; before against after.

    `model` is a folder, a name of the hub, a raw checkpoint or an artifact; `text` has a folder a language.
    """
    planned = runner.run("languages_recipe", preset=preset, overrides=overrides, text=text)
    groups, variants = runner.output(planned, "groups"), runner.output(planned, "variants")
    suites = runner.output(planned, "suites")

    base = runner.run("import_checkpoint", recipe=planned, source=model, phase="extend", then="next")
    documents = runner.map("curate", over={"group": groups}, recipe=planned)
    tokenizer = runner.run("tokenizer", recipe=planned, documents=documents, checkpoint=base)
    shards = runner.map("tokenize", over={"documents": documents}, recipe=planned, tokenizer=tokenizer)
    # The same recipe, so that nothing is trained on text that nobody has looked at.
    recipe = runner.run("languages_check", recipe=planned, documents=documents, shards=shards)
    mixtures = runner.map("mixture", over={"variant": variants}, recipe=recipe, shards=shards, phase="decay")
    data_report = runner.run("data_report", recipe=recipe, documents=documents, shards=shards, mixtures=mixtures)

    data = {"recipe": recipe, "shards": shards, "tokenizer": tokenizer, "documents": documents}
    trained = runner.map("train", over={"mixture": mixtures}, phase="decay", checkpoint=base, **data)
    merged = runner.run("merge", recipe=recipe, checkpoints=trained, base=base)
    released = runner.run("convert", recipe=recipe, checkpoint=merged, tokenizer=tokenizer, documents=documents)

    held_out = {"recipe": recipe, "tokenizer": tokenizer, "documents": documents}
    before = runner.run("evaluate", task="evaluate_before", model=base, **held_out)
    variant_scores = runner.map("evaluate", task="evaluate_variants", over={"model": trained}, **held_out)
    scores = runner.map(
        "evaluate", task="evaluate_model", over={"suite": suites}, recipe=recipe, model=released, documents=documents
    )
    report = runner.run(
        "languages_report", recipe=recipe, before=before, scores=scores, variant_scores=variant_scores
    )  # fmt: skip
    registered = runner.run("register", recipe=recipe, model=released, scores=scores, report=report)
    promoted = runner.run("promote", recipe=recipe, release=registered, scores=scores)
    return [promoted, data_report]


WORKFLOWS: dict[str, Callable[..., list[Any]]] = {
    "pretrain": pretrain,
    "reevaluate": reevaluate,
    "add_languages": add_languages,
}
"""By name. Each returns the handles of its last tasks."""
