from __future__ import annotations

from pathlib import Path
from typing import Annotated

from components.contract import RECIPE_HELP, Input, component
from components.runtime import Work, commit
from mmbert.artifacts import Artifact
from mmbert.errors import UserError


@component(
    produces="scores", version=2, image="eval", resources="eval", reads=("seed", "model", "phases.decay.rope_theta",
    "phases.decay.max_seq_len", "phases.extend.languages", "language_sets", "evaluation")
)  # fmt: skip
def evaluate(
    work: Work,
    recipe: Annotated[str, RECIPE_HELP, Input("recipe")],
    documents: Annotated[list[str], "URIs of curated documents; their held-out part is used", Input("documents")],
    tokenizer: Annotated[str, "URI of the tokenizer; without, the released model's own", Input("tokenizer")] = "",
    model: Annotated[str, "URI of a checkpoint or a released model; without, an untrained model of the same shape",
                     Input("checkpoint", "model")] = "",
) -> None:  # fmt: skip
    """Score a model with the recipe's suite on held-out text.

    The output is `scores.json`: a row a score with suite, task, language, metric, value and bootstrap interval.
    """
    from mmbert.data.mixture import resolve_languages
    from mmbert.data.tokenizer import read_tokenizer
    from mmbert.evaluation.results.scorecard import Scorecard
    from mmbert.evaluation.results.store import keep
    from mmbert.evaluation.run_data import model_kind
    from mmbert.evaluation.suites.demo import SUITE, evaluate_demo
    from mmbert.release.loading import load_encoder

    held_out = work.fetch_folders(documents, "documents", "heldout/")
    artifact = work.open(model) if model else None
    (folder,) = work.fetch_folders([tokenizer or _with_tokenizer(artifact)], None, "tokenizer")
    encoder = load_encoder(work.recipe, artifact, work.cache / "files")
    languages = {Path(path).parts[2] for uri in documents for path in work.open(uri).paths("heldout/")}
    before = resolve_languages(work.recipe.phases.extend.languages, work.recipe.language_sets, languages)
    scores = evaluate_demo(
        encoder,
        read_tokenizer(folder),
        held_out,
        work.recipe.evaluation,
        seed=work.recipe.seed,
        mask_token_id=work.recipe.model.mask_token_id,
        max_seq_len=work.recipe.phases.decay.max_seq_len,
        new_languages=languages - set(before),
    )
    label = str(artifact.outputs["label"]) if artifact else "untrained"
    digest = artifact.digest if artifact else ""
    card = Scorecard(label, digest, model_kind(artifact), SUITE, tuple(scores))
    work.output.add_json("scores.json", card.to_json())
    work.output.outputs["label"] = label
    keep(work.root, work.run, card, commit())


def _with_tokenizer(artifact: Artifact | None) -> str:
    if artifact is None or artifact.manifest.kind != "model":
        raise UserError("component 'evaluate' needs --tokenizer here: only a released model carries its own")
    return artifact.uri
