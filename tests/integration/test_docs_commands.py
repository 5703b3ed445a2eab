"""The commands of README.md and docs/*.md as they stand there, page by page, against a small project.

What has no mark (tests/pages.py) is run, the stack's own commands in test_local_stack.py. STAND_INS says what is given
in place of a page's placeholders, addresses and large inputs. Components run in this process.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import zstandard
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from components import launchers
from components.cli import _exit_code, cli
from components.local import LocalRunner, run_workflow
from mmbert import storage
from mmbert.evaluation.results.store import history, record
from mmbert.evaluation.suites.sentences import PAWSX, PAWSX_LANGUAGES, XNLI_LANGUAGES
from mmbert.recipe import load_recipe, recipe_to_yaml
from tests.fixtures_stack import ROOT, S3, MlflowServer, clean_environment
from tests.hub_server import TOKEN, HubServer
from tests.kubeflow_server import KubeflowServer
from tests.pages import Block, all_blocks, run_by_tests
from tests.sentence_data import texts, write_glue, write_pairs
from tests.small_run import WHOLE_WORKFLOW, own_text, run_here
from tests.suite_data import tiny_model

ORIGINAL = ROOT / "tests" / "fixtures" / "original"
NAME = "mmbert-documented"
SMALL = (
    *WHOLE_WORKFLOW, "phases.decay.variants={everything: {languages: all}}", f"name={NAME}",
    f"release.model_name={NAME}", "training.permanent_checkpoint_tokens=12k",
)  # fmt: skip
SHAPE_OF_THE_ORIGINAL = (
    "model.vocab_size=768", "model.hidden_size=64", "model.intermediate_size=96", "model.num_hidden_layers=7",
    "model.num_attention_heads=4",
)  # fmt: skip
QUICK = "--seeds 1 --bootstrap-samples 20 --set epochs=1 --set 'learning_rates=[1e-3]' --set max_length=24 --device cpu"
SWAHILI = "watu wote wamezaliwa huru hadhi na haki zao ni sawa wamejaliwa akili dhamiri hivyo yapasa"


@dataclass(frozen=True)
class Project:
    """A folder with a recipe and its text, and a store with a whole run of it and MLflow's registry.

    `environment` is what `make env` prints of them.
    """

    folder: Path
    environment: dict[str, str]
    store: str
    runner: LocalRunner
    bucket_folder: Path
    kubeflow: str
    password: str

    @property
    def recipe(self) -> str:
        return str(self.folder / "small.yaml")

    @property
    def bucket(self) -> str:
        return self.store.rpartition("/")[0]

    def made(self, task: str) -> str:
        """The store's artifact of this task."""
        return next(step.uri for name, step in self.runner.steps if name == task)

    @property
    def permanent(self) -> str:
        folder = f"{self.made('train_pretrain')}/permanent"
        return f"{folder}/{storage.list_files(folder)[0].split('/')[0]}"


@contextlib.contextmanager
def environment(changes: dict[str, str]) -> Iterator[None]:
    """Nothing that steers the commands but these."""
    with mock.patch.dict(os.environ, clean_environment() | changes, clear=True):
        storage.s3_client.cache_clear()
        yield
    storage.s3_client.cache_clear()


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, s3_server: S3, own_mlflow: MlflowServer, hub: HubServer
) -> Iterator[Project]:
    folder, kubeflow = tmp_path_factory.mktemp("project"), KubeflowServer()
    store = f"{s3_server.make_bucket('documented')}/artifacts"
    (folder / "small.yaml").write_text(
        recipe_to_yaml(load_recipe("tiny", [*SMALL, own_text(folder, most=150)])), "utf-8"
    )
    login = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": own_mlflow.password}
    stack = s3_server.environment | login | {"MLFLOW_TRACKING_URI": own_mlflow.uri, "MMBERT_ROOT": store}
    here = {"MMBERT_LAUNCHER": "here", "MMBERT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    with pytest.MonkeyPatch.context() as patch, environment(here):
        patch.setitem(launchers.LAUNCHERS, "here", run_here)
        # The server speaks the LFS protocol, which the client falls back to where its newer one is off.
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        with environment({**here, **stack}):
            runner = run_workflow("pretrain", str(folder / "small.yaml"), [], store, "the whole run")
        bucket = s3_server.folder / "documented"
        yield Project(folder, stack, store, runner, bucket, kubeflow.url, own_mlflow.password)
    kubeflow.stop()


def lines_of(code: str) -> list[str]:
    text = resources.files("eld").joinpath("tests/data/big-test.txt").read_text("utf-8")
    return [line.partition("\t")[2] for line in text.splitlines() if line.startswith(f"{code}\t")]


def write_text(path: str, lines: list[str]) -> None:
    Path(path).parent.mkdir(parents=True)
    Path(path).write_text("\n".join(lines), "utf-8")


StandIns = list[tuple[str, str]]


def reach_store(project: Project) -> None:
    """As somebody whose environment leads to a store of their own, or who went through the local stack's page."""
    os.environ.update(project.environment)
    storage.s3_client.cache_clear()


def own_corpus(project: Project) -> StandIns:
    write_text("my-text/deu_Latn/news.txt", lines_of("de")[:150])
    write_text("my-text/fra_Latn/news.txt", lines_of("fr")[:150])
    rng = np.random.default_rng(3)
    made = "".join(f'{{"text": "{" ".join(rng.permutation(SWAHILI.split()))}."}}\n' for _ in range(100))
    Path("my-text/swh_Latn").mkdir()
    Path("my-text/swh_Latn/books.jsonl.zst").write_bytes(zstandard.compress(made.encode()))
    small = [key for key in WHOLE_WORKFLOW if ".languages=" not in key and "variants=" not in key]
    return [("--preset mine.yaml", f"--preset mine.yaml {shlex.join(f'--set={key}' for key in small)}")]


def adding_languages(project: Project) -> StandIns:
    write_text("my-text/ita_Latn/a.txt", lines_of("it")[:150])
    reach_store(project)
    return [("--preset tiny", f"--preset {project.recipe}"), ("MODEL", project.made("convert"))]


def checkpoints(project: Project) -> StandIns:
    Path("mine.yaml").write_text(recipe_to_yaml(load_recipe(project.recipe, SHAPE_OF_THE_ORIGINAL)), "utf-8")
    uploaded = f"{project.bucket}/ep0-ba4-rank0.pt"
    reach_store(project)
    storage.upload(uploaded, ORIGINAL / "ep0-ba8-rank0.pt")
    return [
        (" ep0-ba8-rank0.pt", f" {ORIGINAL / 'ep0-ba8-rank0.pt'}"),
        (" tokenizer/ --max-seq-len 8192", f" {ORIGINAL / 'tokenizer'} --max-seq-len 128"),
        ("SOURCE OUT", f"{ORIGINAL / 'ext' / 'ep0-ba2-rank0.pt'} OUT"),
        ("s3://bucket/ep0-ba4-rank0.pt", uploaded),
    ]


def data_report(project: Project) -> StandIns:
    reach_store(project)
    uris = {"documents": "curate", "shards": "tokenize", "mixtures": "mixture_pretrain"}
    return [("--recipe tiny", f"--recipe {project.recipe}")] + [
        (f"--{name} URI", f"--{name} {project.made(task)}") for name, task in uris.items()
    ]


def evaluation(project: Project) -> StandIns:
    write_glue(Path("mirror"), ("cola",), train=16, tested=8)
    reach_store(project)
    return [
        ("MODEL", str(tiny_model(Path("tiny-model").absolute(), texts()).path)),
        ("NAME --out OUT", f"glue --out glue-scores --data-root mirror --tasks cola {QUICK}"),
        ("demo --out OUT", "demo --out demo-scores"),
        ("DOCUMENTS", project.made("curate")),
    ]


def suites(project: Project) -> StandIns:
    write_glue(Path("mirror"), train=16, tested=8)
    write_pairs(Path("mirror"), "facebook/xnli", ("premise", "hypothesis"), 3, XNLI_LANGUAGES)
    write_pairs(Path("mirror"), PAWSX.repo, ("sentence1", "sentence2"), 2, PAWSX_LANGUAGES)
    return [
        ("MODEL", str(tiny_model(Path("tiny-model").absolute(), texts()).path)),
        ("--out OUT --data-root MIRROR", f"--out glue-scores --data-root mirror {QUICK}"),
        ("--out OUT", "--out xtreme-scores --data-root mirror --set max_length=24 --bootstrap-samples 20"),
    ]


def gate(project: Project) -> StandIns:
    return [("NAME", NAME), ("--version V", "--version 1")]


def kubeflow(project: Project) -> StandIns:
    return [
        ("https://kfp.example", project.kubeflow), ("s3://bucket/artifacts", project.store),
        ("--set KEY=VALUE", "--set seed=7"),
    ]  # fmt: skip


def lineage(project: Project) -> StandIns:
    with environment({**os.environ, **project.environment, "MMBERT_WORKFLOW_RUN": "local 2026-11-28 22:09:12"}):
        mmbert(f"run recipe --preset {project.recipe} --overrides seed=9")
    return [("mmbert-tiny", NAME), ("udhr", "own")]


def local_stack(project: Project) -> StandIns:
    return [
        ("PASSWORD", project.password), ("http://127.0.0.1:5500", project.environment["MLFLOW_TRACKING_URI"]),
    ]  # fmt: skip


def merging(project: Project) -> StandIns:
    Path("ext").mkdir()
    Path("eng.pt").symlink_to(ORIGINAL / "ep0-ba8-rank0.pt")
    Path("cont.pt").symlink_to(ORIGINAL / "default_init" / "ep0-ba8-rank0.pt")
    Path("ext/ep0-ba8-rank0.pt").symlink_to(ORIGINAL / "ext" / "ep0-ba2-rank0.pt")
    mmbert("merge --method linear eng.pt cont.pt --out all.pt")
    for number in (1, 2, 3):
        path = tiny_model(Path(f"snapshot-{number}").absolute(), texts()).path / "model.safetensors"
        weights = {name: value * number for name, value in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})
    return [("--out merged --decay", "--out averaged --decay")]


def mixture(project: Project) -> StandIns:
    Path("counts.csv").write_text("language,tokens\neng,2T\ndeu,500B\nfao,900M\n", "utf-8")
    return []


def planning(project: Project) -> StandIns:
    Path("mine.yaml").write_text(recipe_to_yaml(load_recipe("small", ["name=mine"])), "utf-8")
    return []


def publishing(project: Project) -> StandIns:
    return [
        (
            "mmbert-small/3 --repo ... --checkpoints-repo ...",
            f"{NAME}/1 --repo lab/documented --checkpoints-repo lab/kept",
        ),
        ("HF_TOKEN=...", f"HF_TOKEN={TOKEN}"),
        ("publish mmbert-small", f"publish {NAME}"),
    ]


def whole_run(project: Project) -> StandIns:
    """The page's workflow is the one that made the store, and is found done."""
    reach_store(project)
    return [("pretrain --preset tiny --root out", f"pretrain --preset {project.recipe} --root {project.store}")]


def readme(project: Project) -> StandIns:
    return [*whole_run(project), ("--recipe tiny", f"--recipe {project.recipe}")]


def quick_start(project: Project) -> StandIns:
    Path(".local/s3").mkdir(parents=True)
    Path(".local/s3/mmbert").symlink_to(project.bucket_folder)
    return whole_run(project)


def reevaluation(project: Project) -> StandIns:
    return [
        ("--preset tiny", f"--preset {project.recipe}"), ("--set KEY=VALUE", "--set evaluation.bootstrap_samples=50"),
        ("--model 7", "--model 1"),
    ]  # fmt: skip


def results(project: Project) -> StandIns:
    reach_store(project)
    scored = next(card for card in history(project.store) if card.model_digest)
    record("out", scored)
    return [
        ("s3://bucket/artifacts", project.store), ("--suite xtreme", "--suite demo"),
        ("--model 5f0c", f"--model {scored.model_digest[:4]}"), ("mmbert-tiny", NAME),
        ("compare A B", f"compare {NAME}/1 {project.made('evaluate_untrained')}"),
    ]  # fmt: skip


def security(project: Project) -> StandIns:
    with zipfile.ZipFile("osv-pypi.zip", "w") as file:
        file.writestr("GHSA-1.json", '{"id": "GHSA-1", "affected": []}')
    return [("osv-pypi.zip", str(Path("osv-pypi.zip").absolute()))]


def training(project: Project) -> StandIns:
    reach_store(project)
    given = {"recipe": "recipe", "mixture": "mixture_pretrain", "shards": "tokenize", "tokenizer": "tokenizer"}
    data = {f"--{name}": project.made(task) for name, task in (given | {"documents": "curate"}).items()}
    again = " ".join(f"{option} {uri}" for option, uri in data.items())
    return [
        ("--recipe RECIPE", f"--root {project.store} --recipe {data['--recipe']}"),
        *((f"{option} URI", f"{option} {uri}") for option, uri in data.items() if option != "--recipe"),
        ("s3://bucket/checkpoint/FINGERPRINT/permanent/000000120000", project.permanent),
        ("OUT_DIR --tokenizer DIR", f"converted --tokenizer {data['--tokenizer']}"),
        (" ...", f" --phase pretrain {again}"),
    ]


STAND_INS: dict[str, Callable[[Project], StandIns]] = {
    "README.md": readme,
    "docs/adding-languages.md": adding_languages,
    "docs/checkpoints.md": checkpoints,
    "docs/data-report.md": data_report,
    "docs/evaluation.md": evaluation,
    "docs/gate.md": gate,
    "docs/kubeflow.md": kubeflow,
    "docs/lineage.md": lineage,
    "docs/local-stack.md": local_stack,
    "docs/merging.md": merging,
    "docs/mixture.md": mixture,
    "docs/own-corpus.md": own_corpus,
    "docs/planning.md": planning,
    "docs/publishing.md": publishing,
    "docs/quick-start.md": quick_start,
    "docs/reevaluation.md": reevaluation,
    "docs/results.md": results,
    "docs/security.md": security,
    "docs/suites.md": suites,
    "docs/training.md": training,
}
NAMES = {
    "docs/deduplication.md": {
        "texts": ["the same text of some words", "the same text of some words", "another one here"]
    },
    "docs/original.md": {"documents": [np.arange(1, 400) for _ in range(40)]},
}
"""What an example in Python takes as given."""

SLOW = re.compile(r"mmbert (workflow pretrain --preset mine\.yaml|kfp (compile|submit reeval)|evaluate .* xtreme )")
"""Of each of these there is another command that is run, or another test. A slow test runs their pages whole."""


def mmbert(words: str) -> str:
    """What the command prints. Fails unless it ends with 0."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = _exit_code(lambda: cli(shlex.split(words), standalone_mode=False, prog_name="mmbert"))
    assert code == 0, f"mmbert {words}\n{out.getvalue()[-3000:]}{error.getvalue()[-3000:]}"
    return out.getvalue()


def run_in_shell(command: str) -> None:
    script = (
        f'mmbert() {{ {ROOT}/.venv/bin/mmbert "$@"; }}; make() {{ command make -o setup -C {ROOT} "$@"; }}; {command}'
    )
    ended = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{command}\n{ended.stdout[-3000:]}{ended.stderr[-3000:]}"


def whole(command: str) -> str:
    """With all that stands in brackets, and of alternatives the first."""
    return re.sub(r"(?<= )\[([^\[\]]+)\]", lambda found: found[1].partition("|")[0], command)


def run_command(command: str, way: str, project: Project) -> None:
    if way == "environment":
        reach_store(project)
    elif way == "shell":
        run_in_shell(command)
    else:
        given, _, words = command.removeprefix(".venv/bin/").partition("mmbert ")
        words, _, file = words.partition(" > ")
        with mock.patch.dict(os.environ, dict(pair.split("=", 1) for pair in given.split())):
            printed = mmbert(words)
        if file:
            Path(file).write_text(printed, "utf-8")


def blocks_to_run() -> dict[str, list[Block]]:
    found: dict[str, list[Block]] = {}
    for block in all_blocks():
        if run_by_tests(block) or (block.python and not block.mark):
            found.setdefault(block.page, []).append(block)
    return found


def run_page(page: str, project: Project, leave_out: re.Pattern[str] | None) -> None:
    with environment(dict(os.environ)):
        stand_ins = STAND_INS[page](project) if page in STAND_INS else []
        unused = {old for old, _ in stand_ins}
        for block in blocks_to_run()[page]:
            if block.python:
                exec(compile(block.python, f"{page}:{block.line}", "exec"), dict(NAMES.get(page, {})))  # noqa: S102
            for command in run_by_tests(block):
                text = whole(command.text)
                for old, new in stand_ins:
                    unused -= {old} if old in text else set()
                    text = text.replace(old, new)
                if command.way != "stack" and not (leave_out and leave_out.match(command.text)):
                    run_command(text, command.way, project)
        assert not unused, f"{page} has no {', '.join(sorted(unused))} any more"


def test_what_is_prepared_is_for_pages_that_there_are() -> None:
    assert not STAND_INS.keys() - blocks_to_run().keys()


def test_a_workflow_tells_where_its_pages_and_its_model_are(project: Project) -> None:
    with environment({**os.environ, **project.environment}):
        places = project.runner.places()
        assert sorted(kind for kind, _ in places) == ["model", "page", "page"]
        assert all(storage.exists(place) for kind, place in places if kind == "page")
        assert "config.json" in storage.list_files(dict(places)["model"])


@pytest.mark.parametrize("page", blocks_to_run())
def test_the_commands_of_a_page_work(
    page: str, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(page, project, SLOW)


def has_slow(found: list[Block]) -> bool:
    return any(SLOW.match(command.text) for block in found for command in block.commands)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, found in blocks_to_run().items() if has_slow(found)])
def test_the_slow_commands_of_a_page_work_too(
    page: str, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(page, project, None)
