from __future__ import annotations

from typing import Annotated, Literal

from components.contract import RECIPE_HELP, Input, component
from components.runtime import Work
from mmbert.errors import UserError


@component(
    produces="mixture",
    version=2,
    image="data",
    resources="small",
    reads=("language_sets", "phases.{phase}.tokens", "phases.{phase}.temperature", "phases.{phase}.max_epochs",
           "phases.{phase}.languages", "phases.{phase}.source_shares", "phases.{phase}.language_shares",
           "phases.{phase}.variants.{variant}"),
)  # fmt: skip
def mixture(
    work: Work,
    recipe: Annotated[str, RECIPE_HELP, Input("recipe")],
    shards: Annotated[list[str], "URIs of all tokenized shards", Input("shards")],
    phase: Annotated[Literal["pretrain", "extend", "decay"], "the phase that draws from it"],
    variant: Annotated[str, "the decay variant; for the decay phase only"] = "",
) -> None:
    """Decide what share of a phase's tokens comes from each language and source.

    Languages are drawn in proportion to size^temperature within the shares that the recipe fixes. The output is
    `mixture.json`: a row a (source, language) with share, tokens and epochs. Shards are never rewritten for it. What
    looks wrong stands in `warnings.json`, whose wording is no part of the content digest.
    """
    from mmbert.data.mixture import MIXTURE_FILE, WARNINGS_FILE, plan_mixture, resolve_languages

    if (phase == "decay") != bool(variant):
        raise UserError("--variant goes with --phase decay, and only with it")
    settings = work.recipe.mixture(phase, variant)
    sizes: dict[tuple[str, str], int] = {}
    for uri in shards:
        for source, languages in work.open(uri).read_json("counts.json").items():
            for language, counts in languages.items():
                sizes[source, language] = sizes.get((source, language), 0) + counts["tokens"]
    available = sorted({language for _, language in sizes})
    languages = resolve_languages(settings.languages, work.recipe.language_sets, available)
    plan = plan_mixture(sizes, settings, languages, getattr(work.recipe.phases, phase).tokens)
    rows = plan.to_json()
    work.output.add_json(MIXTURE_FILE, {"phase": phase, "variant": variant, "rows": rows})
    work.output.add_json(WARNINGS_FILE, list(plan.warnings), digested=False)
    work.output.outputs["label"] = variant or phase
    work.log_json({"rows": rows, "warnings": list(plan.warnings)}, MIXTURE_FILE)
    for warning in plan.warnings:
        print(f"warning: {warning}")
