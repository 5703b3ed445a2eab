from __future__ import annotations

from typing import Annotated

from components.contract import RECIPE_HELP, Input, component
from components.runtime import Work


@component(produces="checkpoint", version=2, image="train", resources="eval", reads=("merge", "model"))
def merge(
    work: Work,
    recipe: Annotated[str, RECIPE_HELP, Input("recipe")],
    checkpoints: Annotated[list[str], "URIs of the decay variants' checkpoints", Input("checkpoint")],
    base: Annotated[str, "URI of the checkpoint that the variants started from", Input("checkpoint")],
) -> None:
    """Merge the decay variants into one set of weights, by the recipe's method (TIES, linear or a running average).

    The output holds `weights.safetensors`, and `merge.json` with sign conflict, agreement, kept shares and norms of the
    changes by kind of weight, layer and tensor.
    """
    from mmbert.release.merging import merge_checkpoints

    chosen = [work.open(uri, "checkpoint") for uri in checkpoints]
    report = merge_checkpoints(
        work.recipe.merge, chosen, work.open(base, "checkpoint"), work.cache / "files", work.scratch, work.output
    )
    work.output.outputs["label"] = "merged"
    work.log_json(report, "merge.json")
