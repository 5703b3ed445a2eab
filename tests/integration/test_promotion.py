"""From candidate to champion against a real MLflow server and real S3, read back with MLflow's own client."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from components.contract import get_component
from components.runtime import run_component
from mmbert import artifacts
from mmbert.artifacts import ArtifactWriter
from mmbert.errors import InfrastructureError, UserError
from mmbert.evaluation.results.promotion import promote
from mmbert.evaluation.results.scorecard import Scorecard
from mmbert.recipe.schema import Gate
from mmbert.tracking.api import Api
from mmbert.tracking.registry import Registry
from tests.fixtures_stack import S3, MlflowServer, free_port
from tests.integration.test_command import mmbert
from tests.scores import card, score

GATE = Gate(minimum={"xtreme/xnli": 0.5})


@pytest.fixture
def client(mlflow_server: MlflowServer) -> MlflowClient:
    return MlflowClient(mlflow_server.uri)


@pytest.fixture
def registry(mlflow_server: MlflowServer) -> Registry:
    return Registry(Api(mlflow_server.uri))


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return f"model-{abs(hash(request.node.nodeid))}"


def scores_artifact(root: Path | str, found: Scorecard) -> str:
    writer = ArtifactWriter(f"{root}/scores/{found.model}", "scores", found.model, {}, {})
    writer.add_json("scores.json", found.to_json())
    return writer.commit({"commit": "c0ffee"}).uri


def model_scores(model: str, value: float, german: float = 0.6) -> Scorecard:
    return card(score(value=value), score(value=german, language="deu_Latn"), model=model)


def registered(registry: Registry, name: str, found: Scorecard, root: Path) -> str:
    return registry.register(
        name=name,
        source_uri=f"s3://models/{found.model}",
        content_digest=found.model_digest,
        run_id=None,
        tags={"mmbert.scores.xtreme": scores_artifact(root, found)},
        description="",
        alias="candidate",
    )


def champion(client: MlflowClient, name: str) -> str:
    return str(client.get_model_version_by_alias(name, "champion").version)


def gate_tags(client: MlflowClient, name: str, version: str) -> dict[str, str]:
    tags = client.get_model_version(name, version).tags
    return {key.removeprefix("mmbert."): value for key, value in tags.items() if key.startswith("mmbert.gate")}


def test_a_champion_is_replaced_only_through_the_gate_and_a_refusal_lists_what_fell(
    registry: Registry, client: MlflowClient, name: str, tmp_path: Path
) -> None:
    first, worse, better = model_scores("a", 0.7), model_scores("b", 0.71, german=0.4), model_scores("c", 0.72)
    versions = [registered(registry, name, found, tmp_path) for found in (first, worse, better)]
    assert versions == ["1", "2", "3"]

    assert promote(registry, name, "1", GATE, first).promoted
    assert champion(client, name) == "1"

    refused = promote(registry, name, "2", GATE, worse)
    assert (refused.outcome, refused.promoted, champion(client, name)) == ("refused", False, "1")
    tags = gate_tags(client, name, "2")
    assert (tags["gate"], tags["gate_champion"]) == ("refused", "1")
    for words in ("xtreme/xnli/accuracy/deu_Latn", "from 0.6000 to 0.4000", "95% interval of the change -0.2283"):
        assert words in tags["gate_reason"]
        assert words in refused.text(name)

    assert promote(registry, name, "3", GATE, better).promoted
    assert champion(client, name) == "3"
    assert gate_tags(client, name, "3")["gate"] == "passed"
    assert client.get_model_version_by_alias(name, "candidate").version == "3"


@pytest.mark.parametrize(("value", "override", "said"), [
    (0.7, "", "xlm passed the gate (the first release, so bounds alone count)"),
    (0.4, "", "xlm was refused by the gate"),
    (0.4, "for a test", "xlm is let through against the gate"),
])  # fmt: skip
def test_what_stands_as_no_version_is_only_judged(registry: Registry, value: float, override: str, said: str) -> None:
    told = promote(registry, "xlm", None, GATE, model_scores("x", value), override=override).text("xlm")
    assert told.startswith(said)
    assert told.endswith("only judged: it stands as no version here, so the champion stays as it is")


def test_the_first_release_must_reach_the_minima(
    registry: Registry, client: MlflowClient, name: str, tmp_path: Path
) -> None:
    low = model_scores("low", 0.4)
    registered(registry, name, low, tmp_path)
    assert promote(registry, name, "1", GATE, low).outcome == "refused"
    assert "champion" not in client.get_registered_model(name).aliases
    assert gate_tags(client, name, "1")["gate_reason"] == "xtreme/xnli: 0.4 is below the minimum 0.5"


def test_an_override_is_recorded_with_reason_person_and_time_and_outlives_a_new_judgement(
    registry: Registry, client: MlflowClient, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMBERT_USER", "ada@lab")
    low = model_scores("low", 0.4)
    registered(registry, name, low, tmp_path)
    made = promote(registry, name, "1", GATE, low, override="the test set has a fault, ticket 12")
    assert (made.outcome, champion(client, name)) == ("overridden", "1")
    tags = gate_tags(client, name, "1")
    assert (tags["gate"], tags["gate_by"]) == ("overridden", "ada@lab")
    assert tags["gate_reason"] == "the test set has a fault, ticket 12"
    assert tags["gate_when"] == made.when
    # The run's own step judges again after a person decided.
    monkeypatch.setenv("MMBERT_USER", "airflow")
    again = promote(registry, name, "1", GATE, low)
    assert again.outcome == "overridden"
    assert gate_tags(client, name, "1") == tags
    assert "version 1 stays champion against the gate (the champion itself, so bounds alone count) by ada@lab" in (
        again.text(name)
    )
    with pytest.raises(UserError, match="needs a reason"):
        promote(registry, name, "1", GATE, low, override="  ")


def test_an_override_of_what_passes_is_none(
    registry: Registry, client: MlflowClient, name: str, tmp_path: Path
) -> None:
    good = model_scores("good", 0.7)
    registered(registry, name, good, tmp_path)
    made = promote(registry, name, "1", GATE, good, override="in a hurry")
    assert (made.outcome, made.reason, champion(client, name)) == ("passed", "", "1")
    assert gate_tags(client, name, "1")["gate_reason"] == "-"
    assert "the champion itself" in promote(registry, name, "1", GATE, good).text(name)


def test_a_champion_without_readable_scores_refuses_and_says_so(
    registry: Registry, client: MlflowClient, name: str, tmp_path: Path
) -> None:
    first, second = model_scores("a", 0.7), model_scores("b", 0.7)
    registered(registry, name, first, tmp_path)
    registered(registry, name, second, tmp_path)
    promote(registry, name, "1", GATE, first)
    (tmp_path / "scores" / "a" / "manifest.json").unlink()
    refused = promote(registry, name, "2", GATE, second)
    assert (refused.outcome, champion(client, name)) == ("refused", "1")
    assert "the champion's scores cannot be read" in refused.reason
    # Scores that are at hand, as a re-evaluation has them, count instead.
    assert promote(registry, name, "2", GATE, second, champions=[first]).promoted


class Interrupted(Registry):
    """A registry in which something happens after the tags are set, or the server is gone before the alias moves."""

    def __init__(self, uri: str, after_tags: Callable[[], None] = lambda: None, loses_server: bool = False) -> None:
        super().__init__(Api(uri))
        self._after_tags, self._loses_server = after_tags, loses_server

    def set_tags(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        super().set_tags(name, version, tags)
        self._after_tags()

    def set_alias(self, name: str, alias: str, version: str) -> None:
        if self._loses_server:
            self._api = Api(f"http://127.0.0.1:{free_port()}")
        super().set_alias(name, alias, version)


def test_mlflow_gone_before_the_alias_moves_promotes_nothing_and_running_again_finishes(
    mlflow_server: MlflowServer, registry: Registry, client: MlflowClient, name: str, tmp_path: Path
) -> None:
    first, second = model_scores("a", 0.7), model_scores("b", 0.75)
    registered(registry, name, first, tmp_path)
    registered(registry, name, second, tmp_path)
    promote(registry, name, "1", GATE, first)
    cut_off = Interrupted(mlflow_server.uri, loses_server=True)
    with pytest.raises(InfrastructureError, match="no answer from MLflow"):
        promote(cut_off, name, "2", GATE, second)
    assert champion(client, name) == "1"
    assert promote(registry, name, "2", GATE, second).promoted
    assert champion(client, name) == "2"


def test_a_promotion_that_another_overtakes_is_judged_anew_against_its_champion(
    mlflow_server: MlflowServer, registry: Registry, client: MlflowClient, name: str, tmp_path: Path
) -> None:
    first, good, best = model_scores("a", 0.7), model_scores("b", 0.75), model_scores("c", 0.9)
    for found in (first, good, best):
        registered(registry, name, found, tmp_path)
    promote(registry, name, "1", GATE, first)
    waiting = [lambda: promote(registry, name, "3", GATE, best)]

    def overtake() -> None:
        if waiting:
            assert waiting.pop()().promoted

    made = promote(Interrupted(mlflow_server.uri, overtake), name, "2", GATE, good)
    assert (made.outcome, made.against) == ("refused", "3")
    assert champion(client, name) == "3"
    assert (gate_tags(client, name, "2")["gate"], gate_tags(client, name, "3")["gate"]) == ("refused", "passed")


def test_several_promotions_at_once_leave_one_champion_that_passed(
    registry: Registry, client: MlflowClient, name: str, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    cards = {str(i): model_scores(f"m{i}", 0.7 + i / 1000) for i in range(1, 5)}
    for found in cards.values():
        registered(registry, name, found, tmp_path)
    with ThreadPoolExecutor(4) as pool:
        made = list(
            pool.map(lambda v: promote(Registry(Api(mlflow_server.uri)), name, v, GATE, cards[v]), [*cards, *cards])
        )
    assert all(m.outcome == "passed" for m in made)
    winner = champion(client, name)
    assert gate_tags(client, name, winner)["gate"] == "passed"


@pytest.fixture
def released(
    mlflow_server: MlflowServer, s3_server: S3, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> dict[str, Any]:
    """A recipe, and a model, its report and scores below a root in S3; the environment points at both servers."""
    for key, value in {**s3_server.environment, "MLFLOW_TRACKING_URI": mlflow_server.uri}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("MMBERT_WORKFLOW_RUN", raising=False)
    monkeypatch.setenv("MMBERT_CACHE", str(tmp_path / "cache"))
    root = f"{s3_server.make_bucket('promotion')}/{name}"
    recipe = tmp_path / "recipe.yaml"
    gate = "release.gate={minimum: {demo/article_retrieval: 0.5}}"
    shown = mmbert("recipe", "show", "tiny", "--set", gate, "--set", f"release.model_name={name}")
    recipe.write_text(shown.stdout, "utf-8")
    model = ArtifactWriter(f"{root}/model/m", "model", "m", {}, {})
    model.add_bytes("model.safetensors", b"weights")
    report = ArtifactWriter(f"{root}/report/r", "report", "r", {}, {})
    made = model.commit({"mlflow_run_id": "", "workflow_run": "test"})
    found = card(score("article_retrieval", 0.4, suite="demo"), model="m", model_digest=made.digest)
    return {
        "root": root,
        "recipe": str(recipe),
        "model": made.uri,
        "report": report.commit({}).uri,
        "scores": scores_artifact(root, found),
    }


def component(name: str, root: str, **arguments: Any) -> artifacts.Artifact:
    return artifacts.open_artifact(run_component(get_component(name), arguments, root).uri)


def test_the_workflow_s_steps_refuse_and_the_command_overrides(
    released: dict[str, Any], client: MlflowClient, name: str
) -> None:
    root, recipe, scores = released["root"], released["recipe"], released["scores"]
    release = component("register", root, **{k: v for k, v in released.items() if k != "root"})
    for _ in range(2):
        refused = component("promote", root, recipe=recipe, release=release.uri, scores=[scores])
        assert refused.outputs["outcome"] == "refused"
    assert gate_tags(client, name, "1")["gate"] == "refused"
    assert "champion" not in client.get_registered_model(name).aliases

    servers = {key: os.environ[key] for key in os.environ if key.startswith(("AWS_", "S3_", "MLFLOW_", "MMBERT_"))}
    judged = mmbert("promote", name, "--version", "1", "--root", root, **servers)
    assert judged.returncode == 2
    assert "demo/article_retrieval: 0.4 is below the minimum 0.5" in judged.stdout
    assert "--override" in judged.stderr
    decided = mmbert("promote", name, "--version", "1", "--root", root, "--override", "a first look", **servers)
    assert decided.returncode == 0, decided.stderr
    assert champion(client, name) == "1"
    tags = gate_tags(client, name, "1")
    assert (tags["gate"], tags["gate_reason"]) == ("overridden", "a first look")
    uri = decided.stdout.splitlines()[-1]
    kept = artifacts.open_artifact(uri, "promotion").read_json("promotion.json")
    assert (kept["outcome"], kept["reason"], kept["by"]) == ("overridden", "a first look", tags["gate_by"])
    assert [f["name"] for f in kept["findings"]] == ["demo/article_retrieval"]
    empty = mmbert("promote", name, "--version", "1", "--root", root, "--override", "", **servers)
    assert (empty.returncode, "--override: an override needs a reason" in empty.stderr) == (2, True)
    shown = mmbert("promote", name, "--version", "7", "--root", root, **servers)
    assert shown.returncode == 2
    assert f"no version 7 of the registered model '{name}'" in shown.stderr
    compared = mmbert("compare", f"{name}@champion", scores, **servers)
    assert compared.returncode == 0, compared.stderr
    assert "article_retrieval" in compared.stdout
    assert compared.stdout.startswith(f"{name}/1 -> m: ")


def test_an_evaluation_is_in_mlflow_as_metrics_json_and_parquet(
    mlflow_server: MlflowServer, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    from mmbert.evaluation.results import store
    from mmbert.tracking import connect

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    run = connect(f"mmbert/{name}").component_run(
        task="evaluate", component="evaluate", fingerprint="f" * 32, tags={}, folder=tmp_path / "spool"
    )
    found = model_scores("a", 0.7)
    store.keep(str(tmp_path), run, found, "c0ffee")
    assert run.run_id is not None
    assert run.finish("FINISHED") is None
    metrics = client.get_run(run.run_id).data.metrics
    assert metrics == {"xtreme.xnli.accuracy": 0.7, "xtreme.xnli.accuracy/deu_Latn": 0.6}
    folder = Path(client.download_artifacts(run.run_id, "", str(tmp_path)))
    kept = store.from_parquet((folder / "scores.parquet").read_bytes(), "x")
    assert (kept.scores, kept.commit) == (found.scores, "c0ffee")
    assert json.loads((folder / "scores.json").read_text())["model_digest"] == found.model_digest
    assert store.history(str(tmp_path)) == [kept]


def test_without_mlflow_the_bounds_are_judged_and_nothing_is_promoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MMBERT_CACHE", str(tmp_path / "cache"))
    root = str(tmp_path / "root")
    model = ArtifactWriter(f"{root}/model/m", "model", "m", {}, {})
    model.add_bytes("model.safetensors", b"weights")
    committed = model.commit({"mlflow_run_id": "", "workflow_run": ""})
    places = {"model": committed.uri}
    places["report"] = ArtifactWriter(f"{root}/report/r", "report", "r", {}, {}).commit({}).uri
    bits = score("masked_bits_per_byte", 4.0, suite="demo", metric="bits_per_byte")
    outcomes = []
    for accuracy in (0.4, 0.1):
        found = card(score("article_retrieval", accuracy, suite="demo"), bits, model_digest=committed.digest)
        scores = scores_artifact(root, found)
        release = component("register", root, recipe="tiny", scores=[scores], **places)
        made = component("promote", root, recipe="tiny", release=release.uri, scores=[scores])
        outcomes.append([made.read_json("promotion.json")[key] for key in ("outcome", "promoted", "champion")])
    assert outcomes == [["passed", False, None], ["refused", False, None]]
