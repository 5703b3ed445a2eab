"""Components: everything made from the entry function agrees with it; fingerprints cover what decides a result."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from components import planning
from components.code import code_digest
from components.contract import check_arguments, component_names, get_component
from components.documents import component_yaml, generate_all
from components.launchers import command_line
from components.workflows import WORKFLOWS
from mmbert import artifacts
from mmbert.errors import UserError
from mmbert.recipe import load_recipe, recipe_to_yaml


def test_there_are_all_the_components() -> None:
    wanted = {
        "recipe",
        "import_checkpoint",
        "curate",
        "tokenizer",
        "tokenize",
        "mixture",
        "train",
        "merge",
        "convert",
        "evaluate",
        "data_report",
        "report",
        "promote",
        "register",
        "select",
        "trend",
        "languages_recipe",
        "languages_check",
        "languages_report",
    }
    assert set(component_names()) == wanted


def test_generated_files_are_what_the_contracts_say() -> None:
    assert generate_all(check=True) == []


@pytest.mark.parametrize("name", component_names())
def test_every_parameter_stands_in_component_yaml(name: str) -> None:
    item = get_component(name)
    document = yaml.safe_load(component_yaml(item))
    assert {i["name"] for i in document["inputs"]} == {p.name for p in item.parameters} | {"root"}
    assert document["implementation"]["container"]["command"] == ["mmbert", "run", name]


def test_contracts_are_read_without_heavy_libraries() -> None:
    code = (
        "import sys; from components.contract import *; [get_component(n) for n in component_names()];"
        "import components.steps, components.workflows;"
        "heavy = 'torch composer streaming transformers datatrove sklearn plotly pandas mlflow'.split();"
        "print([m for m in heavy if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_graph_uses_parameters_that_exist() -> None:
    """Every call of the workflow fits its component's signature."""
    calls: list[tuple[str, dict[str, Any]]] = []

    class Recorder:
        def run(self, component: str, *, task: str = "", **arguments: Any) -> str:
            calls.append((component, arguments))
            return f"uri-of-{task or component}"

        def map(self, component: str, *, over: dict[str, Any], task: str = "", **arguments: Any) -> list[str]:
            pairs = itertools.product(*over.values())
            return [self.run(component, task=task, **dict(zip(over, p, strict=True)), **arguments) for p in pairs]

        def output(self, handle: str, name: str) -> list[str]:
            return ["first", "second"]

    for name, workflow in WORKFLOWS.items():
        workflow(Recorder(), "tiny", [], **({"model": "a/model"} if name == "add_languages" else {}))
    assert {name for name, _ in calls} == set(component_names())
    for name, arguments in calls:
        check_arguments(get_component(name), arguments)


def plan_of(tmp_path: Path, *overrides: str, component: str = "curate", **arguments: Any) -> planning.Plan:
    path = tmp_path / f"{abs(hash(overrides))}.yaml"
    from mmbert.recipe import recipe_to_yaml

    path.write_text(recipe_to_yaml(load_recipe("tiny", overrides)), "utf-8")
    return planning.plan(get_component(component), {"recipe": str(path), **arguments}, str(tmp_path))


def test_the_same_work_has_one_fingerprint(tmp_path: Path) -> None:
    one = plan_of(tmp_path, group="0")
    assert one.fingerprint == plan_of(tmp_path, group="0").fingerprint
    assert one.fingerprint != plan_of(tmp_path, group="1").fingerprint
    assert one.uri == f"{tmp_path}/documents/{one.fingerprint}"


def test_only_declared_recipe_keys_change_a_fingerprint(tmp_path: Path) -> None:
    one = plan_of(tmp_path, group="0")
    assert plan_of(tmp_path, "phases.pretrain.learning_rate=1e-3", group="0").fingerprint == one.fingerprint
    assert plan_of(tmp_path, "curation.min_characters=11", group="0").fingerprint != one.fingerprint


@pytest.fixture
def training_inputs(tmp_path: Path) -> dict[str, Any]:
    for kind in ("mixture", "tokenizer", "shards", "documents"):
        artifacts.ArtifactWriter(str(tmp_path / kind), kind, kind, {}, {}).commit({})
    one, several = (("mixture", "tokenizer"), ("shards", "documents"))
    return {kind: str(tmp_path / kind) for kind in one} | {kind: [str(tmp_path / kind)] for kind in several}


def test_operational_keys_are_read_but_change_no_fingerprint(tmp_path: Path, training_inputs: dict[str, Any]) -> None:
    def name(*overrides: str) -> str:
        return plan_of(tmp_path, *overrides, component="train", phase="pretrain", **training_inputs).fingerprint

    one = name()
    for same in ("workers=3", "cache_gb=0.5", "keep_checkpoints=7", "checkpoint_tokens=9k", "log_every=1"):
        assert name(f"training.{same}") == one
    # What an out-of-memory error asks to lower, and what decides an undigested file only.
    for same in ("phases.pretrain.batch.microbatch_size=1", "evaluation.bits_per_byte_bytes_per_language=9"):
        assert name(same) == one
    assert name("training.shuffle_tokens=17k") != one
    assert name("phases.pretrain.batch.global_batch_size=64") != one
    view = planning.declared_recipe(get_component("train"), load_recipe("tiny"), {"phase": "pretrain"})
    assert view.training.workers == 0
    assert view.phases.pretrain.batch.microbatch_size > 1


def test_a_training_s_fingerprint_covers_bad_batches_as_far_as_they_change_weights(
    tmp_path: Path, training_inputs: dict[str, Any]
) -> None:
    def name(policy: str) -> str:
        override = f"training.bad_batches={{{policy}}}"
        return plan_of(tmp_path, override, component="train", phase="pretrain", **training_inputs).fingerprint

    assert name("spike: stop, max_skipped: 3") == name("spike: skip, nan: skip") != name("spike: ignore")
    assert name("spike: ignore, spike_sigmas: 2, spike_window: 9") == name("nan: skip") == name("")
    assert name("spike: skip, spike_sigmas: 2") != name("spike: skip") != name("spike: skip, spike_window: 9")


def test_snapshots_count_in_the_decay_phase_alone(tmp_path: Path, training_inputs: dict[str, Any]) -> None:
    def name(phase: str, snapshots: int) -> str:
        override = f"merge.snapshots={snapshots}"
        return plan_of(tmp_path, override, component="train", phase=phase, **training_inputs).fingerprint

    assert name("pretrain", 1) == name("pretrain", 4)
    assert name("decay", 1) != name("decay", 4)


def test_reading_an_undeclared_key_is_an_error() -> None:
    item = get_component("train")
    view = planning.declared_recipe(item, load_recipe("tiny"), {"phase": "extend"})
    assert view.phases.extend.tokens == load_recipe("tiny").phases.extend.tokens
    with pytest.raises(AttributeError, match=r"'train' reads recipe key 'phases\.decay' without declaring it"):
        _ = view.phases.decay.tokens
    with pytest.raises(AttributeError, match="reads recipe key 'curation'"):
        _ = view.curation


def test_inputs_of_the_wrong_kind_are_named(tmp_path: Path) -> None:
    writer = artifacts.ArtifactWriter(str(tmp_path / "x"), "shards", "x", {}, {})
    writer.commit({})
    with pytest.raises(UserError, match=r"--documents .*this is a shards artifact; it takes documents"):
        plan_of(tmp_path, component="tokenize", documents=writer.uri, tokenizer=writer.uri)


def test_a_missing_argument_is_named() -> None:
    with pytest.raises(UserError, match="needs --documents"):
        check_arguments(get_component("tokenize"), {"recipe": "tiny"})
    with pytest.raises(UserError, match="it must be one of pretrain, extend, decay"):
        check_arguments(get_component("mixture"), {"recipe": "tiny", "shards": ["x"], "phase": "warmup"})
    # As a form that was left empty sends it.
    with pytest.raises(UserError, match="needs --source"):
        check_arguments(get_component("import_checkpoint"), {"recipe": "r", "source": "", "phase": "extend"})


def test_an_empty_folder_is_told_from_one_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, said in (("empty", "no file is in this folder"), ("missing", "no such file or folder")):
        with pytest.raises(UserError, match=f"{name}: {said}"):
            plan_of(tmp_path, component="import_checkpoint", source=str(tmp_path / name), phase="extend", then="next")


def test_lists_pass_through_the_command_line(tmp_path: Path) -> None:
    item = get_component("merge")
    checked = check_arguments(item, {"recipe": "r", "checkpoints": ["a", ["b", "c"]], "base": "d"})
    line = command_line(item, checked, "s3://b/r", "merge")
    assert [line[i + 1] for i, word in enumerate(line) if word == "--checkpoints"] == ["a", "b", "c"]
    assert check_arguments(item, {"recipe": "r", "checkpoints": json.dumps(["a", "b"]), "base": "d"})[
        "checkpoints"
    ] == ["a", "b"]


def test_an_edited_recipe_file_is_another_recipe(tmp_path: Path) -> None:
    from mmbert.recipe import recipe_to_yaml

    path = tmp_path / "mine.yaml"
    plans = []
    for seed in ("1", "2"):
        path.write_text(recipe_to_yaml(load_recipe("tiny", [f"seed={seed}"])), "utf-8")
        plans.append(planning.plan(get_component("recipe"), {"preset": str(path)}, str(tmp_path)))
    assert plans[0].fingerprint != plans[1].fingerprint
    assert plans[0].arguments["overrides"] == []


def test_changed_text_of_ones_own_is_seen(tmp_path: Path) -> None:
    text = tmp_path / "text" / "eng_Latn" / "a.txt"
    text.parent.mkdir(parents=True)
    override = f"sources={{own: {{kind: files, path: {tmp_path / 'text'}}}}}"
    fingerprints = []
    for content in ("one line", "one line\nand another"):
        text.write_text(content, "utf-8")
        fingerprints.append(plan_of(tmp_path, override, group="0").fingerprint)
    assert fingerprints[0] != fingerprints[1]


@pytest.mark.parametrize(
    ("source", "beside"),
    [
        ("run/composer/ep0-ba8-rank0.pt", "run/training_state.json"),
        ("run/ep0-ba8-rank0.pt", "run/training_state.json"),
        ("run/weights.safetensors", "run/training_state.json"),
        ("run/weights.safetensors", "run/optimizer.safetensors"),
        ("run/model.safetensors", "run/config.json"),
    ],
)
def test_a_changed_file_beside_an_imported_checkpoint_is_seen(tmp_path: Path, source: str, beside: str) -> None:
    path = tmp_path / source
    path.parent.mkdir(parents=True)
    path.touch()
    fingerprints = []
    for content in ("", "{}", '{"phase": "extend"}'):
        if content:
            (tmp_path / beside).write_text(content, "utf-8")
        made = plan_of(tmp_path, component="import_checkpoint", source=str(path), phase="pretrain", then="next")
        fingerprints.append(made.fingerprint)
    assert len(set(fingerprints)) == 3


def test_the_page_for_others_names_every_component_with_its_image() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "reuse.md").read_text("utf-8")
    for item in map(get_component, component_names()):
        assert f"| `{item.name}` | mmbert-{item.image} | {item.produces} |" in page


def test_a_components_outputs_are_written_into_files(tmp_path: Path) -> None:
    files = {name: tmp_path / "made" / name for name in ("uri", "variants", "suites")}
    words = [word for name, path in files.items() for word in ("--output", name, str(path))]
    command = [sys.executable, "-m", "components.cli", "run", "recipe", "--preset", "tiny", "--root", str(tmp_path)]
    more = ("--expect", "suites", '["demo"]', "--workflow-run", "the run")
    subprocess.run([*command, *words, *more], check=True, capture_output=True)
    made = artifacts.open_artifact(files["uri"].read_text(), "recipe")
    assert made.outputs["variants"] == json.loads(files["variants"].read_text())
    assert made.manifest.producer["workflow_run"] == "the run"
    found = subprocess.run([*command, "--expect", "groups", '["0"]'], check=False, capture_output=True, text=True)
    assert found.returncode == 2
    assert "the recipe's groups are" in found.stderr
    assert "compile the pipeline again" in found.stderr


def test_one_call_does_each_item_of_a_list(tmp_path: Path) -> None:
    files = {name: tmp_path / "made" / name for name in ("uri", "suites")}
    words = [word for name, path in files.items() for word in ("--output", name, str(path))]
    command = [sys.executable, "-m", "components.cli", "run", "recipe", "--root", str(tmp_path), "--each", "preset"]
    other = tmp_path / "other.yaml"
    other.write_text(recipe_to_yaml(load_recipe("tiny", ["seed=7"])), "utf-8")
    presets = ("--preset", json.dumps(["tiny", str(other), "tiny"]))
    said = subprocess.run([*command, *presets, *words], check=True, capture_output=True, text=True).stdout
    uris = json.loads(files["uri"].read_text())
    made = [artifacts.open_artifact(uri, "recipe") for uri in uris]
    assert json.loads(files["suites"].read_text()) == [one.outputs["suites"] for one in made]
    assert uris[0] == uris[2] != uris[1]
    assert [one["uri"] for one in json.loads(said.splitlines()[-1])] == uris
    found = subprocess.run([*command, "--preset", "tiny"], check=False, capture_output=True, text=True)
    assert (found.returncode, "--preset tiny: with --each preset it is a JSON list" in found.stderr) == (2, True)


def test_a_workflow_run_that_a_server_did_not_fill_in_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "components.cli", "run", "recipe", "--preset", "tiny", "--root", str(tmp_path)]
    given = ("--workflow-run", "{{$.pipeline_job_uuid}}")
    found = subprocess.run([*command, *given], check=False, capture_output=True, text=True)
    assert found.returncode == 2
    assert "--workflow-run {{$.pipeline_job_uuid}}: the Kubeflow Pipelines server did not fill this in" in found.stderr
    assert not list(tmp_path.iterdir())


def test_a_step_of_other_code_than_its_workflow_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "components.cli", "run", "recipe", "--preset", "tiny", "--root", str(tmp_path)]
    own = {"MMBERT_IMAGE": "mmbert-data:v7", "MMBERT_COMMIT": "bbb"}
    for given, code in ((code_digest(), 0), ("0" * 64, 2)):
        environment = {**os.environ, **own, "MMBERT_CODE": f"{given} aaa"}
        found = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        assert found.returncode == code
    assert "mmbert-data:v7 is of commit bbb, and the workflow was compiled of other code, of commit aaa" in found.stderr
