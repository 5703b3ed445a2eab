"""Collections on a real store, beside real components that are killed and go on, with a real MLflow."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from components.commands import storage as command
from mmbert import artifacts, marks, storage
from mmbert.collection import needs, tickets
from mmbert.collection.collect import Collected, collect
from mmbert.collection.survey import check_is_store, survey
from mmbert.errors import InfrastructureError, UserError
from mmbert.tracking.activity import running_runs
from mmbert.tracking.api import Api
from mmbert.tracking.registry import Registry
from tests.fixtures_stack import S3, MlflowServer, clean_environment
from tests.small_run import OVERRIDES, own_text

DAY = 86400.0
GRACE = 7 * DAY


@pytest.fixture
def root(s3_server: S3, own_mlflow: MlflowServer, request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**s3_server.environment, "MLFLOW_TRACKING_URI": own_mlflow.uri}.items():
            patch.setenv(name, value)
        storage.s3_client.cache_clear()
        yield f"{s3_server.make_bucket(artifacts.digest_json(request.node.name)[:32])}/artifacts"


class Weeks:
    """Collections that each believe that it is eight days later: nothing is recent for them."""

    def __init__(self, root: str, patch: pytest.MonkeyPatch) -> None:
        self.root, self.ahead = root, 0.0
        patch.setattr(marks, "now", lambda: time.time() + self.ahead)
        patch.setattr(tickets, "_LARGEST_SKEW_SECONDS", 1e9)

    def collect(self, times: int = 2) -> list[Collected]:
        found = []
        for _ in range(times):
            self.ahead += 8 * DAY
            found.append(collect(self.root, command._outside(()), GRACE))
        return found


@pytest.fixture
def weeks(root: str, monkeypatch: pytest.MonkeyPatch) -> Weeks:
    return Weeks(root, monkeypatch)


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k.startswith(("AWS_", "S3_", "MLFLOW_"))}
    return {**clean_environment(), **kept, "OMP_NUM_THREADS": "1", **more}


def started(root: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "components.cli", "run", *arguments, "--root", root]
    return subprocess.Popen(
        line, env=environment(MMBERT_CACHE=str(folder / "cache")), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip


def uri(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    found: str = json.loads(out.splitlines()[-1])["uri"]
    return found


def wait_for(what: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not what():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def end_runs(api: Api) -> None:
    for run in running_runs(api):
        api.call("runs/update", {"run_id": run.run_id, "status": "FAILED", "end_time": int(time.time() * 1000)})


@pytest.mark.slow
def test_a_component_that_is_killed_and_goes_on_beside_collections(root: str, weeks: Weeks, tmp_path: Path) -> None:
    overrides = (*OVERRIDES, own_text(tmp_path), "shards.shard_size_mb=0.01", "shards.row_tokens=256")
    options = [word for override in overrides for word in ("--overrides", override)]
    recipe = uri(started(root, tmp_path, "recipe", "--preset", "tiny", *options))
    documents = uri(started(root, tmp_path, "curate", "--recipe", recipe))
    tokenizer = uri(started(root, tmp_path, "tokenizer", "--recipe", recipe, "--documents", documents))
    line = ("tokenize", "--recipe", recipe, "--documents", documents, "--tokenizer", tokenizer)

    process = started(root, tmp_path, *line)
    place = f"{root}/shards"
    api = Api(os.environ["MLFLOW_TRACKING_URI"])
    wait_for(lambda: any(uri.startswith(place) for run in running_runs(api) for uri in run.uris), process)
    os.killpg(process.pid, signal.SIGSTOP)
    # Running, as MLflow says, with nothing yet to go on from.
    assert not any("/kept/" in path for path in storage.list_files(place))
    assert not any(found.gone or found.marked for found in weeks.collect())
    os.killpg(process.pid, signal.SIGCONT)
    wait_for(lambda: any("kept/progress" in path for path in storage.list_files(place)), process)
    os.killpg(process.pid, signal.SIGSTOP)
    assert not any(found.gone or found.marked for found in weeks.collect())
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    end_runs(api)
    kept = {path: version for path, version in storage.list_versions(place) if "/kept/" in path}
    # Not running any more: what it can go on from, and from what it is made, stays.
    for found in weeks.collect():
        assert not found.marked
        assert {group.state for group in found.gone} <= {"superseded"}
    assert all(artifacts.look(one) for one in (recipe, documents, tokenizer))

    # As a step of a workflow, which goes on when the step is done.
    resumed = started(root, tmp_path, *line, "--workflow-run", "again")
    while resumed.poll() is None:
        weeks.collect(1)
    shards = uri(resumed)
    made = artifacts.open_artifact(shards)
    for path in made.paths():
        made.read(path)
    shard_files = {path for path in kept if "/progress/" not in path}
    assert shard_files
    assert all(dict(storage.list_versions(place))[path] == kept[path] for path in shard_files)

    version = Registry(api).register(
        name="collected", source_uri=made.remote_folder(""), content_digest=made.digest, run_id=None,
        tags={"mmbert.uri": shards}, description="", alias="candidate",
    )  # fmt: skip
    end_runs(api)
    weeks.collect()
    assert all(artifacts.look(one) for one in (documents, tokenizer, shards))
    (group,) = [g for g in survey(root, command._outside(()), GRACE).of("registered") if g.kind == "shards"]
    assert group.why == f"collected version {version} (candidate)"

    api.call("model-versions/delete", {"name": "collected", "version": version}, "DELETE")
    assert any(found.gone for found in weeks.collect(3))
    left = {path.split("/")[0] for path in storage.list_files(root)}
    assert left <= {"work", "results", "spool"}, storage.list_files(root)


def put(root: str, name: str, *, run_id: str = "") -> artifacts.Artifact:
    fingerprint = artifacts.digest_json(name)[:32]
    writer = artifacts.ArtifactWriter(f"{root}/documents/{fingerprint}", "documents", fingerprint, {}, {})
    writer.add_bytes("text", name.encode())
    return writer.commit({"mlflow_run_id": run_id})


def test_a_running_workflow_keeps_what_its_steps_made_and_found(root: str, weeks: Weeks) -> None:
    from mmbert import tracking

    made, found, nobodys = (put(root, name) for name in ("made", "found", "nobody's"))
    tracker = tracking.connect("mmbert/collected", "a run")
    run = tracker.component_run(task="one", component="c", fingerprint="f1", tags={"mmbert.place": made.uri})
    assert run.finish("FINISHED") is None
    tracker.link_reused("two", "f2", "", found.uri)
    weeks.collect()
    (named,) = {group.why for group in survey(root, command._outside(()), GRACE).of("running")}
    assert named in {f"run {one.name} ({one.run_id})" for one in running_runs(Api(os.environ["MLFLOW_TRACKING_URI"]))}
    assert [artifacts.look(a.uri) is not None for a in (made, found, nobodys)] == [True, True, False]
    tracker.finish_workflow("FINISHED")
    weeks.collect()
    assert not artifacts.look(made.uri)


def test_a_workflow_that_failed_and_goes_on_keeps_what_its_steps_made(root: str, weeks: Weeks) -> None:
    from mmbert import tracking

    made = put(root, "made before it failed")
    tracker = tracking.connect("mmbert/collected", "a run that fails")
    run = tracker.component_run(task="one", component="c", fingerprint="f1", tags={"mmbert.place": made.uri})
    run.finish("FINISHED")
    tracker.finish_workflow("FAILED")
    cleared = tracker.component_run(task="two", component="c", fingerprint="f2", tags={})
    weeks.collect(3)
    assert artifacts.look(made.uri)
    # Made by an older version, which left the workflow's own run as it was.
    tracker.finish_workflow("FAILED")
    weeks.collect(3)
    assert artifacts.look(made.uri)
    cleared.finish("FINISHED")
    # Between two steps, too, the workflow runs, and a step that is found done says so.
    assert tracker.link_reused("three", "f3", "", "s3://b/documents/3")
    weeks.collect(3)
    assert artifacts.look(made.uri)
    tracker.finish_workflow("FINISHED")
    weeks.collect(3)
    assert not artifacts.look(made.uri)


def test_a_step_found_done_while_mlflow_is_away_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the workflow would go on and the step's artifact would not be kept for it."""
    from components.planning import Plan
    from components.runtime import link_reused

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr("mmbert.tracking.api._FIRST_WAIT_SECONDS", 0.0)
    monkeypatch.setattr("components.runtime.experiment", lambda plan: "mmbert/collected")
    done = artifacts.Artifact("s3://b/documents/1", artifacts.Manifest("documents", "1", "", (), {}, {}))
    with pytest.raises(InfrastructureError, match="no answer from MLflow"):
        link_reused(cast(Plan, None), "one", done)


def test_another_mlflow_stops_everything_unless_its_runs_are_said_to_be_gone(
    root: str, weeks: Weeks, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmbert import tracking

    run = tracking.connect("mmbert/collected").component_run(task="t", component="c", fingerprint="f", tags={})
    run.finish("FINISHED")
    put(root, "tracked here", run_id=str(run.run_id))
    put(root, "tracked elsewhere", run_id="0" * 32)
    with pytest.raises(InfrastructureError, match=f"does not know 1 of the last 2 runs.*--lost {'0' * 32}"):
        weeks.collect()
    assert survey(root, command._seen(()), GRACE).groups
    told = capsys.readouterr().err
    assert f"warning: MLflow at {os.environ['MLFLOW_TRACKING_URI']} does not know 1 of the last 2 runs" in told
    assert "--lost" not in told
    assert collect(root, command._outside((), lost=["0" * 32, str(run.run_id)]), GRACE)
    assert capsys.readouterr().err == f"warning: --lost {run.run_id}: MLflow knows this run\n"


def test_an_experiment_that_is_not_shown_stops_everything(
    root: str, weeks: Weeks, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmbert import tracking

    run = tracking.connect("mmbert/collected").component_run(task="t", component="c", fingerprint="f", tags={})
    run.finish("FINISHED")
    put(root, "of a hidden experiment", run_id=str(run.run_id))
    monkeypatch.setattr(needs, "experiments", lambda api: ["0"])
    with pytest.raises(InfrastructureError, match="does not list the experiments"):
        weeks.collect()


def test_mlflow_that_stays_away_stops_everything(root: str, weeks: Weeks, monkeypatch: pytest.MonkeyPatch) -> None:
    made = put(root, "kept")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr("mmbert.tracking.api._FIRST_WAIT_SECONDS", 0.0)
    with pytest.raises(InfrastructureError, match="no answer from MLflow"):
        weeks.collect()
    assert marks.read(made.uri) is None


def test_a_store_that_fails_while_it_is_listed_stops_everything(
    root: str, weeks: Weeks, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = put(root, "kept")
    monkeypatch.setattr(needs, "mlflow_needs", lambda api, store: [])
    client = storage.s3_client()
    real = client.get_object

    def fails(**request: object) -> object:
        if str(request["Key"]).endswith(artifacts.MANIFEST):
            from botocore.exceptions import ReadTimeoutError

            raise ReadTimeoutError(endpoint_url="s3")
        return real(**request)

    monkeypatch.setattr(client, "get_object", fails)
    with pytest.raises(InfrastructureError, match="Read timeout"):
        weeks.collect()
    monkeypatch.undo()
    assert made.read("text") == b"kept"


def test_an_upload_that_was_never_ended_is_shown_and_ended(root: str, weeks: Weeks) -> None:
    bucket, key = storage.split_s3(f"{root}/documents/{'e' * 32}/attempts/{'0' * 12}/big")
    client = storage.s3_client()
    begun = client.create_multipart_upload(Bucket=bucket, Key=key)
    client.upload_part(Bucket=bucket, Key=key, UploadId=begun["UploadId"], PartNumber=1, Body=io.BytesIO(b"1" * 1000))
    listed = storage.unfinished_uploads(root)
    if listed is None:
        pytest.fail("the test's server lists uploads")
    assert [(upload.uri, upload.size) for upload in listed] == [(f"s3://{bucket}/{key}", 1000)]
    assert storage.unfinished_uploads(f"{root}x") == []
    (found,) = weeks.collect(1)
    assert len(found.uploads) == 1
    assert storage.unfinished_uploads(root) == []
    storage.abort_upload(f"s3://{bucket}/{key}", begun["UploadId"])
    assert storage.old_versions(root) == (0, 0)


def test_a_prefix_that_is_no_store_is_told(root: str) -> None:
    put(root, "there")
    bucket = root.rpartition("/")[0]
    with pytest.raises(UserError, match=f"below {bucket} there is no artifact; the store seems to be {root}$"):
        check_is_store(bucket)
    with pytest.raises(UserError, match=r"below s3://\S+/nothing there is no artifact; is this the store\?"):
        check_is_store(f"{bucket}/nothing")
    check_is_store(root)
