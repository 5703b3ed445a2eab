"""`mmbert trace`: from a score or a model down to its sources, and up again."""

from __future__ import annotations

import click

from components.commands.as_json import echo_json, json_option
from mmbert.errors import UserError


@click.command(name="trace")
@click.argument("what", metavar="WHAT", default="")
@click.option("--up", is_flag=True, help="what was made from it, over the whole store, instead of what it was made of")
@click.option(
    "--source", default="", metavar="NAME", help="what was made from this source; NAME/FILE or a document's id"
)
@click.option("--language", default="", help="with --source: this language of it alone, like deu_Latn")
@click.option("--root", default=None, help="where artifacts are kept; default MMBERT_ROOT or ./artifacts")
@json_option("print it as JSON (docs/lineage.md)")
@click.option("--page", default="", metavar="FILE.html", help="write it as one page with a drawing and links, too")
def trace_command(what: str, up: bool, source: str, language: str, root: str | None, as_json: bool, page: str) -> None:
    """Trace WHAT to everything that it was made of: checkpoints, mixtures, shards, sources, code, image.

    WHAT is NAME@ALIAS or NAME/VERSION of a registered model (#SUITE for its scores), the URI, content digest or
    fingerprint of an artifact, the id of a run in MLflow, a workflow run's name, a file of the results store, or a
    released folder. docs/lineage.md shows each.
    """
    from components.runtime import root_uri
    from mmbert import storage
    from mmbert.lineage.naming import Servers, place_of, resolve
    from mmbert.lineage.removal import part_of
    from mmbert.lineage.store import read_ancestry, read_store
    from mmbert.lineage.text import trace_text
    from mmbert.lineage.trace import trace_down, trace_source, trace_up
    from mmbert.tracking import connect_registry
    from mmbert.tracking.lookup import connect_lookup

    if bool(what) == bool(source):
        raise UserError("give either WHAT or --source NAME, what to trace")
    if language and not source:
        raise UserError("--language goes with --source")
    if page and not page.endswith(".html"):
        raise UserError(f"--page {page}: the page is an HTML file; give a name that ends in .html")
    place = place_of(what) if what else ""
    if place and not up:
        store = read_ancestry(root or root_uri(), place)
    else:
        store = read_store(root or root_uri(), [place] if place else [])
    if source:
        found = trace_source(part_of(source, language), store, connect_registry)
    else:
        named = resolve(what, store, Servers(connect_registry, connect_lookup))
        found = (
            trace_up(what, named.how, named.uris, store, connect_registry)
            if up
            else trace_down(what, named, store, connect_registry)
        )
    if page:
        from mmbert.lineage.page import trace_page

        storage.write_bytes(page, trace_page(found).encode())
    if as_json:
        echo_json(found.to_json())
    else:
        click.echo(trace_text(found))
    if page:
        click.echo(f"wrote {page}", err=True)
