from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from components.code import commit
from components.contract import RECIPE_HELP, Input, component
from components.runtime import Work
from mmbert.artifacts import Artifact, find
from mmbert.errors import UserError
from mmbert.evaluation.suites.names import DEMO
from mmbert.evaluation.suites.registry import get_suite
from mmbert.evaluation.suites.settings import changed_tasks
from mmbert.recipe.schema import SuiteRun

if TYPE_CHECKING:
    from mmbert.evaluation.results.scorecard import Scorecard


def _counted(recipe: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Tasks and data of a suite other than demo decide its scores, and the shape that a checkpoint is converted to."""
    evaluation, suite = dict(recipe["evaluation"]), arguments["suite"]
    if not recipe["new_languages"]:
        recipe = {key: value for key, value in recipe.items() if key != "new_languages"}
    suites = evaluation.pop("suites")
    if suite == DEMO:
        return {**recipe, "evaluation": evaluation}
    if suite not in suites:
        raise UserError(
            f"--suite {suite}: the recipe's evaluation.suites do not have it; there are {', '.join([DEMO, *suites])}"
        )
    run = SuiteRun.model_validate(suites[suite])
    shape = {key: recipe[key] for key in ("model", "phases.decay.rope_theta", "phases.decay.max_seq_len")}
    return {
        **shape,
        "tasks": {
            t.name: [t.version, dict(t.settings)] for t in changed_tasks(get_suite(suite), run.tasks, run.changes())
        },
        "seeds": run.seeds,
        "bootstrap_samples": evaluation["bootstrap_samples"],
        "data": run.pinned,
    }


def _used(arguments: dict[str, Any]) -> dict[str, Any]:
    """Suites other than demo read no documents, and a released model by its own tokenizer."""
    if arguments["suite"] == DEMO:
        return arguments
    model = find(arguments["model"]) if arguments["model"] else None
    released = model is not None and model.manifest.kind == "model"
    return {**arguments, "documents": [], "tokenizer": "" if released else arguments["tokenizer"]}


@component(
    produces="scores", version=3, image="eval", resources="eval",
    reads=("seed", "model", "new_languages", "phases.decay.rope_theta", "phases.decay.max_seq_len",
           "phases.extend.languages", "language_sets", "evaluation", "release.parity_tolerance"),
    operational=("evaluation.data_root", "release.parity_tolerance"), fingerprinted=_counted, used=_used,
)  # fmt: skip
def evaluate(
    work: Work,
    recipe: Annotated[str, RECIPE_HELP, Input("recipe")],
    documents: Annotated[list[str], "URIs of curated documents, whose held-out part the suite demo uses; other suites "
                         "need none", Input("documents")] = (),  # type: ignore[assignment]
    tokenizer: Annotated[str, "URI of the tokenizer; without, the released model's own", Input("tokenizer")] = "",
    model: Annotated[str, "URI of a checkpoint or a released model; without, an untrained model of the same shape",
                     Input("checkpoint", "model")] = "",
    suite: Annotated[str, "demo, or a suite of the recipe's evaluation.suites"] = DEMO,
) -> None:  # fmt: skip
    """Score a model with one of the recipe's suites: `demo` on held-out text, others on their own data sets.

    The output is `scores.json`: a row a score with suite, task, language, metric, value and bootstrap interval. Tasks
    of other suites than `demo` that are done are kept in the store, so that a killed evaluation goes on.
    """
    from mmbert.evaluation.results.store import keep

    artifact = work.open(model) if model else None
    card = _demo(work, documents, tokenizer, artifact) if suite == DEMO else _suite(work, suite, tokenizer, artifact)
    work.output.add_json("scores.json", card.to_json())
    work.output.outputs["label"] = card.model if suite == DEMO else f"{card.model}, {suite}"
    keep(work.root, work.run, card, commit())


def _demo(work: Work, documents: list[str], tokenizer: str, artifact: Artifact | None) -> Scorecard:
    from mmbert.data.mixture import resolve_languages
    from mmbert.data.tokenizer import read_tokenizer
    from mmbert.evaluation.results.scorecard import Scorecard
    from mmbert.evaluation.run_data import model_kind
    from mmbert.evaluation.suites.demo import evaluate_demo
    from mmbert.release.loading import load_encoder

    if not documents:
        raise UserError("component 'evaluate' needs --documents for the suite demo: it scores their held-out text")
    held_out = work.fetch_folders(documents, "documents", "heldout/")
    (folder,) = work.fetch_folders([tokenizer or _with_tokenizer(artifact)], None, "tokenizer")
    encoder = load_encoder(work.recipe, artifact, work.cache / "files")
    languages = {Path(path).parts[2] for uri in documents for path in work.open(uri).paths("heldout/")}
    new = set(work.recipe.new_languages)
    if not new:
        new = languages - set(
            resolve_languages(work.recipe.phases.extend.languages, work.recipe.language_sets, languages)
        )
    scores = evaluate_demo(
        encoder,
        read_tokenizer(folder),
        held_out,
        work.recipe.evaluation,
        seed=work.recipe.seed,
        mask_token_id=work.recipe.model.mask_token_id,
        max_seq_len=work.recipe.phases.decay.max_seq_len,
        new_languages=new,
    )
    label = str(artifact.outputs["label"]) if artifact else "untrained"
    digest = artifact.digest if artifact else ""
    return Scorecard(label, digest, model_kind(artifact), DEMO, tuple(scores))


def _suite(work: Work, suite: str, tokenizer: str, artifact: Artifact | None) -> Scorecard:
    from mmbert.evaluation.results.scorecard import Scorecard
    from mmbert.evaluation.suites.models import open_model
    from mmbert.evaluation.suites.recipe_run import recipe_scores

    if artifact is None:
        raise UserError(f"component 'evaluate' needs --model for the suite {suite}: an untrained model has no files")
    opened = open_model(artifact.uri, work.scratch, work.cache, tokenizer=tokenizer, recipe=work.recipe)
    scores = recipe_scores(opened.model, suite, work.recipe.evaluation, work.cache, work.kept("evaluation"))
    return Scorecard(opened.model.label, opened.model.digest, opened.kind, suite, tuple(scores))


def _with_tokenizer(artifact: Artifact | None) -> str:
    if artifact is None or artifact.manifest.kind != "model":
        raise UserError("component 'evaluate' needs --tokenizer here: only a released model carries its own")
    return artifact.uri
