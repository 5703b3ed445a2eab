"""`mmbert publish`: a registered model and its checkpoints as repositories of the Hugging Face hub."""

from __future__ import annotations

import click

from mmbert.errors import UserError


@click.command(name="publish")
@click.argument("model", metavar="NAME[@ALIAS|/VERSION]")
@click.option("--repo", default="", help="OWNER/NAME of the model; default: NAME in the account of HF_TOKEN")
@click.option("--checkpoints-repo", default="", help="OWNER/NAME of the raw checkpoints; default: REPO-checkpoints")
@click.option("--dry-run/--no-dry-run", default=True, show_default=True, help="list what would be published")
def publish_command(model: str, repo: str, checkpoints_repo: str, dry_run: bool) -> None:
    """Publish a registered model, the champion where nothing else is said, and the checkpoints that led to it.

    Everything is found from MLflow's registry. Refused unless the model passed the parity gate and the version the
    release gate. Nothing is sent without --no-dry-run, which needs HF_TOKEN; cut off, run it again.
    """
    from mmbert.release.publishing import find_version, plan, publish
    from mmbert.tracking import connect_registry

    registry = connect_registry()
    if registry is None:
        raise UserError("MLFLOW_TRACKING_URI is not set; models are published from MLflow's registry")
    publication = plan(find_version(registry, model), repo, checkpoints_repo)
    if dry_run:
        click.echo(publication.text())
        click.echo("dry run: nothing was sent; --no-dry-run publishes this")
        return
    for url in publish(publication, registry):
        click.echo(url)
