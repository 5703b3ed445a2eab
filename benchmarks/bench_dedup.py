"""Near-duplicates, texts to clusters: documents/s on one core against datatrove's MinHash stages, and what both find.

Documents of about 350 words (500 tokens) are put together from real sentences in eight languages; every second one has
a copy in which a share of the words is replaced. Both sides run as datatrove steps in this process, over the same
documents in two tasks, with files in a temporary folder and FineWeb2's settings (14 bands of 8 rows, 5-word shingles,
64-bit hashes). datatrove's word tokenizers need packages and models that are not there, so `str.split` stands in for
them, and `list` (each character a word) where there are no spaces: both cost it less than its own would. Its call to
xxhash gets bytes, since xxhash 4 no longer takes the text that it gives.

    .venv/bin/python benchmarks/bench_dedup.py [--originals 2400] [--rounds 3]
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import xxhash
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupSignature,
)
from datatrove.utils.word_tokenizers import WordTokenizer
from loguru import logger

from mmbert.data.dedup.minhash import MinHashSettings
from mmbert.data.dedup.shingles import shingles
from mmbert.data.dedup.steps import MinHashClusters, MinHashPairs, MinHashSignatures
from mmbert.data.eld import read_sentences, sentence_file
from mmbert.data.udhr import declaration_folder, read_declarations

SEED, WORDS = 17, 350
SPACED = ("eng_Latn", "spa_Latn", "rus_Cyrl", "arb_Arab", "hin_Deva", "kor_Hang")
UNSPACED = {"cmn_Hani": 2, "tha_Thai": 5}
"""Characters that are edited as one word."""
EDITED_SHARES = (0.0, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.1)
SETTINGS = MinHashSettings()
PEER_SETTINGS = MinhashConfig()

Pairs = set[tuple[int, int]]


@dataclass(frozen=True)
class Corpus:
    """Documents of two tasks (spaced, unspaced) and, by share of edited words, the planted pairs of their numbers."""

    tasks: tuple[list[Document], list[Document]]
    planted: dict[float, list[tuple[int, int]]]

    @property
    def texts(self) -> list[str]:
        return [document.text for task in self.tasks for document in task]


def make_corpus(originals: int) -> Corpus:
    rng = np.random.default_rng(SEED)
    sentences = defaultdict(list)
    for _, language, text in read_sentences(sentence_file()):
        sentences[language].append(text)
    for declaration in read_declarations(declaration_folder()):
        sentences[declaration.language] += [p for a in declaration.articles.values() for p in a.split("\n")]
    tasks: tuple[list[Document], list[Document]] = ([], [])
    planted: dict[float, list[tuple[int, int]]] = {share: [] for share in EDITED_SHARES}
    shares = itertools.cycle(EDITED_SHARES)
    for language in (*SPACED, *UNSPACED):
        task = tasks[language in UNSPACED]
        vocabulary = [word for sentence in sentences[language] for word in _split(sentence, language)]
        for number in range(originals // (len(SPACED) + len(UNSPACED))):
            words = _original(rng, sentences[language], language)
            _add(task, words, f"{language}-{number}")
            if number % 2:
                share = next(shares)
                edited = [vocabulary[rng.integers(len(vocabulary))] if rng.random() < share else word for word in words]
                _add(task, edited, f"{language}-{number}-{share}")
                last = len(tasks[0]) + len(tasks[1]) - 1
                planted[share].append((last - 1, last))
    return Corpus(tasks, planted)


def _original(rng: np.random.Generator, sentences: list[str], language: str) -> list[str]:
    words: list[str] = []
    for index in rng.permutation(len(sentences)):
        words += _split(sentences[index], language)
        if len(words) >= WORDS:
            break
    return words


def _split(sentence: str, language: str) -> list[str]:
    """Words, each with the space after it."""
    if language in SPACED:
        return [f"{word} " for word in sentence.split()]
    size = UNSPACED[language]
    return [sentence[i : i + size] for i in range(0, len(sentence), size)]


def _add(task: list[Document], words: list[str], name: str) -> None:
    task.append(Document("".join(words), name))


class PlainWords(WordTokenizer):
    """Stands in for datatrove's word tokenizers."""

    def __init__(self, split: Callable[[str], list[str]]) -> None:
        super().__init__()
        self.split = split

    def word_tokenize(self, text: str) -> list[str]:
        return self.split(text)

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError


def peer_signatures(folder: str, rank: int) -> MinhashDedupSignature:
    step = MinhashDedupSignature(folder, PEER_SETTINGS, PlainWords((str.split, list)[rank]))
    step._hash_func = lambda text: xxhash.xxh64_intdigest(text.encode())
    return step


@dataclass(frozen=True)
class Run:
    seconds: tuple[float, float, float]
    first: dict[int, int]
    """Duplicates only: number of a document, and of the first one of its cluster."""

    @property
    def pairs(self) -> Pairs:
        clusters = defaultdict(list)
        for document, first in self.first.items():
            clusters[first].append(document)
        return {pair for first, rest in clusters.items() for pair in itertools.combinations(sorted({first, *rest}), 2)}


def run_ours(corpus: Corpus, folder: str) -> Run:
    def signatures() -> None:
        for rank, task in enumerate(corpus.tasks):
            for _ in MinHashSignatures(folder, SETTINGS).run(iter(task), rank, 2):
                pass

    def pairs() -> None:
        for rank in range(SETTINGS.num_bands):
            MinHashPairs(folder, SETTINGS).run(None, rank, SETTINGS.num_bands)

    seconds = (timed(signatures), timed(pairs), timed(MinHashClusters(folder).run))
    files = [Path(folder, "clusters", f"{rank:05d}.first") for rank in range(2)]
    first = np.concatenate([np.fromfile(file, "<i8") for file in files])
    return Run(seconds, {i: int(f) for i, f in enumerate(first) if f != i})


def run_peer(corpus: Corpus, folder: str) -> Run:
    hashes, matches, clusters = (f"{folder}/{name}" for name in ("hashes", "matches", "clusters"))

    def signatures() -> None:
        for rank, task in enumerate(corpus.tasks):
            peer_signatures(hashes, rank).run(iter(task), rank, 2)

    def pairs() -> None:
        for rank in range(PEER_SETTINGS.num_buckets):
            MinhashDedupBuckets(hashes, matches, config=PEER_SETTINGS).run(None, rank, PEER_SETTINGS.num_buckets)

    cluster = MinhashDedupCluster(matches, clusters, PEER_SETTINGS, save_cluster_id=True)
    seconds = (timed(signatures), timed(pairs), timed(cluster.run))
    first: dict[int, int] = {}
    first_of_cluster: dict[int, int] = {}
    for rank, begin in enumerate((0, len(corpus.tasks[0]))):
        # Written in the documents' order, so that a cluster's first document comes first.
        for document, name in np.fromfile(Path(clusters, f"{rank:06d}.clusters"), "<u4").reshape(-1, 2).tolist():
            number = begin + document
            if first_of_cluster.setdefault(name, number) != number:
                first[number] = first_of_cluster[name]
    return Run(seconds, first)


def timed(work: Callable[[], None]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def our_shingles(text: str, rank: int) -> set[int]:  # noqa: ARG001
    return {h for part in shingles([text], SETTINGS.shingle_words) for h in part.hashes.tolist()}


def peer_shingles(text: str, rank: int) -> set[int]:
    with tempfile.TemporaryDirectory() as folder:
        return set(peer_signatures(folder, rank).get_shingles(text)[:, 0].tolist())


def similarities(corpus: Corpus, pairs: Pairs, shingle: Callable[[str, int], set[int]]) -> dict[tuple[int, int], float]:
    """Exact Jaccard similarities by a side's own words."""
    texts, spaced = corpus.texts, len(corpus.tasks[0])

    def both() -> Iterator[tuple[tuple[int, int], float]]:
        for pair in pairs:
            a, b = (shingle(texts[i], int(i >= spaced)) for i in pair)
            yield pair, len(a & b) / len(a | b)

    return dict(both())


@dataclass(frozen=True)
class Side:
    name: str
    run: Run
    jaccard: dict[tuple[int, int], float]

    def describe(self, planted: Pairs) -> str:
        limit, found = SETTINGS.threshold, self.run.pairs
        near = {pair for pair in planted if self.jaccard[pair] >= limit}
        precise = sum(self.jaccard[pair] >= limit for pair in found) / len(found)
        expected = sum(SETTINGS.probability(self.jaccard[pair]) for pair in near) / len(near)
        return (
            f"{self.name:10} recall {len(near & found) / len(near):.3f} (expected {expected:.3f}), "
            f"precision {precise:.3f}, found {len(found)}, of these never planted {len(found - planted)}"
        )


def table(corpus: Corpus, sides: list[Side]) -> None:
    spaced = len(corpus.tasks[0])
    print("\nplanted pairs: similarity by each side's own words, share found, and share expected at these similarities")
    print(f"{'words':9} {'edited':>6} {'pairs':>6}" + "".join(f" | {side.name:>9}   found  expected" for side in sides))
    for kind, is_spaced in (("spaced", True), ("unspaced", False)):
        for share, all_pairs in corpus.planted.items():
            pairs = [pair for pair in all_pairs if (pair[0] < spaced) == is_spaced]
            cells = []
            for side in sides:
                values = np.array([side.jaccard[pair] for pair in pairs])
                found = np.mean([pair in side.run.pairs for pair in pairs])
                expected = np.mean([SETTINGS.probability(value) for value in values])
                cells.append(f" | {values.mean():9.2f}  {found:6.2f}    {expected:6.2f}")
            print(f"{kind:9} {share:6.1%} {len(pairs):6}" + "".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--originals", type=int, default=2400)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    logger.disable("datatrove")
    corpus = make_corpus(arguments.originals)
    planted = {pair for pairs in corpus.planted.values() for pair in pairs}
    texts = corpus.texts
    print(f"seed {SEED}, {len(texts)} documents, {sum(map(len, texts)) / len(texts):.0f} characters each on average")
    runners = {"ours": run_ours, "datatrove": run_peer}
    runs: dict[str, list[Run]] = {name: [] for name in runners}
    few = Corpus((corpus.tasks[0][:50], corpus.tasks[1][:50]), {})
    # The first round warms up: it makes our table of letters, and loads modules.
    for of_round in (few, *[corpus] * arguments.rounds):
        for name, runner in runners.items():
            with tempfile.TemporaryDirectory() as folder:
                runs[name].append(runner(of_round, folder))
    best = {name: min(of_side[1:], key=lambda run: sum(run.seconds)) for name, of_side in runs.items()}
    print(f"table of letters, once a process: {runs['ours'][0].seconds[0]:.2f} s")
    print(f"{'':10} signatures    pairs  clusters  documents/s   (seconds of the best of {arguments.rounds} rounds)")
    for name, run in best.items():
        signatures, pairs, clusters = run.seconds
        print(f"{name:10} {signatures:10.2f} {pairs:8.3f} {clusters:9.3f} {len(texts) / sum(run.seconds):12,.0f}")

    sides = [
        Side(name, best[name], similarities(corpus, planted | best[name].pairs, shingle))
        for name, shingle in (("ours", our_shingles), ("datatrove", peer_shingles))
    ]
    table(corpus, sides)
    print(f"\npairs of similarity {SETTINGS.threshold:.2f} or more are near duplicates:")
    for side in sides:
        print(side.describe(planted))
    print("pairs found      both  ours alone  datatrove alone")
    ours, peer = (side.run.pairs for side in sides)
    for kind in (False, True):
        a, b = ({pair for pair in found if (pair[0] >= len(corpus.tasks[0])) == kind} for found in (ours, peer))
        print(f"{'unspaced' if kind else 'spaced':13} {len(a & b):7} {len(a - b):11} {len(b - a):16}")
    ratios = [
        sum(peer_run.seconds) / sum(our_run.seconds)
        for our_run, peer_run in list(zip(runs["ours"], runs["datatrove"], strict=True))[1:]
    ]
    print(f"times faster, by round: {', '.join(f'{r:.1f}' for r in ratios)}; the median counts")
    print(f"figure: dedup_vs_datatrove {statistics.median(ratios):.1f} x (goal >= 3)")


if __name__ == "__main__":
    main()
