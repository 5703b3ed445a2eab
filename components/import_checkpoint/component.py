from __future__ import annotations

from typing import Annotated, Literal

from components.contract import RECIPE_HELP, Input, SourceFiles, component
from components.runtime import Work


@component(
    produces="checkpoint",
    version=4,
    image="train",
    resources="eval",
    reads=("model", "optimizer", "tokenizer.kind",
           *(f"phases.{{phase}}.{key}" for key in ("tokens", "max_seq_len", "rope_theta", "learning_rate"))),
)  # fmt: skip
def import_checkpoint(
    work: Work,
    recipe: Annotated[str, RECIPE_HELP, Input("recipe")],
    source: Annotated[str, "path or s3:// URI of a Composer checkpoint (.pt), of a folder with config.json and "
                      "model.safetensors, or of a checkpoint artifact", SourceFiles()],
    phase: Annotated[Literal["pretrain", "extend", "decay"], "the phase that it was saved in"],
    then: Annotated[Literal["continue", "next"], "continue: training goes on within this phase, at the checkpoint's "
                    "token count; next: the phase counts as done"],
) -> None:  # fmt: skip
    """Take over a checkpoint of the original training code, of another run, or of a released model.

    The output holds `weights.safetensors`, `optimizer.safetensors` (where the source has an optimiser's state),
    `training_state.json`, and `tokenizer.json` where the source carries one: give it to `train` as its checkpoint. The
    recipe's model must be the checkpoint's; learning rate, schedule and data are the recipe's.
    """
    from mmbert.release.importing import import_model

    import_model(work.recipe, phase, then, source, work.scratch, work.output)
