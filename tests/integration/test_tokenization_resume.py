"""Tokenization that is killed, and whose object store fails: it goes on at the shard and ends with the same bytes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmbert import storage
from mmbert.artifacts import Artifact, ArtifactWriter, open_artifact
from mmbert.data.documents import TRAIN, Document, part_path, write_documents
from mmbert.data.tokenization import tokenize_documents
from mmbert.data.tokenizer import train_bpe
from mmbert.data.udhr import declaration_folder, read_declarations
from mmbert.recipe import Recipe, recipe_to_yaml
from mmbert.recipe.loading import load_recipe
from tests.fixtures_stack import RCLONE, S3, Server, answers, clean_environment, free_port

OVERRIDES = ("model.vocab_size=600", "shards.row_tokens=256", "shards.shard_size_mb=0.01")


@pytest.fixture(scope="module")
def own_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A server that this module may kill."""
    home = tmp_path_factory.mktemp("own-s3")
    (home / "buckets").mkdir()
    port = free_port()
    endpoint, key, secret = f"http://127.0.0.1:{port}", "key", "secret"
    command = [str(RCLONE), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{key},{secret}"]
    environment = clean_environment() | {"RCLONE_CONFIG": str(home / "rclone.conf")}
    server = Server([*command, str(home / "buckets")], environment, home / "log", lambda: answers(endpoint))
    with pytest.MonkeyPatch.context() as patch:
        try:
            server.start()
            found = S3(endpoint, key, secret, home / "buckets", server)
            for name, value in found.environment.items():
                patch.setenv(name, value)
            storage.s3_client.cache_clear()
            yield found
        finally:
            server.kill()
            storage.s3_client.cache_clear()


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("tiny", OVERRIDES)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources: one of many small parts, one of a single large one, with a document that fills several shards."""
    folder = tmp_path_factory.mktemp("text")
    for declaration in read_declarations(declaration_folder()):
        language = declaration.language
        articles = [Document(f"{language}/{n}", t, language, "udhr") for n, t in declaration.articles.items()]
        if language in {"amh_Ethi", "deu_Latn", "fra_Latn", "rus_Cyrl"}:
            for part in range(3):
                path = part_path(folder, TRAIN, "udhr", language, part)
                write_documents(path, articles[part * 10 : part * 10 + 10])
        if language == "deu_Latn":
            long = Document("long", "\n".join(a.text for a in articles * 4), language, "one")
            write_documents(part_path(folder, TRAIN, "one", language), [*articles, long, *articles])
    return folder


class Tokenize:
    """`mmbert run tokenize` in processes of its own."""

    def __init__(self, root: str, recipe: Recipe, text: Path, tokenizer: Path, folder: Path) -> None:
        documents = self._artifact(f"{root}/documents/d", "documents", text)
        written = self._artifact(f"{root}/tokenizer/t", "tokenizer", tokenizer)
        (folder / "recipe.yaml").write_text(recipe_to_yaml(recipe))
        self.root = root
        self.command = [sys.executable, "-m", "components.cli", "run", "tokenize", "--root", root]
        self.command += ["--recipe", str(folder / "recipe.yaml")]
        self.command += ["--documents", documents.uri, "--tokenizer", written.uri]
        self.folder = folder

    def _artifact(self, uri: str, kind: str, folder: Path) -> Artifact:
        writer = ArtifactWriter(uri, kind, "f", {}, {})
        writer.add_folder("", folder)
        writer.outputs["label"] = "group 0"
        return writer.commit({})

    def start(self, processes: int) -> subprocess.Popen[str]:
        environment = {**os.environ, "MMBERT_CACHE": str(self.folder / "cache"), "OMP_NUM_THREADS": str(processes)}
        return subprocess.Popen(
            self.command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run_to(self, shard: int, processes: int, then: Callable[[int], None]) -> tuple[int, set[str], str]:
        """Run it, and call `then` with its process id when it has logged so many shards. Returns its exit status, the
        shards that it logged up to its end, and what else it said."""
        process = self.start(processes)
        assert process.stderr is not None
        logged: list[str] = []
        others: list[str] = []
        # To the end of the output: the processes that it started have ended too.
        for line in process.stderr:
            if found := re.match(r"shard (\S+):", line):
                logged.append(found[1])
                if len(logged) == shard:
                    then(process.pid)
            elif "units are done already" not in line:
                others.append(line)
        process.stderr.close()
        return process.wait(), set(logged), "".join(others)

    def manifests(self) -> list[str]:
        return [path for path in storage.list_files(f"{self.root}/shards") if path.endswith("manifest.json")]


def test_killed_anywhere_it_goes_on_at_the_shard_and_ends_with_the_same_bytes(
    own_s3: S3, recipe: Recipe, text: Path, tmp_path: Path
) -> None:
    train_bpe([text], recipe.model, 20_000, tmp_path / "tokenizer")
    tokenize = Tokenize(f"{own_s3.make_bucket('resume')}/root", recipe, text, tmp_path / "tokenizer", tmp_path)
    made: list[set[str]] = []

    def kill(process_id: int) -> None:
        os.kill(process_id, signal.SIGKILL)

    for shard, processes in ((3, 2), (4, 1)):
        status, shards, errors = tokenize.run_to(shard, processes, kill)
        made.append(shards)
        assert status == -signal.SIGKILL, errors
    status, shards, errors = tokenize.run_to(2, 1, lambda _: own_s3.server.kill())
    made.append(shards)
    own_s3.server.start()
    assert status == 3
    message = r"error: s3://resume/root/shards/.*: no answer from S3 at .* is it running\?"
    assert re.fullmatch(message, errors.splitlines()[-1])
    assert not tokenize.manifests()

    status, shards, errors = tokenize.run_to(10**9, 2, kill)
    made.append(shards)
    assert status == 0, errors
    (manifest,) = tokenize.manifests()
    resumed = open_artifact(f"{tokenize.root}/shards/{manifest.removesuffix('/manifest.json')}")
    files = [path for path in resumed.paths() if path.endswith(".zstd")]
    earlier = set.union(*made[:-1])
    # No shard was made twice.
    assert len(earlier) == sum(map(len, made[:-1])) >= 3 + 4 + 2
    assert made[-1] <= set(files) - earlier
    assert not [path for path in storage.list_files(resumed.uri) if "progress" in path]

    output = ArtifactWriter(str(tmp_path / "undisturbed"), "shards", "f", {}, {})
    tokenize_documents(
        open_artifact(f"{tokenize.root}/documents/d"),
        tmp_path / "tokenizer",
        recipe.shards,
        recipe.model,
        output,
        tmp_path,
    )
    assert output.commit({}).digest == resumed.digest
