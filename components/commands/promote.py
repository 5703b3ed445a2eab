"""`mmbert promote`: a registered model through the gate, or past it for a stated reason."""

from __future__ import annotations

import click

from mmbert.errors import UserError


@click.command(name="promote")
@click.argument("name")
@click.option("--version", default="", help="the version to promote; default: the one that `candidate` points at")
@click.option("--override", metavar="REASON", help="promote it whatever the gate says; the reason is kept")
@click.option("--recipe", default="", help="a recipe whose gate counts; default: the one it was registered with")
@click.option("--root", default=None, help="where artifacts are kept; default MMBERT_ROOT or ./artifacts")
def promote_command(name: str, version: str, override: str | None, recipe: str, root: str | None) -> None:
    """Make a version of the registered model NAME the champion, if it passes the release gate.

    The gate is declared in the recipe (release.gate, see docs/gate.md). A refusal lists what fell and ends with 2. The
    outcome, with the reason and the person of an override, is kept in the version's tags and in an artifact, whose
    address is the last line.
    """
    from components.contract import get_component
    from components.runtime import root_uri, run_component
    from mmbert.evaluation.results.promotion import NO_REASON, SCORES
    from mmbert.tracking import connect_registry
    from mmbert.tracking.registry import CANDIDATE

    if override is not None and not override.strip():
        raise UserError(f"--override: {NO_REASON}; leave it out to have the gate judge")
    registry = connect_registry()
    if registry is None:
        raise UserError("MLFLOW_TRACKING_URI is not set; a model is promoted in MLflow's registry")
    found = registry.version(name, version) if version else registry.by_alias(name, CANDIDATE)
    if found is None:
        raise UserError(f"no registered model '{name}' with the alias '{CANDIDATE}'; give --version")
    arguments = {
        "recipe": recipe or found.tags.get("mmbert.recipe", ""),
        "release": found.tags.get("mmbert.release", ""),
        "scores": sorted({value for key, value in found.tags.items() if key.startswith(SCORES)}),
        "override": override or "",
    }
    if missing := [key for key in ("recipe", "release", "scores") if not arguments[key]]:
        raise UserError(
            f"{name} version {found.version} was not registered by this version of mmbert: its tags do not lead to its "
            f"{' and '.join(missing)}; register it again (mmbert run register)"
        )
    result = run_component(get_component("promote"), arguments, root or root_uri())
    if result.outputs["outcome"] == "refused":
        raise UserError(f"{name} version {found.version} stays as it is; --override REASON promotes it all the same")
    if override and result.outputs["outcome"] == "passed":
        click.echo("note: the gate passes it, so the reason of the override is not kept")
    click.echo(result.uri)
