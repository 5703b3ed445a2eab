"""Tracking against a real MLflow server, which is killed and started again on the way."""

from __future__ import annotations

import contextlib
import http.server
import json
import math
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from mmbert.errors import InfrastructureError, UserError
from mmbert.tracking import ComponentRun, Tracker, connect, connect_registry
from mmbert.tracking.api import Api, Refused, patiently
from mmbert.tracking.delivery import get_run, groups
from mmbert.tracking.election import parse_run
from mmbert.tracking.finished import finished_runs
from mmbert.tracking.lookup import connect_lookup
from mmbert.tracking.spool import Spool, parse
from tests.fixtures_stack import MlflowServer, free_port

POINTS = 5000


@pytest.fixture
def client(mlflow_server: MlflowServer) -> MlflowClient:
    """MLflow's own client, without S3 credentials: what a user sees."""
    return MlflowClient(mlflow_server.uri)


@pytest.fixture
def at_server(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Point the environment at the server, with a workflow run of the test's own, and return its id."""
    workflow_run = f"manual__{request.node.name}"
    for name in [n for n in os.environ if n.startswith(("AWS_", "S3_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    monkeypatch.setenv("MMBERT_WORKFLOW_RUN", workflow_run)
    return workflow_run


def start(tracker: Tracker, folder: Path, task: str = "train", **tags: str) -> ComponentRun:
    return tracker.component_run(task=task, component="train", fingerprint="f" * 32, tags=tags, folder=folder)


def points(client: MlflowClient, run_id: str, key: str) -> list[tuple[int, float]]:
    """Every stored point of a metric, with repeats, in the order of steps."""
    return sorted((m.step, m.value) for m in client.get_metric_history(run_id, key))


def runs_of(client: MlflowClient, experiment: str, workflow_run: str) -> list[Any]:
    experiment_id = client.get_experiment_by_name(experiment).experiment_id
    return list(client.search_runs([experiment_id], f"tags.`mmbert.workflow_run` = '{workflow_run}'"))


@dataclass
class Outage:
    """Three runs that met MLflow's death: one lived through it, one ended in it, one was killed in it."""

    lived: str
    lived_unsent: Path | None
    ended: str
    ended_unsent: Path | None
    killed: str
    killed_folder: Path


KILLED_PROCESS = """
import os, sys
from pathlib import Path
from mmbert.tracking import connect
run = connect("mmbert/outage").component_run(
    task="killed", component="train", fingerprint="f" * 32, tags={}, folder=Path(sys.argv[1]))
print(run.run_id, flush=True)
sys.stdin.readline()
for step in range(1, 101):
    run.log_metrics({"loss": step / 8}, step=step)
os.kill(os.getpid(), 9)
"""


@pytest.fixture(scope="module")
def outage(mlflow_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outage]:
    folder = tmp_path_factory.mktemp("outage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
        patch.setenv("MMBERT_WORKFLOW_RUN", "outage")
        tracker = connect("mmbert/outage")
        lived = start(tracker, folder, "lived")
        ended = start(tracker, folder, "ended")
        command = [sys.executable, "-c", KILLED_PROCESS, str(folder)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            killed = process.stdout.readline().strip()
            lived.log_metrics({"loss": 0.0}, step=0)

            mlflow_server.kill()
            for step in range(1, POINTS + 1):
                lived.log_metrics({"loss": step / 8}, step=step)
            lived.log_text("written in the dark", "notes/dark.txt")
            ended.log_metrics({f"bits/{i}": float(i) for i in range(1833)}, step=7)
            ended.log_text("ended in the dark", "dark.txt")
            ended_unsent = ended.finish("FINISHED", wait_seconds=0.2)
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.wait() == -9

        mlflow_server.start()
        lived_unsent = lived.finish("FINISHED", wait_seconds=60)
        assert lived.run_id
        assert ended.run_id
        yield Outage(lived.run_id, lived_unsent, ended.run_id, ended_unsent, killed, folder)


def test_a_run_that_lives_through_an_outage_has_every_point_once(outage: Outage, client: MlflowClient) -> None:
    assert outage.lived_unsent is None
    assert points(client, outage.lived, "loss") == [(step, step / 8) for step in range(POINTS + 1)]
    assert client.get_run(outage.lived).info.status == "FINISHED"
    assert [f.path for f in client.list_artifacts(outage.lived, "notes")] == ["notes/dark.txt"]


def test_a_run_that_ends_in_an_outage_is_complete_after_its_spool_is_replayed_even_twice(
    outage: Outage, client: MlflowClient, at_server: str
) -> None:
    assert outage.ended_unsent is not None
    assert client.get_run(outage.ended).info.status == "RUNNING"
    for _ in range(2):
        assert connect("mmbert/test").replay_spool(outage.ended_unsent.read_bytes()) == 4
    run = client.get_run(outage.ended)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {f"bits/{i}": float(i) for i in range(1833)}
    assert points(client, outage.ended, "bits/1832") == [(7, 1832.0)]
    assert [f.path for f in client.list_artifacts(outage.ended)] == ["dark.txt"]


def test_what_a_killed_process_recorded_in_an_outage_is_sent_by_the_next_attempt(
    outage: Outage, client: MlflowClient, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    monkeypatch.setenv("MMBERT_WORKFLOW_RUN", "outage")
    retry = start(connect("mmbert/outage"), outage.killed_folder, "killed")
    assert retry.run_id == outage.killed
    for step in range(51, 201):  # from its checkpoint on
        retry.log_metrics({"loss": step / 8}, step=step)
    assert retry.finish("FINISHED") is None
    assert points(client, outage.killed, "loss") == [(step, step / 8) for step in range(1, 201)]
    assert not list(outage.killed_folder.glob(f"*{outage.killed}*"))


def test_an_old_spool_does_not_take_back_the_end_of_a_later_attempt(
    at_server: str, client: MlflowClient, tmp_path: Path
) -> None:
    tracker = connect("mmbert/test")
    run = start(tracker, tmp_path)
    assert run.finish("FINISHED") is None
    old = {"run": run.run_id, "finish": "FAILED", "time": 1}
    tracker.replay_spool(json.dumps(old).encode() + b"\n" + b'{"torn off by a ki')
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_a_workflow_run_is_a_parent_with_one_child_a_component_and_a_retry_resumes_it(
    at_server: str, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start(connect("mmbert/tiny"), tmp_path, **{"mmbert.commit": "abc", "mmbert.image": "train@sha256:1"})
    first.log_metrics({"loss": 2.0}, step=1)
    assert first.finish("FAILED") is None
    assert client.get_run(first.run_id).info.status == "FAILED"

    retry = start(connect("mmbert/tiny"), tmp_path, **{"mmbert.commit": "def", "mmbert.image": "train@sha256:2"})
    assert retry.run_id == first.run_id
    assert client.get_run(retry.run_id).info.status == "RUNNING"
    retry.log_metrics({"loss": 2.0}, step=1)
    retry.log_metrics({"loss": 1.5}, step=2)
    assert retry.finish("FINISHED") is None

    monkeypatch.delenv("MMBERT_WORKFLOW_RUN")
    connect("mmbert/tiny", at_server).finish_workflow("FINISHED")
    runs = {r.data.tags["mmbert.role"]: r for r in runs_of(client, "mmbert/tiny", at_server)}
    child, parent = runs["component"], runs["workflow"]
    assert len(runs) == 2
    assert (child.info.status, parent.info.status) == ("FINISHED", "FINISHED")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.info.run_name == "train"
    wanted = {
        "component": "train",
        "fingerprint": "f" * 32,
        "task": "train",
        "commit": "def",
        "image": "train@sha256:2",
    }
    assert {key: child.data.tags[f"mmbert.{key}"] for key in wanted} == wanted
    assert points(client, child.info.run_id, "loss") == [(1, 2.0), (2, 1.5)]


def test_racers_end_with_one_parent_and_one_child(at_server: str, client: MlflowClient, tmp_path: Path) -> None:
    barrier = threading.Barrier(4)

    def race(_: int) -> str | None:
        tracker = connect("mmbert/race")
        barrier.wait()
        run = start(tracker, tmp_path)
        run.close()
        return run.run_id

    with ThreadPoolExecutor(4) as pool:
        winners = set(pool.map(race, range(4)))
    found = runs_of(client, "mmbert/race", at_server)
    assert sorted(r.data.tags["mmbert.role"] for r in found) == ["component", "workflow"]
    assert {r.info.run_id for r in found if r.data.tags["mmbert.role"] == "component"} == winners


def test_a_component_run_by_hand_stands_alone(
    at_server: str, monkeypatch: pytest.MonkeyPatch, client: MlflowClient, tmp_path: Path
) -> None:
    monkeypatch.delenv("MMBERT_WORKFLOW_RUN")
    run = start(connect("mmbert/test"), tmp_path, task="by hand")
    run.close()
    assert "mlflow.parentRunId" not in client.get_run(run.run_id).data.tags
    with pytest.raises(UserError, match="MMBERT_WORKFLOW_RUN"):
        connect("mmbert/test").finish_workflow("FINISHED")


def test_params_artifacts_and_inputs_are_there_for_a_client_without_s3_credentials(
    at_server: str, client: MlflowClient, tmp_path: Path
) -> None:
    (tmp_path / "plot.html").write_bytes(b"<p>\x00plot" * 300_000)
    digest = "0123456789abcdef" * 4
    with start(connect("mmbert/test"), tmp_path / "spool") as run:
        run.log_params({"lr": 8e-4, "languages": "x" * 7000, **{f"p{i}": i for i in range(150)}})
        run.log_artifact(tmp_path / "plot.html", "plots")
        run.log_text("phase: extend\n", "recipe.yaml")
        run.log_input("shards eld", digest, "s3://bucket/shards/1", "training")
        run.log_input("shards eld", digest, "s3://bucket/shards/1", "training")

    seen = client.get_run(run.run_id)
    assert seen.info.status == "FINISHED"
    assert len(seen.data.params) == 152
    assert seen.data.params["lr"] == "0.0008"
    assert len(seen.data.params["languages"]) == 6000
    assert seen.data.params["languages"].endswith("[cut: 7000 characters in all]")
    there = tmp_path / "there"
    there.mkdir()
    assert (
        Path(client.download_artifacts(run.run_id, "plots/plot.html", str(there))).read_bytes()
        == (tmp_path / "plot.html").read_bytes()
    )
    assert Path(client.download_artifacts(run.run_id, "recipe.yaml", str(there))).read_text() == "phase: extend\n"
    (data,) = seen.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("shards eld", digest[:36])
    assert json.loads(data.dataset.source) == {"uri": "s3://bucket/shards/1"}
    assert json.loads(data.dataset.profile) == {"content_digest": digest}
    assert [(t.key, t.value) for t in data.tags] == [("mlflow.data.context", "training")]


def test_names_with_a_quote_are_found_again(
    client: MlflowClient, at_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{at_server}, Bob's"
    monkeypatch.setenv("MMBERT_WORKFLOW_RUN", name)
    runs = [start(connect("mmbert/quotes"), tmp_path, **{"mmbert.uri": "s3://b/documents/1"}) for _ in range(2)]
    assert len({run.run_id for run in runs}) == 1
    for run in runs:
        run.finish("FINISHED")
    lookup = connect_lookup()
    assert lookup is not None
    assert lookup.uris_of_workflow(name) == ["s3://b/documents/1"]
    client.create_registered_model(f"Bob's {at_server}")
    client.create_model_version(f"Bob's {at_server}", "s3://b/model/1")
    registry = connect_registry()
    assert registry is not None
    assert len(registry.versions(f"Bob's {at_server}")) == 1
    with pytest.raises(UserError, match="has both"):
        registry.versions('Bob\'s "model"')


def test_one_refused_item_is_dropped_alone(at_server: str, client: MlflowClient, tmp_path: Path) -> None:
    run = start(connect("mmbert/test"), tmp_path)
    run.log_params({"seed": 1})
    run.close()
    run = start(connect("mmbert/test"), tmp_path)
    run.log_params({"seed": 2, "after": 3})
    run.log_metrics({"k" * 300: 1.0, "loss": math.nan, "top": math.inf, "share of [x]": 0.5}, step=1)
    assert run.finish("FINISHED") is None
    data = client.get_run(run.run_id).data
    assert data.params == {"seed": "1", "after": "3"}
    assert sorted(data.metrics) == ["loss", "share of _x_", "top"]
    assert math.isnan(data.metrics["loss"])


def test_an_exception_ends_the_run_as_failed_and_an_interrupt_as_killed(
    at_server: str, client: MlflowClient, tmp_path: Path
) -> None:
    for error, status in ((ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")):
        run = start(connect("mmbert/test"), tmp_path, task=status)
        with pytest.raises(error), run:
            raise error
        assert client.get_run(run.run_id).info.status == status


def test_a_step_found_done_links_the_run_that_made_it(
    at_server: str, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = start(connect("mmbert/reuse"), tmp_path)
    maker.finish("FINISHED")
    assert maker.run_id
    again = connect("mmbert/reuse").link_reused("train", "f" * 32, maker.run_id, "s3://b/model/f")
    assert again == maker.run_id
    assert "mmbert.reused_from" not in client.get_run(maker.run_id).data.tags

    monkeypatch.setenv("MMBERT_WORKFLOW_RUN", "the second")
    links = {
        connect("mmbert/reuse").link_reused("train", "f" * 32, maker.run_id, "s3://b/model/f"),
        connect("mmbert/reuse").link_reused("train", "f" * 32, maker.run_id, "s3://b/model/f"),
    }
    link, parent = sorted(runs_of(client, "mmbert/reuse", "the second"), key=lambda r: str(r.data.tags["mmbert.role"]))
    assert links == {link.info.run_id}
    assert link.info.status == "FINISHED"
    assert link.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert link.data.tags["mmbert.reused_from"] == maker.run_id
    assert f"#/runs/{maker.run_id}" in link.data.tags["mlflow.note.content"]

    redone = start(connect("mmbert/reuse"), tmp_path)
    redone.finish("FINISHED")
    assert redone.run_id == link.info.run_id
    assert "mmbert.reused_from" not in client.get_run(redone.run_id).data.tags


def test_runs_lead_to_their_task_in_airflow_and_are_found_by_it(
    at_server: str, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMBERT_AIRFLOW_URL", "http://airflow.example")
    monkeypatch.setenv("MMBERT_WORKFLOW_RUN", "in Airflow")
    task = {"dag_id": "d", "run_id": "it's r", "task_id": "train_decay", "map_index": 1}
    page = "http://airflow.example/dags/d/runs/it%27s%20r"
    tracker = connect("mmbert/airflow", airflow_task=task)
    made = start(tracker, tmp_path)
    made.finish("FINISHED")
    (parent,) = (r for r in runs_of(client, "mmbert/airflow", "in Airflow") if r.info.run_id != made.run_id)
    assert made.run_id
    assert f"({page}/tasks/train_decay/mapped/1)" in client.get_run(made.run_id).data.tags["mlflow.note.content"]
    assert f"({page})" in parent.data.tags["mlflow.note.content"]
    found = connect("mmbert/airflow").run_of(task)
    assert found
    assert found.run_id == made.run_id
    assert connect("mmbert/airflow").run_of({**task, "map_index": 0}) is None
    assert connect("mmbert/nobody's").run_of(task) is None
    assert client.get_experiment_by_name("mmbert/nobody's") is None

    again = connect("mmbert/airflow", "another run", {**task, "run_id": "s"})
    reused = again.link_reused("train", "f" * 32, made.run_id, "s3://b/model/f")
    assert reused
    note = client.get_run(reused).data.tags["mlflow.note.content"]
    assert f"#/runs/{made.run_id}" in note
    assert "/runs/s/tasks/train_decay/mapped/1" in note


def test_what_a_killed_attempt_left_is_sent_when_its_work_is_found_done(
    at_server: str, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMBERT_CACHE", str(tmp_path))
    maker = start(connect("mmbert/left"), tmp_path / "mlflow")
    assert maker.run_id
    maker.close()
    left = tmp_path / "mlflow" / f"mlflow-spool-{maker.run_id}-left.jsonl"
    Spool(left).append([{"run": maker.run_id, "metrics": [["component_seconds", 7.0, 1, 0]]}])
    assert connect("mmbert/left").link_reused("train", "f" * 32, maker.run_id, "s3://b/model/f") == maker.run_id
    assert not list((tmp_path / "mlflow").iterdir())
    run = client.get_run(maker.run_id)
    assert (run.info.status, run.data.metrics["component_seconds"]) == ("FINISHED", 7.0)


def test_the_same_model_registers_once_and_its_alias_moves(
    at_server: str, client: MlflowClient, tmp_path: Path
) -> None:
    run = start(connect("mmbert/test"), tmp_path)
    run.finish("FINISHED")

    def register(digest: str, source: str = "s3://models/m") -> str | None:
        registry = connect("mmbert/test").registry
        assert registry is not None
        return registry.register(
            name="mmbert-tiny",
            source_uri=source,
            content_digest=digest,
            run_id=run.run_id,
            tags={"mmbert.recipe": "tiny"},
            description="a model",
            alias="candidate",
        )

    assert [register("d1"), register("d1"), register("d2")] == ["1", "1", "2"]
    assert client.get_model_version_by_alias("mmbert-tiny", "candidate").version == "2"
    assert register("d1") == "1"
    version = client.get_model_version_by_alias("mmbert-tiny", "candidate")
    assert (version.version, version.source, version.run_id) == ("1", "s3://models/m", run.run_id)
    assert version.tags == {"mmbert.recipe": "tiny", "mmbert.content_digest": "d1"}
    with pytest.raises(UserError, match="local path"):
        register("d3", "/tmp/model")  # noqa: S108 - refused, never used


def test_a_server_that_is_away_at_the_start_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InfrastructureError, match=f"no answer from MLflow at {uri}"):
        connect("mmbert/test")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlruns")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI is 'mlruns'"):
        connect("mmbert/test")


def test_a_login_that_is_refused_names_the_variables_and_loses_nothing(
    client: MlflowClient, at_server: str, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = start(connect("mmbert/login"), tmp_path)
    run.close()
    found = parse_run(get_run(Api(mlflow_server.uri), str(run.run_id)))
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong-wrong-wrong")
    with pytest.raises(InfrastructureError, match=r"refused access.*MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASS"):
        connect("mmbert/login").open_workflow()
    # As where the password is changed while a component works.
    during = ComponentRun(Api(mlflow_server.uri), found, tmp_path)
    during.log_metrics({"loss": 2.5}, step=1)
    unsent = during.finish("FINISHED", wait_seconds=0.5)
    assert unsent is not None
    assert b"wrong-wrong-wrong" not in unsent.read_bytes()
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", mlflow_server.password)
    connect("mmbert/login").replay_spool(unsent)
    assert run.run_id
    assert points(client, run.run_id, "loss") == [(1, 2.5)]


def test_the_server_shows_nothing_without_a_login(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    with pytest.raises(InfrastructureError, match="refused access"):
        Api(mlflow_server.uri).get("experiments/search", {"max_results": "1"})


def test_a_token_is_sent_as_mlflows_own_client_sends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "the-token")
    with listening() as (uri, headers):
        Api(uri).get("experiments/search", {})
    assert headers == ["Bearer the-token"]


def test_a_login_in_the_address_is_refused_without_repeating_it() -> None:
    with pytest.raises(UserError, match="MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD") as refused:
        Api("https://someone:the-password@mlflow.example.org")
    assert "the-password" not in str(refused.value)


def test_what_two_callers_wrote_at_once_is_sent_again() -> None:
    """MLflow's answer where its database took the other's row first; a name that is taken is no such thing."""
    collided = {"error_code": "BAD_REQUEST", "message": "(sqlite3.IntegrityError) UNIQUE constraint failed: tags.key"}
    taken = {"error_code": "RESOURCE_ALREADY_EXISTS", "message": "(sqlite3.IntegrityError) UNIQUE constraint failed"}
    with listening((400, collided), (200, {"done": 1}), (400, taken)) as (uri, headers):
        assert patiently(lambda: Api(uri).get("x", {})) == {"done": 1}
        with pytest.raises(Refused, match="RESOURCE_ALREADY_EXISTS"):
            patiently(lambda: Api(uri).get("x", {}))
    assert len(headers) == 3


@contextlib.contextmanager
def listening(*answers: tuple[int, Any]) -> Iterator[tuple[str, list[str | None]]]:
    """A server that gives these answers, then `{}` to everything, and keeps what stands in `Authorization`."""
    headers: list[str | None] = []
    coming = list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers.append(self.headers["Authorization"])
            status, body = coming.pop(0) if coming else (200, {})
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: Any) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", headers
        server.shutdown()
        thread.join()


def test_finished_runs_of_every_recipe_are_found_with_what_they_logged(
    at_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmbert.tracking.api._PAGE", 1)
    for recipe, status in (("finished-a", "FINISHED"), ("finished-b", "FINISHED"), ("finished-b", "FAILED")):
        run = start(connect(f"mmbert/{recipe}"), tmp_path, task=f"train {status}", **{"mmbert.hardware": at_server})
        run.log_params({"recipe.model.hidden_size": 64})
        run.log_metrics({"plan/actual_utilization": 0.25})
        assert run.finish(status) is None  # type: ignore[arg-type]
    found = [run for run in finished_runs("train") if run.tags.get("mmbert.hardware") == at_server]
    assert len(found) == 2
    assert [run.metrics["plan/actual_utilization"] for run in found] == [0.25, 0.25]
    assert {run.params["recipe.model.hidden_size"] for run in found} == {"64"}
    assert at_server not in {run.tags.get("mmbert.hardware") for run in finished_runs("tokenize")}


def test_without_a_server_tracking_does_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = connect("mmbert/test")
    assert not tracker.active
    with start(tracker, tmp_path) as run, tracker.open_workflow() as workflow:
        run.log_metrics({"loss": 1.0}, step=1)
        run.log_params({"a": 1})
        run.log_input("a", "b", "c", "training")
        workflow.log_artifact(tmp_path / "there is no such file")
    assert tracker.link_reused("train", "f", "r", "s3://b/m") is None
    tracker.finish_workflow("FINISHED")
    assert run.run_id is None
    assert not list(tmp_path.iterdir())


def test_importing_tracking_brings_neither_mlflow_nor_numpy() -> None:
    code = "import mmbert.tracking, sys; print(sorted({'mlflow', 'numpy', 'pandas', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_disk_that_takes_no_more_is_an_infrastructure_error_and_spoils_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.jsonl")
    first = {"run": "a", "tags": {"kept": "1"}}
    spool.append([first])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(InfrastructureError, match="cannot keep what is meant for MLflow"):
            spool.append([{"run": "a", "tags": {"long": "x" * 8000}}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [entry for entry, _ in spool.read()] == [first]


OPERATIONS = {
    "metrics": lambda n: {"run": "a", "metrics": [["k", 1.0, 0, i] for i in range(n)]},
    "params": lambda n: {"run": "a", "params": {f"p{i}": "v" for i in range(n)}},
    "tags": lambda n: {"run": "a", "tags": {f"t{i}": "v" for i in range(n)}},
    "artifact": lambda n: {"run": "a", "artifact": "a/b", "base64": "AAAA" * n},
    "finish": lambda n: {"run": "a", "finish": "FINISHED", "time": n},
}
# Only names and numbers are drawn: hypothesis may print its examples, and warns of large ones.
operation = st.one_of(
    st.tuples(st.just("metrics"), st.integers(1, 1000)),
    st.tuples(st.sampled_from(["params", "tags"]), st.integers(1, 100)),
    st.sampled_from([("artifact", 400_000), ("finish", 1)]),
)


@given(st.lists(operation, max_size=12), st.lists(st.booleans(), min_size=40, max_size=40))
def test_the_spool_gives_back_all_operations_in_order_in_groups_that_the_server_takes(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, int]], writes_first: list[bool]
) -> None:
    operations = [OPERATIONS[kind](count) for kind, count in drawn]
    spool = Spool(tmp_path_factory.mktemp("spool") / "spool.jsonl")
    waiting, write_now = list(operations), list(writes_first)
    sent: list[dict[str, Any]] = []
    while waiting or spool.read():
        if waiting and (not write_now or write_now.pop()):
            spool.append([waiting.pop(0)])
            continue
        entries = spool.read()
        for group, mark in groups(entries):
            sizes = [sum(len(o.get(kind, ())) for o in group) for kind in ("metrics", "params", "tags")]
            assert sizes[0] <= 1000
            assert max(sizes[1:]) <= 100
            assert sum(sizes) <= 1000
            assert len(group) == 1 or all(o.keys() & {"metrics", "params", "tags"} for o in group)
            sent += group
            spool.mark_sent(mark, 1)
            break
    assert sent == operations
    spool.append([{"run": "a", "tags": {"left": "1"}}])
    left = spool.close()
    assert left is not None
    assert parse(left.read_bytes()) == [{"run": "a", "tags": {"left": "1"}}]
