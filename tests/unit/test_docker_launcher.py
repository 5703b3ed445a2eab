"""What a container is created with: what it sees of this machine and gets of it, without an engine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components import planning, steps
from components.contract import get_component
from components.launchers import docker, work

THREADS = "threads: {small: 1, data: 1, train: 3, eval: 1}"


def settings(root: str, *overrides: str, preset: str = "tiny", component: str = "recipe", **arguments: str) -> Any:
    given: dict[str, Any] = {"preset": preset, "overrides": list(overrides)}
    plan = planning.plan(get_component("recipe"), given, root)
    if component != "recipe":
        plan = planning.Plan(get_component(component), {**given, **arguments}, {}, {}, "fingerprint", f"{root}/x")
    return docker._settings(plan, ["run"], root, SimpleNamespace(id="sha256:0"), 4)


def mounted(made: Any) -> dict[str, bool]:
    return {mount["Target"]: mount["ReadOnly"] for mount in made["mounts"]}


def test_files_that_recipe_and_profile_name_are_mounted_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile, scorer = tmp_path / "mine.yaml", tmp_path / "quality.bin"
    profile.write_text(THREADS)
    scorer.touch()
    monkeypatch.setenv("MMBERT_PROFILE", "mine.yaml")
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text"
    text.mkdir()
    made = settings(
        str(tmp_path / "root"),
        f"sources={{own: {{kind: files, path: {text}, held_out_share: 0.1}}, all: {{kind: files, path: /srv, "
        "held_out_share: 0.1}}",
        f"curation.quality_classifier={{scorer: 'fasttext:{scorer}#good', min_score: 0.5}}",
    )
    expected = {str(text): True, "/srv": True, str(scorer): True, str(profile): True, str(tmp_path / "root"): False}
    assert expected.items() <= mounted(made).items()
    assert made["environment"]["MMBERT_PROFILE"] == str(profile)
    assert made["working_dir"] == "/work"


def test_a_preset_is_a_name_and_a_relative_recipe_is_read_where_the_workflow_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert str(tmp_path / "tiny") not in mounted(settings("s3://bucket/root"))
    from mmbert.recipe import load_recipe, recipe_to_yaml

    (tmp_path / "mine.yaml").write_text(recipe_to_yaml(load_recipe("tiny")))
    made = settings("s3://bucket/root", preset="mine.yaml")
    assert mounted(made)[str(tmp_path / "mine.yaml")]
    assert made["working_dir"] == str(tmp_path)


def test_only_what_components_read_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = {"AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN", "MMBERT_WORKFLOW_RUN"}
    kept = {
        "MMBERT_KFP_TOKEN",
        "MMBERT_NOTIFIERS",
        "AWS_PROFILE",
        "HF_HOME",
        "AIRFLOW__CORE__FERNET_KEY",
        "GITHUB_TOKEN",
    }
    for name in passed | kept:
        monkeypatch.setenv(name, f"canary of {name}")
    environment = settings("s3://bucket/root")["environment"]
    assert passed <= environment.keys()
    assert not [name for name in kept if f"canary of {name}" in environment.values()]


def test_its_share_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = tmp_path / "mine.yaml"
    monkeypatch.setenv("MMBERT_PROFILE", str(profile))

    def given(text: str) -> Any:
        profile.write_text(f"{THREADS}\n{text}")
        docker.profiles._profile.cache_clear()
        return settings("s3://bucket/root", component="train", phase="decay")

    assert given("memory: {train: 1.5, train.decay: 2}")["mem_limit"] == 2 * 2**30
    assert given("processes: {train: 1}")["nano_cpus"] == 3 * 10**9
    assert given("processes: {train: 2}")["nano_cpus"] == 4 * 10**9  # the engine has no more
    assert "mem_limit" not in given("")
    for text in ("processes: {train: gpus}", "gpus: {train: true}"):
        made = given(text)
        assert made["device_requests"][0]["Count"] == -1
        assert "nano_cpus" not in made


def test_work_for_two_stores_has_two_names(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planning.plan(get_component("recipe"), {"preset": "tiny", "overrides": []}, "s3://mmbert/artifacts")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    one = work.object_name(plan, work.store())
    assert one == work.object_name(plan, work.store())
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:2")
    assert one != work.object_name(plan, work.store())


def test_a_relative_root_is_the_folder_that_the_workflow_was_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    roots = []

    def launched(plan: planning.Plan, root: str, task: str, tell: Any) -> Any:
        roots.extend((root, plan.uri))
        raise KeyboardInterrupt

    monkeypatch.setattr(steps.launchers, "launch", launched)
    with pytest.raises(KeyboardInterrupt):
        steps.run_step("recipe", {"preset": "tiny", "overrides": []}, root="out", task="recipe", workflow_run="x")
    assert roots[0] == str(tmp_path / "out")
    assert roots[1].startswith(f"{tmp_path}/out/recipe/")
