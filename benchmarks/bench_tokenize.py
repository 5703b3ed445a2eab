"""Tokenization's speed, from curated text to uploaded MDS shards, against the tokenizers library and against gigatoken.

Documents of about 500 tokens in 449 languages: eld's sentences and the declarations, by language, 16 MB. Ours
reads them as zstd JSON Lines in `--copies` parts, each the whole text once, so that no batch holds a text twice. A part
stands under one language: of each language that a unit holds 16 documents are compared with the reference, and real
languages are larger than 16 documents. It writes to a real S3 server (rclone, started here on the same cores). Starting
its processes, loading both tokenizers in each, comparing, packing, compression, hashes and upload are in its time.
The peers only encode the same texts, in memory already. gigatoken loads its tokenizer within its time and gets one call
a copy: within a call it remembers words, between calls it does not, so copies are as good as fresh text. tokenizers is
loaded outside of its time and gets one copy a round. All have the same cores; rounds are interleaved, the medians of
their ratios told. Core-nanoseconds are those of all processes, the server's too: they bear other work on the machine.

    .venv/bin/python -m benchmarks.bench_tokenize [--cores 2] [--rounds 2] [--copies 70]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
GEMMA = ROOT / "node_modules" / "@lenml" / "tokenizer-gemma2" / "models" / "tokenizer.json"
RCLONE = ROOT / ".venv-orchestrator" / "bin" / "rclone"
DOCUMENT_BYTES = 1_700
KEYS = ("bench-key", "bench-secret")


def languages() -> dict[str, list[str]]:
    """Sentences and articles of each language."""
    from mmbert.data.eld import LANGUAGES
    from mmbert.data.udhr import declaration_folder, read_declarations

    found: dict[str, list[str]] = {}
    for line in resources.files("eld").joinpath("tests/data/big-test.txt").read_text("utf-8").splitlines():
        code, _, sentence = line.partition("\t")
        if code in LANGUAGES:
            found.setdefault(LANGUAGES[code], []).append(sentence)
    for declaration in read_declarations(declaration_folder()):
        found.setdefault(declaration.language, []).extend(declaration.articles.values())
    return found


def make_documents() -> dict[str, list[str]]:
    """Documents by language: consecutive sentences, to about 500 tokens."""
    documents: dict[str, list[str]] = {}
    for language, texts in languages().items():
        document: list[str] = []
        size = 0
        for text in texts:
            document.append(text)
            size += len(text.encode())
            if size >= DOCUMENT_BYTES:
                documents.setdefault(language, []).append("\n".join(document))
                document, size = [], 0
    return documents


@contextlib.contextmanager
def s3_server(home: Path) -> Iterator[psutil.Process]:
    """rclone's S3 server on a free port, in the environment of this process and those it starts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (home / "buckets" / "bench").mkdir(parents=True)
    command = [str(RCLONE), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", ",".join(KEYS)]
    server = subprocess.Popen(
        [*command, str(home / "buckets")],
        env={**os.environ, "RCLONE_CONFIG": str(home / "rclone.conf")},
        stderr=subprocess.DEVNULL,
    )
    endpoint = f"http://127.0.0.1:{port}"
    os.environ.update(AWS_ENDPOINT_URL=endpoint, AWS_ACCESS_KEY_ID=KEYS[0], AWS_SECRET_ACCESS_KEY=KEYS[1])
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    try:
        while not answers(endpoint):
            time.sleep(0.05)
        yield psutil.Process(server.pid)
    finally:
        server.kill()
        server.wait()


def answers(url: str) -> bool:
    try:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=2)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--copies", type=int, default=70)
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    os.environ["RAYON_NUM_THREADS"] = str(given.cores)
    with tempfile.TemporaryDirectory(prefix="bench-tokenize-") as home, s3_server(Path(home)) as server:
        run(Path(home), server, given.cores, given.rounds, given.copies)


def run(home: Path, server: psutil.Process, cores: int, rounds: int, copies: int) -> None:
    import gigatoken
    from tokenizers import Tokenizer

    from mmbert import artifacts
    from mmbert.data.documents import TRAIN, Document, part_path, write_documents
    from mmbert.data.tokenization import tokenize_documents
    from mmbert.data.tokenizer import TOKENIZER_FILE, load_pretrained
    from mmbert.recipe.loading import load_recipe

    recipe = load_recipe("base")
    (home / "gemma").mkdir()
    (home / "gemma" / TOKENIZER_FILE).symlink_to(GEMMA)
    load_pretrained(str(home / "gemma"), "main", home / "tokenizer", recipe.model)
    by_language = make_documents()
    writer = artifacts.ArtifactWriter(str(home / "documents"), "documents", "bench", {}, {})
    path = home / "text.jsonl.zst"
    write_documents(
        path, (Document(f"{name}/{n}", t, name, "web") for name, own in by_language.items() for n, t in enumerate(own))
    )
    for copy in range(copies):
        writer.add_file(str(part_path(Path(), TRAIN, "web", "mul_Zyyy", copy)), path)
    documents = writer.commit({})
    texts = [text for texts in by_language.values() for text in texts]
    size = sum(len(text.encode()) for text in texts)

    reference = Tokenizer.from_file(str(GEMMA))

    def core_seconds() -> float:
        """Of this process, those it started and that have ended, and the server."""
        return sum(os.times()[:4]) + sum(server.cpu_times()[:2])

    def measured(encode: Callable[[], float]) -> tuple[float, float]:
        """Tokens/s and core-nanoseconds a token of something that returns its tokens."""
        begin, core = time.monotonic(), core_seconds()
        tokens = encode()
        return tokens / (time.monotonic() - begin), (core_seconds() - core) / tokens * 1e9

    def ours(number: int) -> float:
        """Shards of 64 MiB at most, as the presets have them."""
        output = artifacts.ArtifactWriter(f"s3://bench/shards-{number}", "shards", "bench", {}, {})
        counts = tokenize_documents(
            documents, home / "tokenizer", recipe.shards, recipe.model, output, home, processes=cores
        )
        output.commit({})
        metrics = counts.metrics()
        return metrics["tokens"] - 2 * metrics["documents"]

    def library() -> float:
        return sum(len(encoding.ids) for encoding in reference.encode_batch_fast(texts, add_special_tokens=False))

    def engine() -> float:
        fast = gigatoken.Tokenizer(GEMMA)
        return sum(len(fast.encode_batch(texts, parallel=True).layout.content.data) for _ in range(copies))

    header = f"{copies} x {len(texts):,} documents, {size / 1e6:.1f} MB, {len(by_language)} languages, {cores} cores"
    table = [header, "", "round        Mtokens/s: ours, tokenizers, gigatoken        core-ns a token"]
    rounds_measured = []
    for number in range(rounds):
        found = [measured(functools.partial(ours, number)), measured(library), measured(engine)]
        rounds_measured.append(found)
        speeds = "".join(f"{rate / 1e6:>12.2f}" for rate, _ in found)
        table.append(f"{number:>5}{speeds}        " + "".join(f"{core:>8.0f}" for _, core in found))
    print("\n".join([*table, ""]))
    for name, peer, goal in (("tokenize_vs_reference", 1, 4), ("tokenize_vs_engine", 2, 0.7)):
        ratio = statistics.median(found[0][0] / found[peer][0] for found in rounds_measured)
        print(f"figure: {name} {ratio:.2f} times (goal >= {goal})")


if __name__ == "__main__":
    main()
