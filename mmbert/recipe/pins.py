"""Which commit of each hub data set a recipe reads."""

from __future__ import annotations

from mmbert import hub
from mmbert.recipe.schema import HubSource, Recipe, TokenizedSource


def unpinned(recipe: Recipe) -> list[str]:
    """The sources that name a branch or a tag of a data set on the hub, which can move."""
    return [
        name
        for name, source in recipe.sources.items()
        if isinstance(source, HubSource | TokenizedSource)
        and not hub.is_commit(source.revision)
        and not hub.is_local(source.dataset)
    ]


def pin_revisions(recipe: Recipe) -> Recipe:
    """The recipe with the commits that its hub sources' branches and tags stand for now.

    Asks the hub once a data set and process; a recipe without such sources is returned as it is. Raises UserError or
    InfrastructureError.
    """
    sources = dict(recipe.sources)
    for name in unpinned(recipe):
        source = sources[name]
        if isinstance(source, HubSource | TokenizedSource):
            commit = hub.resolve_commit(name, source.dataset, source.revision)
            sources[name] = source.model_copy(update={"revision": commit})
    return recipe.model_copy(update={"sources": sources})
