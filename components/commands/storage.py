"""`mmbert storage`: what takes space in the store, and deleting what nothing needs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from components.commands.as_json import echo_json, json_option
from mmbert.errors import UserError

if TYPE_CHECKING:
    from mmbert.collection.needs import Need
    from mmbert.lineage import Store

_DAYS = 7.0
_NOT_KNOWN = ": what registered models and running work need is not known"
_NOT_ALL_KNOWN = ": not all that registered models and running work need may be known"
_RUN = re.compile(r"[0-9a-f]{32}")

_root = click.option("--root", default=None, help="where artifacts are kept; default MMBERT_ROOT or ./artifacts")
_json = json_option("as JSON, sizes in bytes and times in seconds since 1970")
_keep = click.option(
    "--keep", multiple=True, metavar="URI", help="an artifact that is needed, with all it was made from"
)
_without = click.option(
    "--without-registry", is_flag=True, help="go on without MLflow: no registered model and no running work is known"
)
_lost = click.option(
    "--lost", multiple=True, metavar="URI|RUN",
    help="an artifact that is gone for good: what only it was made from may go; or a run that is gone from MLflow",
)  # fmt: skip
_older = click.option(
    "--older-than", "days", type=click.FloatRange(min=0), default=_DAYS, show_default=True, metavar="DAYS",
    help="the grace time: what is younger stays, and what is marked goes only after as long again",
)  # fmt: skip


@click.group(name="storage", invoke_without_command=True)
@_root
@_json
@_keep
@_older
@click.pass_context
def storage_group(context: click.Context, root: str | None, as_json: bool, keep: tuple[str, ...], days: float) -> None:
    """Show what takes space in the store: by state and kind, the largest, and this machine's cache.

    States: registered (a version of a registered model needs it), running (running work does), asked (--keep),
    resumable (work that is not done goes on from it), recent, unreachable, marked, due, superseded, left over, cache,
    unsent, record, unknown. docs/storage.md explains them. Without MLFLOW_TRACKING_URI nothing is known of registered
    models and running work.
    """
    if context.invoked_subcommand is not None:
        if root or as_json or keep or days != _DAYS:
            raise UserError(f"give the options behind `mmbert storage {context.invoked_subcommand}`")
        return
    from mmbert import storage
    from mmbert.collection.survey import survey
    from mmbert.collection.text import survey_json, survey_text
    from mmbert.places import cache_folder

    where = _place(root)
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        _warn(f"MLFLOW_TRACKING_URI is not set{_NOT_KNOWN}")
    found = survey(where, _seen(keep), days * 86400)
    uploads, old = storage.unfinished_uploads(where), storage.old_versions(where)
    if as_json:
        echo_json(survey_json(found, uploads, old, cache_folder()))
        return
    click.echo(survey_text(found, uploads, old, cache_folder()))


@storage_group.command(name="collect")
@_root
@_json
@_keep
@_without
@_lost
@_older
@click.option("--caches", is_flag=True, help="also old work below ROOT/work, which can be made again")
@click.option("--delete", is_flag=True, help="do it; without, only say what would go")
def collect_command(
    root: str | None,
    as_json: bool,
    keep: tuple[str, ...],
    without_registry: bool,
    lost: tuple[str, ...],
    days: float,
    caches: bool,
    delete: bool,
) -> None:
    """Delete what nothing needs: nothing that a registered model or running work needs, or that work can go on from.

    What nothing needs is marked by one collection and deleted by a later one, when it has been marked for the grace
    time and still nothing needs it; run it again and again, like once a week. Nothing is deleted where the store or
    MLflow cannot be read whole.
    """
    from mmbert.collection.collect import SHORTEST_GRACE_SECONDS, collect, planned
    from mmbert.collection.survey import survey
    from mmbert.collection.text import collected_json, collected_text

    grace = days * 86400
    if grace < SHORTEST_GRACE_SECONDS:
        raise UserError(f"--older-than {days:g}: give an hour (0.05) at least: a run needs it to be seen as running")
    if not os.environ.get("MLFLOW_TRACKING_URI") and not without_registry:
        raise UserError(
            "MLFLOW_TRACKING_URI is not set, so it is not known what registered models and running work need. Set it, "
            "or give --without-registry, and with --keep URI what is needed"
        )
    where = _place(root)
    runs = [one for one in lost if _RUN.fullmatch(one)]
    outside = _outside(keep, without_registry, runs)
    gone = _absolute(one for one in lost if one not in runs)
    if delete:
        done = collect(where, outside, grace, caches, gone)
    else:
        done = planned(survey(where, outside, grace, gone), caches)
    for uri, why in done.idle_lost.items():
        _warn(f"--lost {uri}: {why}")
    if as_json:
        echo_json(collected_json(where, done, delete))
    else:
        click.echo(collected_text(where, done, grace, delete))


def _place(root: str | None) -> str:
    from components.runtime import root_uri
    from mmbert import storage
    from mmbert.collection.survey import check_is_store

    where = (root or root_uri()).rstrip("/")
    if not storage.is_s3(where):
        if not Path(where).is_dir():
            raise UserError(f"{where}: no such folder; --root or MMBERT_ROOT says where artifacts are kept")
        where = str(Path(where).absolute())
    check_is_store(where)
    return where


def _outside(
    keep: Iterable[str], without_registry: bool = False, lost: Sequence[str] = ()
) -> Callable[[Store], list[Need]]:
    """What a collection has to know: all, or it ends. `lost` are runs."""
    from mmbert.collection.needs import asked_for, last_runs, mlflow_needs
    from mmbert.tracking.activity import experiment_of
    from mmbert.tracking.api import connected

    def needs(store: Store) -> list[Need]:
        found = asked_for(_absolute(keep))
        api = None if without_registry else connected()
        last = last_runs(store)
        for run in lost if store.artifacts else ():
            if run not in last:
                _warn(f"--lost {run}: none of the last runs that made artifacts here")
            elif api is not None and experiment_of(api, run):
                _warn(f"--lost {run}: MLflow knows this run")
        return found if api is None else [*found, *mlflow_needs(api, store, lost)]

    return needs


def _seen(keep: Iterable[str]) -> Callable[[Store], list[Need]]:
    """What a look can know: what MLflow does not tell is warned of."""
    from mmbert.collection.needs import asked_for, mlflow_needs
    from mmbert.errors import InfrastructureError
    from mmbert.tracking.api import connected

    def needs(store: Store) -> list[Need]:
        found = asked_for(_absolute(keep))
        try:
            if (api := connected()) is not None:
                found += mlflow_needs(api, store, doubt=lambda error: _warn(f"{error.problem}{_NOT_ALL_KNOWN}"))
        except InfrastructureError as error:
            _warn(f"{error}{_NOT_KNOWN}")
        return found

    return needs


def _warn(text: str) -> None:
    click.echo(f"warning: {text}", err=True)


def _absolute(uris: Iterable[str]) -> list[str]:
    return [uri if "://" in uri else str(Path(uri).absolute()) for uri in uris]
