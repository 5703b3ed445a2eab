"""Results of the data components, byte for byte: they change only together with the component's version.

When this fails, raise the `version` of the component whose result changed, so that nobody finds old work done, and
write the new digest here. Training is left out: its bytes are promised for one machine type and thread count only.
"""

from __future__ import annotations

import pytest

from components.contract import get_component
from mmbert import artifacts
from tests.small_run import SmallRun, make_small_run

GOLDEN: dict[str, tuple[int, str]] = {
    "curate": (2, "b931098ebaafb224"),
    "tokenizer": (1, "55bf2112d822fcf2"),
    "tokenize": (2, "162b43a16bed1ab5"),
    "mixture": (2, "c55761e229afab49"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_small_run(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("component", GOLDEN)
def test_results_change_only_with_the_version(run: SmallRun, component: str) -> None:
    uri = {"curate": run.documents, "tokenizer": run.tokenizer, "tokenize": run.shards, "mixture": run.mixture}[
        component
    ]
    found = (get_component(component).version, artifacts.open_artifact(uri).digest[:16])
    assert found == GOLDEN[component]
