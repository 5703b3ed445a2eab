"""Which state of each data set a recipe reads."""

from __future__ import annotations

from collections.abc import Collection

from mmbert import hub
from mmbert.evaluation.suites import mirror
from mmbert.evaluation.suites.base import data_sets
from mmbert.evaluation.suites.registry import chosen_tasks, get_suite
from mmbert.recipe.schema import HubSource, Recipe, SuiteRun, TokenizedSource


def unpinned(recipe: Recipe) -> list[str]:
    """The sources and suites whose data can change: those on a branch or tag of the hub, and suites' mirrors."""
    return [*_unpinned_sources(recipe), *_moving_suites(recipe)]


def pin_revisions(recipe: Recipe) -> Recipe:
    """The recipe with the present states of all its data sets: see `pin_sources` and `pin_suites`.

    Sources that an earlier run has pinned stay so; suites' data are looked at anew, since scores are to be of now.
    """
    return pin_suites(pin_sources(recipe))


def pin_sources(recipe: Recipe) -> Recipe:
    """The recipe with the commits that its hub sources' branches and tags stand for now.

    Asks the hub once a data set and process; a recipe without such sources is returned as it is. Raises UserError or
    InfrastructureError.
    """
    sources = dict(recipe.sources)
    for name in _unpinned_sources(recipe):
        source = sources[name]
        if isinstance(source, HubSource | TokenizedSource):
            commit = hub.resolve_commit(f"source {name}", source.dataset, source.revision)
            sources[name] = source.model_copy(update={"revision": commit})
    return recipe.model_copy(update={"sources": sources})


def pin_suites(recipe: Recipe, only: Collection[str] | None = None) -> Recipe:
    """The recipe with the present state of each data set that its suites (or these) read: a commit, or a digest of a
    mirror's files. Raises as `pin_sources` does."""
    suites, root = dict(recipe.evaluation.suites), recipe.evaluation.data_root
    for name, run in recipe.evaluation.suites.items():
        if only is None or name in only:
            states = mirror.present_states(chosen_tasks(get_suite(name), run.tasks), root, run.revisions)
            suites[name] = run.model_copy(update={"pinned": states})
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"suites": suites})})


def _unpinned_sources(recipe: Recipe) -> list[str]:
    return [
        name
        for name, source in recipe.sources.items()
        if isinstance(source, HubSource | TokenizedSource)
        and not hub.is_commit(source.revision)
        and not hub.is_local(source.dataset)
    ]


def _moving_suites(recipe: Recipe) -> list[str]:
    """Suites whose data can change, whatever an earlier run has pinned."""
    mirrored = bool(recipe.evaluation.data_root)
    return [name for name, run in recipe.evaluation.suites.items() if _moves(name, run, mirrored)]


def _moves(name: str, run: SuiteRun, mirrored: bool) -> bool:
    read = data_sets(chosen_tasks(get_suite(name), run.tasks))
    return any(mirrored or not hub.is_commit(run.revisions.get(repo, data.revision)) for repo, data in read.items())
