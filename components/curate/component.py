from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

from components import profiles
from components.contract import RECIPE_HELP, Input, component
from components.runtime import Work
from components.tokenize.component import TOKENIZED_FILE
from mmbert.errors import UserError


@component(
    produces="documents",
    version=2,
    image="data",
    resources="data",
    reads=("sources", "curation", "reserved_languages", "seed", "evaluation.intent_languages",
           "evaluation.intent_sentences"),
)  # fmt: skip
def curate(
    work: Work,
    recipe: Annotated[str, RECIPE_HELP, Input("recipe")],
    group: Annotated[str, "number of the group of languages, from 0 to curation.groups - 1"] = "0",
) -> None:
    """Read, clean and deduplicate the documents of one group of languages.

    The output holds `train/<source>/<language>/<part>.jsonl.zst` and `heldout/<source>/<language>/<part>.jsonl.zst`,
    `counts.json` (kept and dropped by reason), `report.json` (samples, identified languages), `dropped/<source>/` (each
    dropped document with its reason) and `tokenized.json` (what sources have as tokens already). Reserved languages are
    left out altogether. Work is kept by unit (a file of a source, a language) below `<root>/work/curation`: a changed
    setting or a killed run re-does what is missing there.
    """
    from mmbert.data.curation import Executor, WorkStore
    from mmbert.data.curation import curate as curate_documents
    from mmbert.data.readers import Selection
    from mmbert.data.sources.tokenized import TokenizedUnits
    from mmbert.evaluation.suites.texts import evaluation_texts

    if not group.isdigit():
        raise UserError(f"--group '{group}' is not a number from 0")
    settings, decontamination = work.recipe, work.recipe.curation.decontamination
    suites = decontamination.suites if decontamination else ()
    store = WorkStore(work.kept("curation"))
    curated = curate_documents(
        settings.sources, settings.curation, settings.reserved_languages, int(group), store,
        Executor.from_environment(profiles.own_threads()),
        evaluation_texts(suites, settings.evaluation, settings.seed),
    )  # fmt: skip
    for warning in curated.warnings:
        print(f"warning: {warning}")
    for files, digested in ((curated.files, True), (curated.dropped, False)):
        work.output.add_copies((f.path, f.stored.uri, f.stored.sha256, f.stored.size, digested) for f in files)
    selection = Selection(settings.curation.groups, int(group), frozenset(settings.reserved_languages))
    tokenized = TokenizedUnits.of(settings.sources, selection)
    if tokenized.units:
        work.output.add_json(TOKENIZED_FILE, tokenized.to_json())
    work.output.add_json("counts.json", curated.counts)
    work.output.add_json("report.json", curated.report, digested=False)
    work.output.outputs["label"] = f"group {group}"
    work.run.log_metrics(_totals(curated.counts, curated.work), step=0)


def _totals(counts: dict[str, Any], done: dict[str, tuple[int, int]]) -> dict[str, float]:
    """Documents and bytes by split, dropped documents by reason, and units of work done and found done by stage."""
    totals: Counter[str] = Counter()
    for languages in counts.values():
        for splits in languages.values():
            for split, kept in splits.items():
                totals[f"documents.{split}"] += kept["documents"]
                totals[f"bytes.{split}"] += kept["bytes"]
                totals.update({f"dropped.{reason}": n for reason, n in kept["dropped"].items()})
    for stage, (now, before) in done.items():
        totals[f"units.{stage}.done"] += now
        totals[f"units.{stage}.reused"] += before
    return {name: float(value) for name, value in totals.items()}
