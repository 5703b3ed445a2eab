"""`mmbert publish`: from a version in a real MLflow registry to two repositories on a hub on loopback."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants, snapshot_download

from components.cli import _exit_code, cli
from mmbert.artifacts import Artifact, ArtifactWriter, fingerprint
from mmbert.errors import InfrastructureError, UserError
from mmbert.release import publishing
from mmbert.tracking import Registry, connect_registry
from tests.fixtures_stack import MlflowServer
from tests.hub_server import TOKEN, HubServer
from tests.scores import card, score

REPO, CHECKPOINTS = "lab/tiny", "lab/tiny-checkpoints"
PHASE = {
    "tokens": 1_000, "max_seq_len": 128, "mask_probability": 0.3, "temperature": 0.7, "learning_rate": 8e-4,
    "rope_theta": {"global_attention": 10_000.0, "local_attention": 10_000.0},
}  # fmt: skip
RECIPE = {
    "description": "A model of a test.",
    "model": {"vocab_size": 600, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4},
    "phases": {name: {**PHASE, "max_seq_len": 256 if name == "decay" else 128} for name in publishing._FOLDERS},
}
MERGE = {"method": "ties", "density": 0.5, "ema_decay": 0.5, "variants": []}


@dataclass
class Release:
    """A registered version and its model."""

    registry: Registry
    name: str
    version: str
    model: Artifact

    def plan(self) -> publishing.Publication:
        return publishing.plan(self.registry.version(self.name, self.version), REPO, CHECKPOINTS)

    def tag(self, **tags: str) -> None:
        self.registry.set_tags(self.name, self.version, {key.replace("__", "."): value for key, value in tags.items()})


class Maker:
    """Makes artifacts below a folder, with files and inputs as given."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(
        self, kind: str, files: Mapping[str, Any], component: str = "", outputs: Any = None, recipe: Any = None,
        **inputs: list[Artifact],
    ) -> Artifact:  # fmt: skip
        entries = {
            k: [{"uri": a.uri, "digest": a.digest, "kind": a.manifest.kind} for a in v] for k, v in inputs.items()
        }
        name = fingerprint(kind, 1, {"files": [str(v)[:200] for v in files.values()]}, {k: [] for k in inputs})
        writer = ArtifactWriter(f"{self.root}/{kind}/{name}", kind, name, {"recipe": recipe or {}}, entries)
        for path, content in files.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            writer.add_bytes(path, data, digested=not path.endswith(".pt"))
        writer.outputs |= outputs or {}
        return writer.commit({"component": component or kind, "task": component or kind})


def phase(make: Maker, name: str, batch: int, source: str, start: list[Artifact], variant: str = "") -> Artifact:
    """The end of a phase that drew from two languages of one source."""
    rows = [
        {"source": source, "language": code, "share": 0.5, "tokens": 500, "epochs": 0.1, "capped": False}
        for code in ("deu_Latn", "eng_Latn")
    ]
    label = variant or name
    mixture = make(
        "mixture", {"mixture.json": {"phase": name, "variant": variant, "rows": rows}}, outputs={"label": label}
    )
    files = {
        f"composer/ep0-ba{batch}-rank0.pt": f"composer of {label}".encode() * 1000,
        "weights.safetensors": f"weights of {label}".encode(),
        "optimizer.safetensors": b"moments",
        "training_state.json": {"phase": name, "variant": variant},
    }
    return make("checkpoint", files, "train", {"label": label}, mixture=[mixture], checkpoint=start)


@pytest.fixture
def release(
    tmp_path: Path, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Release:
    """A champion with scores, and all that led to it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    make = Maker(tmp_path / "artifacts")
    pretrained = phase(make, "pretrain", 8, "web", [])
    extended = phase(make, "extend", 4, "web", [pretrained])
    decayed = [phase(make, "decay", 2, "books", [extended], variant) for variant in ("decay-all", "decay-eng")]
    merged = make(
        "checkpoint", {"weights.safetensors": b"merged"}, "merge", {"label": "merged"}, {"merge": MERGE},
        checkpoints=decayed, base=[extended],
    )  # fmt: skip
    files = {
        "config.json": {"model_type": "modernbert"},
        "model.safetensors": b"the released weights",
        "tokenizer.json": {"model": {}},
        "README.md": b"# A card without scores",
    }
    outputs = {"label": "released model", "parity": {"parity.max_logit_difference": 1e-6}}
    model = make("model", files, "convert", outputs, RECIPE, checkpoint=[merged])
    found = card(
        score("xnli", 0.71, seeds=(1, 2, 3), data_revision="f" * 40),
        score("xnli", 0.75, language="deu_Latn"),
        score("xnli", 0.67, language="swh_Latn"),
        model_digest=model.digest,
    )
    scored = make("scores", {"scores.json": found.to_json()}, "evaluate", model=[model])
    registry = connect_registry()
    assert registry is not None
    name = re.sub(r"\W", "-", request.node.name)
    tags = {"mmbert.uri": model.uri, "mmbert.scores.xtreme": scored.uri, "mmbert.gate": "passed"}
    version = registry.register(
        name=name, source_uri="s3://models/one", content_digest=model.digest, run_id=None, tags=tags, description="",
        alias="champion",
    )  # fmt: skip
    return Release(registry, name, version, model)


@pytest.fixture(autouse=True)
def _clean_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # The server speaks the LFS protocol, which the client falls back to where its newer one is off.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield
    hub.broken = None
    hub.objects.clear()
    for name in (REPO, CHECKPOINTS):
        hub.repos.pop(name, None)


def seen(hub: HubServer, repo: str) -> dict[str, bytes]:
    """What a visitor of the repository sees."""
    found = hub.repos[repo]
    return {path: data for path, data in found.commits[found.find("main") or ""].items() if path != ".gitattributes"}


def sent_objects(hub: HubServer) -> int:
    return sum(request.startswith("PUT ") for request in hub.requests)


def run(*arguments: str) -> int:
    return _exit_code(lambda: cli(["publish", *arguments], standalone_mode=False))


def test_a_dry_run_lists_every_file_and_the_card_and_asks_the_hub_nothing(
    release: Release, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.requests.clear()
    assert run(release.name, "--repo", REPO, "--checkpoints-repo", CHECKPOINTS) == 0
    shown = capsys.readouterr().out
    assert hub.requests == []
    for path in ("config.json", "model.safetensors", "tokenizer.json", "README.md"):
        assert re.search(rf"^ +[\d,]+  {path}$", shown, re.MULTILINE)
    assert f"{len(b'composer of decay-all') * 1000:,}  {release.name}/decay/decay-all/ep0-ba2-rank0.pt" in shown
    assert "| xtreme | xnli | accuracy | 0.71 | 0.69 to 0.73 | 3 |" in shown
    assert "nothing was sent" in shown
    for option in ("--repo", "--checkpoints-repo"):
        assert run(release.name, option, "bad name") == 2
        assert f"{option} 'bad name': no repository of the hub can be named so" in capsys.readouterr().err


def test_what_is_published_has_the_published_layout_and_a_card_with_all_that_is_known(
    release: Release, hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (f"{release.name}@champion", "--repo", REPO, "--checkpoints-repo", CHECKPOINTS, "--no-dry-run")
    assert run(*arguments) == 0
    folders = {"pretrain": "ep0-ba8-rank0.pt", "ext": "ep0-ba4-rank0.pt", "decay/decay-all": "ep0-ba2-rank0.pt",
               "decay/decay-eng": "ep0-ba2-rank0.pt"}  # fmt: skip
    raw = [f"{release.name}/{folder}/{name}" for folder, pt in folders.items() for name in (pt, "training_state.json")]
    assert sorted(seen(hub, CHECKPOINTS)) == sorted(["README.md", *raw])
    assert seen(hub, CHECKPOINTS)[f"{release.name}/ext/ep0-ba4-rank0.pt"] == b"composer of extend" * 1000

    local = Path(snapshot_download(REPO, local_dir=tmp_path / "got"))
    for path in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (local / path).read_bytes() == release.model.read(path)
    told = ModelCard.load(local / "README.md")
    (result,) = told.data.eval_results
    assert (result.metric_value, result.dataset_type, result.dataset_revision) == (0.71, "xtreme", "f" * 40)
    assert told.data.language == ["deu", "eng"]
    for part in (
        "| xtreme | xnli | accuracy | 2 | 0.67 (swh_Latn) | 0.71 | 0.75 (deu_Latn) |",
        "| decay: decay-all | 1,000 | 256 | 30% | 2 | 0.7 | 0.0008 | 10,000 |",
        "| web | 1,000 (100.0%) | 1,000 (100.0%) |  |  |",
        "TIES merge (density 0.5) of all decay variants",
        f"`{release.model.digest}`",
        f'model="{REPO}"',
        "The longest context trained for is 256 tokens",
    ):
        assert part in told.text

    # Each repository got one commit besides its first; again, nothing changes.
    assert [len(hub.repos[repo].commits) for repo in (CHECKPOINTS, REPO)] == [2, 2]
    tags = release.registry.version(release.name, release.version).tags
    assert tags["mmbert.published"] == f"{REPO}@{hub.repos[REPO].find('main')}"
    sent = sent_objects(hub)
    assert run(*arguments) == 0
    assert [len(hub.repos[repo].commits) for repo in (CHECKPOINTS, REPO)] == [2, 2]
    assert sent_objects(hub) == sent
    assert TOKEN not in "".join(capsys.readouterr())


def test_an_upload_that_broke_off_shows_nothing_half_and_goes_on(release: Release, hub: HubServer) -> None:
    publication = release.plan()
    objects = {
        file.path.rpartition("/")[0]: file.sha256 for file in publication.checkpoints.files if ".pt" in file.path
    }
    hub.broken = f"PUT /lfs-objects/{objects[f'{release.name}/decay/decay-eng']}"
    with pytest.raises(InfrastructureError, match=r"broke off.*run it again"):
        publishing.publish(publication, release.registry)
    assert seen(hub, CHECKPOINTS) == {}
    assert REPO not in hub.repos

    hub.broken = f"POST /api/models/{REPO}/commit/main"
    sent = sent_objects(hub)
    with pytest.raises(UserError, match=f"{REPO}: the hub refuses it"):
        publishing.publish(publication, release.registry)
    assert sent_objects(hub) == sent + 2  # the checkpoint that was missing, and the model
    assert len(seen(hub, CHECKPOINTS)) == 9
    assert seen(hub, REPO) == {}

    hub.broken = None
    sent = sent_objects(hub)
    publishing.publish(publication, release.registry)
    assert sent_objects(hub) == sent
    assert sorted(seen(hub, REPO)) == ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
    assert [len(hub.repos[repo].commits) for repo in (CHECKPOINTS, REPO)] == [2, 2]


def test_two_models_share_the_repository_of_checkpoints(release: Release, hub: HubServer) -> None:
    hub.add(CHECKPOINTS, {"other-model/pretrain/ep0-ba1-rank0.pt": b"another size"})
    publishing.publish(release.plan(), release.registry)
    assert seen(hub, CHECKPOINTS)["other-model/pretrain/ep0-ba1-rank0.pt"] == b"another size"
    assert f"{release.name}/pretrain/ep0-ba8-rank0.pt" in seen(hub, CHECKPOINTS)


def test_without_the_gates_nothing_is_published(
    release: Release, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    release.tag(mmbert__gate="refused", mmbert__gate_reason="xnli fell by 0.05")
    assert run(f"{release.name}/{release.version}", "--no-dry-run") == 2
    assert "has not passed the release gate (mmbert.gate is 'refused': xnli fell by 0.05)" in capsys.readouterr().err
    release.tag(mmbert__gate="overridden")
    assert release.plan().model.name == REPO

    model = release.model
    make = Maker(Path(model.uri).parents[1] / "others")
    unchecked = make("model", {"config.json": b"{}"}, "convert", {"label": "released model"}, RECIPE)
    release.tag(mmbert__uri=unchecked.uri)
    with pytest.raises(UserError, match="holds another model"):
        release.plan()
    release.tag(mmbert__content_digest=unchecked.digest)
    with pytest.raises(UserError, match="no figures of the parity gate; convert it"):
        release.plan()
    assert run(f"{release.name}@staging") == 2
    assert "no registered model" in capsys.readouterr().err
    assert run(f"{release.name}/99") == 2
    assert REPO not in hub.repos


def test_a_token_that_may_not_write_is_refused_in_one_line(
    release: Release, hub: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (release.name, "--repo", REPO, "--checkpoints-repo", CHECKPOINTS, "--no-dry-run")
    monkeypatch.setenv("HF_TOKEN", "hf_somebody_else")
    assert run(*arguments) == 2
    told = capsys.readouterr().err
    assert "the hub refuses the token in HF_TOKEN (403)" in told
    assert "hf_somebody_else" not in told
    monkeypatch.delenv("HF_TOKEN")
    assert run(*arguments) == 2
    assert "set HF_TOKEN" in capsys.readouterr().err
    assert not {REPO, CHECKPOINTS} & set(hub.repos)
