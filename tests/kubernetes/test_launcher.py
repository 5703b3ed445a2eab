"""The launcher `kubernetes` against a stand-in cluster: what it makes, whom it meets, and what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from components import launchers, planning, steps
from components.cli import cli
from components.launchers import kubernetes as launcher
from components.launchers.kubernetes import api, logs, states
from components.launchers.kubernetes.manifests import JOB, RAY_JOB, TRAIN_JOB, WAITER, Kind, manifests
from components.planning import Plan
from mmbert import artifacts
from mmbert.errors import InfrastructureError, UserError
from tests.fixtures_stack import ROOT, clean_environment
from tests.kubernetes import works
from tests.kubernetes.cluster import FOREVER, Cluster, Run, Scripted, resources
from tests.kubernetes.cluster.store import set_condition

RUNTIME = yaml.safe_load(works.RUNTIME.read_text("utf-8"))
PRIORITY = {
    "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "mmbert-training"}, "value": 9
}  # fmt: skip
GPU_PROFILE = works.PROFILE.replace('queue: "QUEUE"', "node_selector: {pool: h100}")


@dataclass
class Scene:
    """A cluster whose pods do what `runs` says, one after the other, the last for all that follow."""

    cluster: Cluster
    runs: list[Run] = field(default_factory=lambda: [Run()])
    done: set[str] = field(default_factory=set)
    told: list[str] = field(default_factory=list)
    played: list[str] = field(default_factory=list)
    called: dict[str, Callable[[], None]] = field(default_factory=dict)
    """What to do when something that begins so is told."""

    def behave(self, pod: dict[str, Any]) -> Run:
        self.played.append(pod["metadata"]["name"])
        return self.runs.pop(0) if len(self.runs) > 1 else self.runs[0]

    def tell(self, text: str) -> None:
        self.told.append(text)
        for begin in [begin for begin in self.called if text.startswith(begin)]:
            self.called.pop(begin)()

    def launch(self, plan: Plan) -> Any:
        return launchers.launch(plan, works.PLACE, plan.component.name, self.tell)

    @property
    def names(self) -> list[str]:
        return [pod["metadata"]["name"] for pod in self.cluster.pods("Running")]


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Scene]:
    works.use_profile(monkeypatch, tmp_path)
    monkeypatch.setenv("MMBERT_LAUNCHER", "kubernetes")
    for module, name, value in (
        (launcher, "_SOON_SECONDS", 0.2), (launcher, "_LOOK_SECONDS", 0.02), (logs, "_PAUSE_SECONDS", 0.02),
        (launcher, "_QUEUE_LOOK_SECONDS", 1.0), (api, "_FIRST_PAUSE", 0.02),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    made: list[Scene] = []
    with Cluster(nodes=3) as cluster:
        made.append(Scene(cluster))
        cluster.kubelet.player = Scripted(made[0].behave)
        cluster.add(RUNTIME, PRIORITY)
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))

        def find(uri: str) -> Any:
            return SimpleNamespace(uri=uri, outputs={}) if uri in made[0].done else None

        monkeypatch.setattr(artifacts, "find", find)
        yield made[0]


def works_then(scene: Scene, plan: Plan, *lines: str, code: int = 0) -> Run:
    """Write lines, leave the artifact, end."""

    def written() -> Iterator[str]:
        yield from lines
        scene.done.add(plan.uri)

    return Run(lines=written(), code=code)


def held(scene: Scene, plan: Plan, go_on: threading.Event, *lines: str) -> Run:
    """Begin, and end well once told to."""

    def written() -> Iterator[str]:
        yield from lines[:1]
        assert go_on.wait(20)
        yield from lines[1:]
        scene.done.add(plan.uri)

    return Run(lines=written())


@pytest.fixture
def beside() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def objects(scene: Scene, kind: Kind) -> list[dict[str, Any]]:
    return scene.cluster.objects(kind.kind)


def test_a_component_runs_in_a_job_and_its_log_is_shown(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    plan = works.plan_of("select")
    scene.runs = [works_then(scene, plan, "one", "two")]
    assert scene.launch(plan).uri == plan.uri
    assert capsys.readouterr().out == "one\ntwo\n"
    (job,) = objects(scene, JOB)
    assert job["metadata"]["name"] == manifests(plan, works.words(plan), works.PLACE).name
    assert len(scene.played) == 1


@pytest.mark.parametrize(
    ("code", "reason", "error", "message"),
    [
        (2, "", UserError, "component 'select' ended with exit code 2: the recipe is wrong"),
        (3, "", InfrastructureError, "component 'select' ended with exit code 3: the recipe is wrong"),
        (1, "", launchers.ComponentFailedError, "component 'select' ended with exit code 1: the recipe is wrong"),
        (
            137, "OOMKilled", InfrastructureError,
            r"the container of 'select' ran out of memory: its memory limit of 2.5 GiB \(memory.small of the profile .*"
            r"own.yaml\); raise it in a profile of your own",
        ),
        (137, "Error", InfrastructureError, "was killed .SIGKILL.: by its memory limit of 2.5 GiB .* unless somebody"),
        (137, "ContainerStatusUnknown", InfrastructureError, "could not run its container .*: ContainerStatusUnknown"),
        (128, "StartError", InfrastructureError, "could not run its container .*StartError, exit code 128: the recipe"),
        (255, "Unknown", InfrastructureError, "the node could not run its container .*: Unknown, exit code 255: the"),
        (163, "", InfrastructureError, "ended with exit code -35 .killed by signal 35.: the recipe is wrong"),
        (139, "", InfrastructureError, "ended with exit code -11 .killed by SIGSEGV.: the recipe is wrong"),
    ],
)  # fmt: skip
def test_exit_codes_are_told_as_by_every_launcher(
    scene: Scene, code: int, reason: str, error: type[Exception], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.runs = [Run(lines=["at work", "error: the recipe is wrong"], code=code, reason=reason)]
    with pytest.raises(error, match=message):
        scene.launch(works.plan_of("select"))
    assert capsys.readouterr().out == "at work\n"
    # The profile says no restarts: none of these is tried again here.
    assert len(scene.played) == 1


def test_a_job_that_says_complete_without_an_artifact_is_no_success(scene: Scene) -> None:
    with pytest.raises(launchers.ComponentFailedError, match=r"said it was done, but .* is not complete"):
        scene.launch(works.plan_of("select"))


def test_a_pod_that_was_stopped_from_outside_starts_again(scene: Scene) -> None:
    plan = works.plan_of("select")
    scene.runs = [Run(code=130), works_then(scene, plan)]
    scene.launch(plan)
    assert len(scene.played) == 2


def test_what_is_worth_a_retry_is_tried_as_often_as_the_profile_says(scene: Scene) -> None:
    plan = works.plan_of("train", phase="decay")
    scene.runs = [Run(lines=["error: S3 is away"], seconds=0.5, code=3)]
    with pytest.raises(InfrastructureError, match=r"exit code 3: S3 is away"):
        scene.launch(plan)
    assert len(scene.played) == 2
    assert [text for text in scene.told if text.startswith("starts again: pod ")]


def test_two_starts_of_one_work_are_one_job(scene: Scene, beside: ThreadPoolExecutor) -> None:
    plan, go_on = works.plan_of("select"), threading.Event()
    scene.runs = [held(scene, plan, go_on)]
    starts = [beside.submit(scene.launch, plan) for _ in range(3)]
    scene.cluster.wait_for(lambda: scene.names)
    go_on.set()
    assert {start.result(20).uri for start in starts} == {plan.uri}
    assert len(scene.played) == len(objects(scene, JOB)) == 1


def test_one_that_runs_is_met_and_its_log_shown_whole(
    scene: Scene, beside: ThreadPoolExecutor, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, go_on = works.plan_of("select"), threading.Event()
    scene.runs = [held(scene, plan, go_on, "first", "last")]
    starts = [beside.submit(scene.launch, plan)]
    scene.cluster.wait_for(lambda: scene.names)
    starts.append(beside.submit(scene.launch, plan))
    wait_for(lambda: len([text for text in scene.told if text.startswith("runs: pod ")]) == 2)
    go_on.set()
    assert {start.result(20).uri for start in starts} == {plan.uri}
    said = capsys.readouterr().out
    assert (said.count("runs already; waiting for it"), said.count("first\n"), said.count("last\n")) == (1, 2, 2)


def test_who_stops_leaves_the_object_to_who_met_it(scene: Scene, beside: ThreadPoolExecutor) -> None:
    """As a worker does that the scheduler had given up: its own retry waits for the same Job already."""
    plan, met, go_on = works.plan_of("select"), threading.Event(), threading.Event()
    scene.runs = [held(scene, plan, go_on)]

    def stop() -> None:
        assert met.wait(20)
        raise KeyboardInterrupt

    scene.called["runs: pod "] = stop
    first = beside.submit(scene.launch, plan)
    scene.cluster.wait_for(lambda: scene.names)
    before = objects(scene, JOB)[0]["metadata"]["annotations"][WAITER]
    second = beside.submit(scene.launch, plan)
    wait_for(lambda: objects(scene, JOB)[0]["metadata"]["annotations"][WAITER] != before)
    met.set()
    with pytest.raises(KeyboardInterrupt):
        first.result(20)
    go_on.set()
    assert second.result(20).uri == plan.uri
    assert len(scene.played) == 1


def test_the_same_work_of_another_profile_is_told(
    scene: Scene, beside: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan, go_on = works.plan_of("train", phase="pretrain"), threading.Event()
    scene.cluster.kubelet.player = Scripted(lambda _: held(scene, plan, go_on))
    first = beside.submit(scene.launch, plan)
    scene.cluster.wait_for(lambda: len(scene.names) == 2)
    (tmp_path / "other").mkdir()
    works.use_profile(monkeypatch, tmp_path / "other", training="trainer")
    with pytest.raises(InfrastructureError, match=r"a Job mmbert-train-\w+ is at the same work already, started with"):
        scene.launch(plan)
    go_on.set()
    assert first.result(20).uri == plan.uri


def test_nodes_that_could_not_find_each_other_are_not_left_alone(scene: Scene) -> None:
    scene.runs = [Run(seconds=FOREVER, stopped=130)]
    scene.cluster.forbid("create", "services")
    with pytest.raises(UserError, match="no permission to create services in the namespace mmbert"):
        scene.launch(works.plan_of("train", phase="pretrain"))
    scene.cluster.wait_for(lambda: not objects(scene, JOB) and not scene.cluster.pods())


def wait_for(found: Callable[[], Any], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    return value


def test_a_failed_object_of_that_name_is_replaced(scene: Scene) -> None:
    plan = works.plan_of("select")
    scene.runs = [Run(code=3)]
    with pytest.raises(InfrastructureError):
        scene.launch(plan)
    (before,) = objects(scene, JOB)
    scene.runs = [works_then(scene, plan)]
    scene.launch(plan)
    (after,) = objects(scene, JOB)
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert len(scene.played) == 2


def test_a_complete_object_without_its_artifact_is_replaced(scene: Scene) -> None:
    plan = works.plan_of("select")
    with pytest.raises(launchers.ComponentFailedError):
        scene.launch(plan)
    scene.runs = [works_then(scene, plan)]
    scene.launch(plan)
    assert len(scene.played) == 2


def test_a_pod_that_still_ends_is_waited_for(scene: Scene, beside: ThreadPoolExecutor) -> None:
    """Never two at the same work: the first saves what it has while the second waits."""
    plan, ends = works.plan_of("select"), threading.Event()

    def saving() -> Iterator[str]:
        yield "at work"
        ends.wait(20)

    scene.runs = [Run(lines=saving(), seconds=FOREVER, stopped=130), works_then(scene, plan)]
    first = beside.submit(scene.launch, plan)
    (name,) = scene.cluster.wait_for(lambda: scene.names)
    (job,) = objects(scene, JOB)
    with api.connected("mmbert") as cluster:
        cluster.delete(JOB, job["metadata"]["name"], job["metadata"]["uid"])
    second = beside.submit(scene.launch, plan)
    wait_for(lambda: [text for text in scene.told if "is still ending" in text])
    assert scene.played == [name]
    ends.set()
    second.result(20)
    assert len(scene.played) == 2
    with pytest.raises(InfrastructureError, match=r"was deleted before it told how it ended; run it again"):
        first.result(20)


@pytest.mark.parametrize("training", ["job", "trainer"])
def test_several_nodes_train_together(
    scene: Scene, training: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    works.use_profile(monkeypatch, tmp_path, training=training)
    plan = works.plan_of("train", phase="pretrain")
    scene.cluster.kubelet.player = Scripted(lambda pod: nodes_run(scene, plan, pod))
    scene.launch(plan)
    assert capsys.readouterr().out == "I am node 0\n"
    assert sorted(scene.played) == ["0", "1"]
    kind = TRAIN_JOB if training == "trainer" else JOB
    if training == "trainer":
        # It has no field that lets it go by itself.
        scene.cluster.wait_for(lambda: not objects(scene, kind))
    else:
        (service,) = scene.cluster.objects("Service")
        assert service["metadata"]["ownerReferences"][0]["uid"] == objects(scene, JOB)[0]["metadata"]["uid"]


def nodes_run(scene: Scene, plan: Plan, pod: dict[str, Any]) -> Run:
    index = pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]
    scene.played.append(index)
    scene.done.add(plan.uri)
    return Run(lines=[f"I am node {index}"])


@pytest.mark.parametrize("training", ["job", "trainer"])
def test_bad_input_ends_all_nodes_at_once(
    scene: Scene, training: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    works.use_profile(monkeypatch, tmp_path, training=training)

    def behave(pod: dict[str, Any]) -> Run:
        index = pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]
        scene.played.append(index)
        return Run(lines=["error: no such shards"], code=2) if index == "0" else Run(seconds=FOREVER, stopped=130)

    scene.cluster.kubelet.player = Scripted(behave)
    with pytest.raises(UserError, match=r"component 'train' ended with exit code 2: no such shards"):
        scene.launch(works.plan_of("train", phase="pretrain"))
    assert sorted(scene.played) == ["0", "1"]


def test_curation_on_ray_shows_what_the_submitter_prints(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = works.PROFILE.replace("data: {scratch: 1}", "data: {scratch: 1, ray: {workers: 2}}")
    works.use_profile(monkeypatch, tmp_path, text)
    plan = works.plan_of("curate")
    scene.runs = [works_then(scene, plan, "curated")]
    scene.launch(plan)
    assert capsys.readouterr().out == "curated\n"
    assert len(scene.played) == 1  # head and workers run until they are deleted
    scene.cluster.wait_for(lambda: not objects(scene, RAY_JOB))


def test_pods_of_a_ray_cluster_that_are_refused_are_told_with_the_reason(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = works.PROFILE.replace("data: {scratch: 1}", "data: {scratch: 1, ray: {workers: 2}}")
    text = text.replace("service_account: mmbert-component", "service_account: nobody")
    works.use_profile(monkeypatch, tmp_path, text, pending=0.02)
    with pytest.raises(InfrastructureError, match=r'waits for its pods, and the cluster says: .*"?nobody"? not found'):
        scene.launch(works.plan_of("curate"))


def test_what_a_train_job_cannot_say_is_told_first(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    works.use_profile(monkeypatch, tmp_path, training="trainer")
    plan = works.plan_of("train", phase="pretrain")
    scene.cluster.kubelet.player = Scripted(lambda pod: nodes_run(scene, plan, pod))
    scene.launch(plan)
    assert scene.told[0].startswith("restarts, grace_seconds of kubernetes.classes.train")


DISRUPTIONS: dict[str, tuple[Callable[[Cluster, str], None], str]] = {
    "evicted": (Cluster.evict, "was evicted by its node node-"),
    "drained": (Cluster.drain, "was evicted: "),
    "preempted": (Cluster.preempt, "was preempted by work of a higher priority: "),
    "node lost": (Cluster.lose_node, "lost its node node-"),
}


@pytest.mark.parametrize("what", list(DISRUPTIONS))
def test_a_disruption_is_told_and_the_work_goes_on(scene: Scene, what: str) -> None:
    plan = works.plan_of("train", phase="decay")
    scene.runs = [Run(lines=["at work"], seconds=FOREVER, stopped=130), works_then(scene, plan)]
    disrupt, words = DISRUPTIONS[what]
    scene.called["runs: pod "] = lambda: disrupt(scene.cluster, scene.names[0])
    scene.launch(plan)
    assert len(scene.played) == 2
    told = [text for text in scene.told if words in text]
    assert len(told) == 1, scene.told
    assert told[0].endswith("; the cluster starts it again, from its last checkpoint")


def test_a_pod_that_vanishes_is_told(scene: Scene) -> None:
    plan = works.plan_of("train", phase="decay")
    scene.runs = [Run(seconds=FOREVER), works_then(scene, plan)]
    scene.called["runs: pod "] = lambda: scene.cluster.vanish(scene.names[0])
    scene.launch(plan)
    assert [text for text in scene.told if "is gone: somebody deleted it, or its node; the cluster starts" in text]


def test_a_job_that_fails_without_a_pod_that_says_why_is_no_success(scene: Scene) -> None:
    plan = works.plan_of("select")
    scene.runs = [Run(seconds=FOREVER)]

    def fail() -> None:
        # As after a pod that was deleted by force, where no restart is left.
        job = objects(scene, JOB)[0]
        pod = scene.names[0]
        scene.cluster.store.change(
            resources.JOB, job, lambda item: set_condition(item, "Failed", "True", "BackoffLimitExceeded", "limit")
        )
        scene.cluster.vanish(pod)

    scene.called["runs: pod "] = fail
    with pytest.raises(InfrastructureError, match=r"no pod is left that says why \(BackoffLimitExceeded: limit\)"):
        scene.launch(plan)


def test_a_job_that_is_deleted_is_told(scene: Scene) -> None:
    scene.runs = [Run(seconds=FOREVER, stopped=130)]

    def delete() -> None:
        (job,) = objects(scene, JOB)
        with api.connected("mmbert") as cluster:
            cluster.delete(JOB, job["metadata"]["name"], job["metadata"]["uid"])

    scene.called["runs: pod "] = delete
    with pytest.raises(InfrastructureError, match=r"was deleted before it told how it ended"):
        scene.launch(works.plan_of("select"))


def test_a_deadline_names_the_profiles_key(scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = works.PROFILE.replace("train.decay: {nodes: 1}", "train.decay: {nodes: 1, deadline_hours: 0.0003}")
    works.use_profile(monkeypatch, tmp_path, text)
    scene.runs = [Run(seconds=FOREVER, stopped=130)]
    with pytest.raises(InfrastructureError, match=r"took longer than its deadline_hours \(kubernetes.classes.train of"):
        scene.launch(works.plan_of("train", phase="decay"))


@pytest.mark.parametrize("quietly", [True, False])
def test_a_log_that_is_cut_loses_no_line_and_doubles_none(
    scene: Scene, quietly: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = works.plan_of("select")
    lines = [f"line {n}" for n in range(400)]

    def written() -> Iterator[str]:
        for number, line in enumerate(lines):
            if number % 20 == 0:
                time.sleep(0.01)
            yield line
        scene.done.add(plan.uri)

    scene.runs = [Run(lines=written())]
    scene.cluster.faults.drop_logs(5, quietly)
    scene.launch(plan)
    assert capsys.readouterr().out.splitlines() == lines


def test_watches_that_are_cut_or_too_old_are_begun_anew(scene: Scene, beside: ThreadPoolExecutor) -> None:
    plan, go_on = works.plan_of("select"), threading.Event()
    scene.runs = [held(scene, plan, go_on)]
    scene.cluster.faults.cut_watches(3)
    scene.cluster.faults.gone(3)
    start = beside.submit(scene.launch, plan)
    scene.cluster.wait_for(lambda: scene.names)
    go_on.set()
    assert start.result(20).uri == plan.uri


@pytest.mark.parametrize("status", [429, 500, 503, 504])
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_cluster_that_is_busy_is_asked_again(scene: Scene, status: int, method: str) -> None:
    plan = works.plan_of("select")
    scene.runs = [works_then(scene, plan)]
    headers = {"Retry-After": "0"} if status == 429 else None
    scene.cluster.faults.fail(method, "jobs|pods", status, times=3, headers=headers)
    assert scene.launch(plan).uri == plan.uri
    assert len(scene.played) == 1


def test_an_answer_that_was_lost_makes_no_second_job(scene: Scene) -> None:
    plan = works.plan_of("select")
    scene.runs = [works_then(scene, plan)]
    scene.cluster.faults.lose_answers("POST", "jobs")
    scene.launch(plan)
    assert len(scene.played) == len(objects(scene, JOB)) == 1


def test_a_cluster_that_stays_busy_is_an_infrastructure_error_and_the_job_goes_on(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "PATIENCE_SECONDS", 0.1)
    scene.runs = [Run(seconds=FOREVER)]
    scene.called["runs: pod "] = lambda: scene.cluster.faults.fail("GET", "", 503, times=10**6)
    with pytest.raises(InfrastructureError, match=r"answers 503 \(the server is currently unable"):
        scene.launch(works.plan_of("select"))
    assert scene.names


def test_no_cluster(scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(api, "PATIENCE_SECONDS", 0.1)
    config = yaml.safe_load(scene.cluster.kubeconfig.read_text("utf-8"))
    config["clusters"][0]["cluster"]["server"] = "http://127.0.0.1:9"
    (tmp_path / "away").write_text(yaml.safe_dump(config), "utf-8")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "away"))
    with pytest.raises(InfrastructureError, match=r"http://127.0.0.1:9: no cluster answers there .*kubeconfig"):
        scene.launch(works.plan_of("select"))
    (told,) = scene.told
    assert told.startswith("http://127.0.0.1:9: no answer (")
    assert told.endswith("); asked again for 0.00166667 minutes")
    config["users"][0]["user"]["token"] = "expired"
    config["clusters"][0]["cluster"]["server"] = scene.cluster.url
    (tmp_path / "away").write_text(yaml.safe_dump(config), "utf-8")
    with pytest.raises(UserError, match=r"does not know who asks .401: Unauthorized.; renew the kubeconfig"):
        scene.launch(works.plan_of("select"))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    with pytest.raises(
        UserError, match=r"there is no kubeconfig at .*nothing, and this is no pod of a cluster; set KUBECON"
    ):
        scene.launch(works.plan_of("select"))
    (tmp_path / "wrong").write_text("{}", "utf-8")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "wrong"))
    with pytest.raises(UserError, match=r"wrong: this kubeconfig cannot be used"):
        scene.launch(works.plan_of("select"))


@pytest.mark.parametrize(
    ("command", "said"), [("aws-nope", r"\[Errno 2\] .*'aws-nope'"), ("false", "exec: process returned 1")]
)
def test_a_credential_plugin_that_fails_is_named(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, said: str,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    config = yaml.safe_load(scene.cluster.kubeconfig.read_text("utf-8"))
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": command, "interactiveMode": "Never"}
    config["users"][0]["user"] = {"exec": plugin}
    (tmp_path / "config").write_text(yaml.safe_dump(config), "utf-8")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    name = config["users"][0]["name"]
    with pytest.raises(UserError, match=rf"the credential plugin of its user {name} failed \({said}\); install it"):
        scene.launch(works.plan_of("select"))
    assert capfd.readouterr().err == ""


class Page(BaseHTTPRequestHandler):
    """What a service that is no API server may answer."""

    def do_GET(self) -> None:
        self.send_response(400)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        """Nothing is logged."""


def test_a_service_that_is_no_api_server_is_told(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, beside: ThreadPoolExecutor
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        beside.submit(server.serve_forever)
        url = f"http://127.0.0.1:{server.server_port}"
        config = yaml.safe_load(scene.cluster.kubeconfig.read_text("utf-8"))
        config["clusters"][0]["cluster"]["server"] = url
        (tmp_path / "config").write_text(yaml.safe_dump(config), "utf-8")
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        try:
            with pytest.raises(UserError, match=rf"Bad Request \(400\); {url} is perhaps no Kubernetes API: check"):
                scene.launch(works.plan_of("select"))
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MMBERT_PROFILE", "laptop", "it has no section 'kubernetes'"),
        ("MMBERT_IMAGE_EVAL", "mmbert-eval:v1", "image mmbert-eval:v1 has no digest"),
        ("KUBECONFIG", "/nowhere/config", "there is no kubeconfig at /nowhere/config"),
        ("MMBERT_LAUNCHER", "kubernets", "there is no such launcher"),
    ],
)
def test_wrong_settings_are_told_before_the_store_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str, message: str
) -> None:
    works.use_profile(monkeypatch, tmp_path)
    (tmp_path / "config").touch()
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("MMBERT_LAUNCHER", "kubernetes")
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(planning, "plan", lambda *arguments: pytest.fail("the store was asked"))
    with pytest.raises(UserError, match=message):
        steps.run_step("select", {}, root=works.PLACE, task="select", workflow_run="")


@pytest.mark.parametrize("text", ["{", "only words", "- a", "\x00"])
def test_a_kubeconfig_that_is_none(scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    (tmp_path / "config").write_text(text, "utf-8")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with pytest.raises(UserError, match=r"config: this kubeconfig cannot be used"):
        scene.launch(works.plan_of("select"))


@pytest.mark.parametrize("given", [formatdate(usegmt=True), "soon"], ids=["date", "word"])
def test_a_busy_cluster_may_give_a_date(scene: Scene, given: str) -> None:
    plan = works.plan_of("select")
    scene.runs = [works_then(scene, plan)]
    scene.cluster.faults.fail("GET", "jobs", 503, headers={"Retry-After": given})
    assert scene.launch(plan).uri == plan.uri


@pytest.mark.parametrize(
    ("verb", "resource", "group"),
    [
        ("get", "jobs", "batch"), ("create", "jobs", "batch"), ("list", "pods", ""),
    ],
)  # fmt: skip
def test_a_missing_right_is_named_with_its_verb_and_resource(
    scene: Scene, verb: str, resource: str, group: str
) -> None:
    plan = works.plan_of("select")
    scene.runs = [Run(lines=["at work"], seconds=1, code=3)]
    scene.cluster.forbid(verb, resource)
    with pytest.raises(UserError) as refused:
        scene.launch(plan)
    full = f"{resource}.{group}" if group else resource
    assert f"no permission to {verb} {full} in the namespace mmbert; give the account this verb" in str(refused.value)
    assert f'(API group "{group}", resource {resource})' in str(refused.value)
    assert 'User "system:serviceaccount:mmbert:mmbert-launcher" cannot' in str(refused.value)


@pytest.mark.parametrize(("verb", "resource"), [("get", "jobs"), ("list", "pods"), ("watch", "pods"), ("*", "*")])
def test_a_right_that_is_taken_while_work_runs_does_not_end_it(
    scene: Scene, verb: str, resource: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "PATIENCE_SECONDS", 0.3)
    scene.runs = [Run(seconds=FOREVER)]
    monkeypatch.setattr(launcher, "_WATCH_SECONDS", 1.0)
    scene.called["runs: pod "] = lambda: scene.cluster.forbid(verb, resource)
    with pytest.raises(InfrastructureError, match=r"no permission to .*; the work goes on, and running this again me"):
        scene.launch(works.plan_of("select"))
    assert scene.names
    assert not [job for job in objects(scene, JOB) if "deletionTimestamp" in job["metadata"]]


@pytest.mark.parametrize("status", [401, 403])
def test_credentials_that_are_renewed_while_work_runs_are_waited_for(
    scene: Scene, status: int, beside: ThreadPoolExecutor
) -> None:
    plan, go_on = works.plan_of("select"), threading.Event()
    scene.runs = [held(scene, plan, go_on)]
    scene.called["runs: pod "] = lambda: scene.cluster.faults.fail("GET", "jobs|pods", status, times=6)
    start = beside.submit(scene.launch, plan)
    wait_for(lambda: [text for text in scene.told if text.startswith("runs: pod ")])
    go_on.set()
    assert start.result(20).uri == plan.uri


def test_a_train_job_that_is_done_and_may_not_be_deleted_is_done(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    works.use_profile(monkeypatch, tmp_path, training="trainer")
    plan = works.plan_of("train", phase="pretrain")
    scene.cluster.forbid("delete", "trainjobs")
    scene.cluster.kubelet.player = Scripted(lambda pod: nodes_run(scene, plan, pod))
    assert scene.launch(plan).uri == plan.uri
    assert scene.told[-1].startswith("no permission to delete trainjobs.trainer.kubeflow.org")
    assert scene.told[-1].endswith(" is done, and stays")


def test_a_log_that_may_not_be_read_is_told_once_and_the_work_goes_on(scene: Scene) -> None:
    plan = works.plan_of("train", phase="decay")
    scene.cluster.forbid("get", "pods/log")
    scene.runs = [Run(code=3), works_then(scene, plan)]
    assert scene.launch(plan).uri == plan.uri
    (told,) = [text for text in scene.told if "pods/log" in text]
    assert "no permission to get pods/log in the namespace mmbert; give the account" in told
    assert told.endswith("; the work goes on without its log")


def test_a_log_that_may_be_read_again_is_shown_whole(
    scene: Scene, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_DENIED_PAUSE_SECONDS", 0.05)
    plan = works.plan_of("select")
    scene.cluster.faults.fail("GET", "/log", 401, times=2)
    scene.runs = [works_then(scene, plan, "one", "two")]
    scene.launch(plan)
    assert capsys.readouterr().out == "one\ntwo\n"


@pytest.mark.parametrize(("what", "queue"), [("events", ""), ("workloads", "mmbert-h100")])
def test_what_is_good_to_know_may_be_missing(
    scene: Scene, what: str, queue: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, beside: ThreadPoolExecutor
) -> None:
    works.use_profile(monkeypatch, tmp_path, queue=queue)
    monkeypatch.setattr(launcher, "_SOON_SECONDS", 0.0)
    plan, go_on = works.plan_of("select"), threading.Event()
    scene.cluster.quota("mmbert-h100", admits=False)
    scene.cluster.forbid("list", what)
    scene.runs = [held(scene, plan, go_on)]
    if not queue:
        # Its pods are made only after somebody asked for events.
        monkeypatch.setattr(api.Cluster, "pods", pods_later(scene))
    start = beside.submit(scene.launch, plan)
    (told,) = wait_for(lambda: [text for text in scene.told if f"no permission to list {what}" in text])
    assert told.endswith(f"; the work goes on without its {what}")
    scene.cluster.quota("mmbert-h100", admits=True)
    go_on.set()
    assert start.result(20).uri == plan.uri
    assert len([text for text in scene.told if f"no permission to list {what}" in text]) == 1


def pods_later(scene: Scene) -> Callable[..., Any]:
    """Lists no pods until something was told."""
    real = api.Cluster.pods

    def pods(self: api.Cluster, digest: str) -> tuple[list[Any], str]:
        found, version = real(self, digest)
        return (found if scene.told else []), version

    return pods


OVER = 'jobs.batch "j" is forbidden: exceeded quota: jobs, requested: count/jobs.batch=1, used: 5, limited: 5'


def test_a_namespaces_quota_is_waited_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_QUEUE_LOOK_SECONDS", 0.02)
    plan = works.plan_of("select")
    scene.cluster.faults.fail("POST", "jobs", 403, times=3, message=OVER)
    scene.runs = [works_then(scene, plan)]
    assert scene.launch(plan).uri == plan.uri
    assert scene.told.count(f"waits for quota in the namespace mmbert: {OVER}") == 1


def test_a_namespaces_quota_that_stays_used_is_an_infrastructure_error(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    works.use_profile(monkeypatch, tmp_path, pending=0.005)
    scene.cluster.faults.fail("POST", "jobs", 403, times=10**6, message=OVER)
    with pytest.raises(InfrastructureError, match=r"exceeded quota: .* \(for 0.3 s, kubernetes.pending_minutes\)"):
        scene.launch(works.plan_of("select"))


def test_a_pod_that_does_not_end_is_told(scene: Scene, beside: ThreadPoolExecutor) -> None:
    """Deleted where nobody ends it, as on a node that is lost and not yet deleted."""
    plan, ends = works.plan_of("train", phase="decay"), threading.Event()

    def hanging() -> Iterator[str]:
        yield "at work"
        ends.wait(20)

    scene.runs = [Run(lines=hanging(), seconds=FOREVER, stopped=130), works_then(scene, plan)]
    scene.called["runs: pod "] = lambda: scene.cluster.drain(scene.names[0])
    start = beside.submit(scene.launch, plan)
    (told,) = wait_for(lambda: [text for text in scene.told if " is still ending on node-" in text])
    assert told.endswith("; where that node is lost, delete it from the cluster")
    ends.set()
    assert start.result(20).uri == plan.uri


def test_a_missing_right_to_delete_is_named(scene: Scene) -> None:
    plan = works.plan_of("select")
    scene.runs = [Run(code=3)]
    with pytest.raises(InfrastructureError):
        scene.launch(plan)
    scene.cluster.forbid("delete", "jobs")
    with pytest.raises(UserError, match=r"no permission to delete jobs.batch in the namespace mmbert"):
        scene.launch(plan)


def test_no_namespace(scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    works.use_profile(monkeypatch, tmp_path, works.PROFILE.replace("namespace: mmbert", "namespace: other"))
    with pytest.raises(UserError, match=r"has no namespace other; kubernetes.namespace of the profile names it"):
        scene.launch(works.plan_of("select"))


def test_no_node_is_told_and_ends(scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    works.use_profile(monkeypatch, tmp_path, GPU_PROFILE, pending=0.02)
    wait = "waits for a node: 0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."
    with pytest.raises(InfrastructureError) as ended:
        scene.launch(works.plan_of("select"))
    assert str(ended.value) == f"{wait} (for 1.2 s, kubernetes.pending_minutes)"
    assert scene.told == [wait]
    scene.cluster.wait_for(lambda: not objects(scene, JOB))


def test_a_node_that_comes_is_taken(scene: Scene, beside: ThreadPoolExecutor) -> None:
    plan = works.plan_of("select")
    scene.runs = [works_then(scene, plan)]
    scene.cluster.no_nodes("0/3 nodes are available: the autoscaler makes one")
    start = beside.submit(scene.launch, plan)
    wait_for(lambda: scene.told == ["waits for a node: 0/3 nodes are available: the autoscaler makes one"])
    scene.cluster.no_nodes("")
    assert start.result(20).uri == plan.uri


def test_quota_is_told_and_ends(scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = works.PROFILE.replace("training:", "queue_minutes: 0.04\n  training:")
    works.use_profile(monkeypatch, tmp_path, text, queue="mmbert-h100", pending=0.001)
    scene.cluster.quota("mmbert-h100", admits=False, message="insufficient unused quota for nvidia.com/gpu")
    wait = "waits for quota in queue mmbert-h100: insufficient unused quota for nvidia.com/gpu"
    with pytest.raises(InfrastructureError) as ended:
        scene.launch(works.plan_of("select"))
    assert str(ended.value) == f"{wait} (for 2.4 s, kubernetes.queue_minutes)"
    assert scene.told[-1] == wait
    scene.cluster.wait_for(lambda: not objects(scene, JOB))


def test_quota_that_comes_is_used_and_one_that_goes_is_told(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, beside: ThreadPoolExecutor
) -> None:
    works.use_profile(monkeypatch, tmp_path, queue="mmbert-h100")
    plan = works.plan_of("select")
    scene.cluster.quota("mmbert-h100", admits=False, message="full")
    scene.runs = [Run(seconds=FOREVER, stopped=130), works_then(scene, plan)]
    start = beside.submit(scene.launch, plan)
    wait_for(lambda: "waits for quota in queue mmbert-h100: full" in scene.told)
    scene.cluster.quota("mmbert-h100", admits=True)
    wait_for(lambda: [text for text in scene.told if text.startswith("runs: pod ")])
    scene.cluster.evict_queue("mmbert-h100")
    assert start.result(20).uri == plan.uri
    assert len(scene.played) == 2


def test_pods_that_the_cluster_does_not_take_are_told_with_its_reason(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = works.PROFILE.replace("service_account: mmbert-component", "service_account: nobody")
    works.use_profile(monkeypatch, tmp_path, text, pending=0.02)
    with pytest.raises(InfrastructureError, match=r'waits for its pods, and the cluster says: .*"?nobody"? not found'):
        scene.launch(works.plan_of("select"))


def test_an_image_that_cannot_be_pulled_is_named(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "IMAGE_SECONDS", 0.5)
    scene.runs = [Run(reason="ImagePullBackOff", message="Back-off pulling image: unauthorized")]
    name = f"registry.example/mmbert-eval@{works.DIGEST}"
    with pytest.raises(InfrastructureError) as ended:
        scene.launch(works.plan_of("select"))
    wait = f"image {name} cannot be pulled (ImagePullBackOff): Back-off pulling image: unauthorized"
    assert str(ended.value) == f"{wait} (for 0.5 s); check its name, and the registry"
    assert wait in scene.told
    scene.cluster.wait_for(lambda: not objects(scene, JOB))


def test_a_secret_that_is_missing_may_come(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "IMAGE_SECONDS", 0.5)
    scene.runs = [Run(reason="CreateContainerConfigError", message='secret "s" not found')]
    wait = r'pod mmbert-.* cannot be started \(CreateContainerConfigError\): secret "s" not found'
    with pytest.raises(UserError, match=wait + r" \(for 0.5 s\); create what it names in the namespace"):
        scene.launch(works.plan_of("select"))
    assert [text for text in scene.told if text.endswith('secret "s" not found')]
    scene.cluster.wait_for(lambda: not objects(scene, JOB))


@pytest.mark.parametrize("reason", ["InvalidImageName", "ErrImageNeverPull"])
def test_a_container_that_can_never_start_ends_at_once(scene: Scene, reason: str) -> None:
    scene.runs = [Run(reason=reason, message="the kubelet's words")]
    with pytest.raises(UserError, match=rf"cannot be started \({reason}\): the kubelet's words"):
        scene.launch(works.plan_of("select"))
    scene.cluster.wait_for(lambda: not objects(scene, JOB))


def test_what_stops_the_task_deletes_its_object(scene: Scene) -> None:
    scene.runs = [Run(seconds=FOREVER, stopped=130)]

    def stop() -> None:
        raise KeyboardInterrupt

    scene.called["runs: pod "] = stop
    with pytest.raises(KeyboardInterrupt):
        scene.launch(works.plan_of("select"))
    scene.cluster.wait_for(lambda: not objects(scene, JOB) and not scene.cluster.pods())


WORKER = """
import sys
from components import launchers
from tests.kubernetes import works
launchers.launch(works.plan_of("select"), works.PLACE, "select", lambda text: print(text, flush=True))
"""


def test_a_worker_that_is_killed_leaves_its_job_to_the_next_attempt(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, go_on = works.plan_of("select"), threading.Event()
    scene.runs = [held(scene, plan, go_on, "first", "last")]
    passed = {name: value for name, value in os.environ.items() if name.startswith(("MMBERT_", "KUBECONFIG"))}
    environment = clean_environment() | passed | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-P", "-c", WORKER], env=environment, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        for line in worker.stdout:
            if line.startswith("runs: pod "):
                break
        worker.send_signal(signal.SIGKILL)
    assert scene.names
    threading.Timer(0.2, go_on.set).start()
    scene.launch(plan)
    assert len(scene.played) == 1
    said = capsys.readouterr().out
    assert "runs already; waiting for it" in said
    assert [line for line in said.splitlines() if line in ("first", "last")] == ["first", "last"]


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    works.use_profile(monkeypatch, tmp_path)
    monkeypatch.setenv("MMBERT_LAUNCHER", "kubernetes")
    monkeypatch.setattr(launchers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"the package kubernetes is not installed here; start it from the orch"):
        launchers.launch(works.plan_of("select"), works.PLACE, "select")


def test_the_manifest_is_printed_for_review(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    works.use_profile(monkeypatch, tmp_path)
    line = [sys.executable, "-P", "-m", "components.cli", "kubernetes", "manifest", "train", "--fingerprint=abcdef0123"]
    line += ["--recipe=tiny", "--phase=pretrain", "--root=s3://b/r"]
    line += [f"--{name}=s3://b/r/{name}/1" for name in ("mixture", "shards", "tokenizer", "documents")]
    passed = {name: value for name, value in os.environ.items() if name.startswith("MMBERT_")}
    ended = subprocess.run(
        line, env=clean_environment() | passed | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "&id" not in ended.stdout
    job, service = yaml.safe_load_all(ended.stdout)
    as_json = CliRunner().invoke(cli, [*line[4:], "--json"], catch_exceptions=False)
    assert json.loads(as_json.stdout)["items"] == [job, service]
    assert (job["kind"], service["kind"]) == ("Job", "Service")
    assert job["metadata"]["annotations"]["mmbert.dev/uri"] == "s3://b/r/checkpoint/abcdef0123"
