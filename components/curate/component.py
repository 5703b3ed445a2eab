from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

from components.contract import RECIPE_HELP, Input, component
from components.runtime import Work
from mmbert.errors import UserError


@component(
    produces="documents",
    version=2,
    image="data",
    resources="data",
    reads=("sources", "curation", "reserved_languages"),
)
def curate(
    work: Work,
    recipe: Annotated[str, RECIPE_HELP, Input("recipe")],
    group: Annotated[str, "number of the group of languages, from 0 to curation.groups - 1"] = "0",
) -> None:
    """Read, clean and deduplicate the documents of one group of languages.

    The output holds `train/<source>/<language>.jsonl.zst` and `heldout/<source>/<language>.jsonl.zst`, `counts.json`
    (kept and dropped by reason) and `dropped.jsonl.zst`. Reserved languages are left out altogether.
    """
    from mmbert.data.curation import curate as curate_documents

    if not group.isdigit():
        raise UserError(f"--group '{group}' is not a number from 0")
    out = work.scratch / "documents"
    counts = curate_documents(
        work.recipe.sources, work.recipe.curation, work.recipe.reserved_languages, int(group), out
    )
    work.output.add_folder("", out)
    work.output.outputs["label"] = f"group {group}"
    work.run.log_metrics(_totals(counts), step=0)


def _totals(counts: dict[str, Any]) -> dict[str, float]:
    """Documents and bytes by split, and dropped documents by reason."""
    totals: Counter[str] = Counter()
    for languages in counts.values():
        for splits in languages.values():
            for split, kept in splits.items():
                totals[f"documents.{split}"] += kept["documents"]
                totals[f"bytes.{split}"] += kept["bytes"]
                totals.update({f"dropped.{reason}": n for reason, n in kept["dropped"].items()})
    return {name: float(value) for name, value in totals.items()}
