from __future__ import annotations

import os
from typing import Annotated

from components.contract import RECIPE_HELP, Input, component
from components.runtime import Work


@component(produces="data_report", version=2, image="eval", resources="small", reads=("name", "description"))
def data_report(
    work: Work,
    recipe: Annotated[str, RECIPE_HELP, Input("recipe")],
    documents: Annotated[list[str], "URIs of all curated documents", Input("documents")],
    shards: Annotated[list[str], "URIs of all tokenized shards", Input("shards")],
    mixtures: Annotated[list[str], "URIs of the mixtures of all phases and variants", Input("mixture")],
) -> None:
    """Write the data report: one self-contained HTML page about the text, by language and source, warnings first.

    The output holds `data_report.html` and `data_summary.json` (totals and warnings). No training waits for it.
    """
    from mmbert.data.report.page import build_data_report, summary
    from mmbert.data.report.statistics import collect

    data = collect(
        [work.open(uri) for uri in documents], [work.open(uri) for uri in shards], [work.open(uri) for uri in mixtures]
    )
    facts = {"Run": os.environ.get("MMBERT_WORKFLOW_RUN") or "by hand", "Sources": ", ".join(data.sources)}
    told = {"title": work.recipe.name, "lead": work.recipe.description}
    page = build_data_report(data, **told, facts=facts, links=work.links()).encode()
    found = summary(data)
    work.output.add_bytes("data_report.html", page, digested=False)
    work.output.add_json("data_summary.json", found, digested=False)
    work.log_json(found, "data_report/data_summary.json")
    work.run.log_metrics({"warnings": float(len(found["warnings"]))}, step=0)
    local = work.scratch / "data_report.html"
    local.write_bytes(page)
    work.run.log_artifact(local, "data_report")
    if work.tracker.workflow_run:
        # The workflow's own run is where a person looks first.
        parent = work.tracker.open_workflow()
        parent.log_artifact(local, "data_report")
        parent.close()
