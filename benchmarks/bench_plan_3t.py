"""Planner, index opening and the loader's order on an index-only corpus of up to 3T tokens, for 8 and 256 GPUs.

Nothing is left out but the text: index.json and languages.json of 15 sources lie on disk at their real size (writing
them is set-up), the mixture has a stream for every language of every source, and all ranks' real loaders make global
batches (a stand-in for reading gives rows of the right length). Checked on the way: what all ranks drew is exactly what
the order says, each document once an epoch; and sampled streams are followed through a whole epoch.

Each size runs in processes of its own, two at work; memory is the sum of their peaks. Requests: what boto3 sends for a
file of that size (parts of 8 MiB). Prices are S3's public list prices in us-east-1; storage itself is not in them.

    .venv/bin/python benchmarks/bench_plan_3t.py [--sizes 3B 30B 300B 3T] [--processes 2]
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from corpus_index import CorpusIndex, mean_zipped_bytes, write_corpus_index
from numpy.typing import NDArray

from mmbert.data.mixture import MixturePlan, plan_mixture, resolve_languages
from mmbert.recipe import load_recipe
from mmbert.recipe.schema import parse_tokens

SECONDS_GOAL, GIB_GOAL = 60, 4
PUT_PRICE, GET_PRICE = 0.005 / 1_000, 0.0004 / 1_000
"""US dollars a request: PUT, COPY, POST, LIST and GET, HEAD."""
GPUS_A_MACHINE = 8
LANES = {8: 48, 256: 256}
"""Lanes by GPUs: those of the presets, and the fewest that 256 processes can share."""
BATCHES = 1
MAX_EPOCHS = 4.0
SAMPLED_STREAMS, SAMPLED_SHARDS, LONGEST_SAMPLE = 12, 20, 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["3B", "30B", "300B", "3T"])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--simulate", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.simulate:
        print(json.dumps(simulate(Path(arguments.simulate), arguments.processes)))
        return
    results = {size: run(int(parse_tokens(size)), arguments.processes) for size in arguments.sizes}
    print_tables(results)
    largest = max(results.values(), key=lambda result: result["tokens"])
    if largest["tokens"] >= 2.99e12:
        print(f"figure: plan_3t_seconds {largest['total']:.1f} s (goal <= {SECONDS_GOAL})")
        print(f"figure: plan_3t_gib {largest['gib']:.2f} GiB (goal <= {GIB_GOAL})")


def run(tokens: int, processes: int) -> dict[str, Any]:
    """Simulate one size in a fresh process; its wall time counts from its start, imports included."""
    with tempfile.TemporaryDirectory(prefix="mmbert-index-") as name:
        corpus = write_corpus_index(Path(name), tokens, load_recipe("base").shards)
        begin = time.perf_counter()
        command = [sys.executable, __file__, "--simulate", name, "--processes", str(processes)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - begin
        if done.returncode:
            raise SystemExit(f"the simulation of {tokens:,} tokens failed:\n{done.stderr}")
        found: dict[str, Any] = json.loads(done.stdout)
        return {**found, **requests(corpus), "total": seconds, "tokens": corpus.tokens}


def requests(corpus: CorpusIndex) -> dict[str, Any]:
    """Objects, and the requests that write them once and read every shard once from one machine."""
    from boto3.s3.transfer import TransferConfig

    part = TransferConfig().multipart_chunksize
    parts = math.ceil(mean_zipped_bytes(corpus) / part)
    writes = parts + 2 if parts > 1 else 1  # a multipart upload is begun and completed
    reads = parts + 1  # the size is asked for first
    small = 2 * len(corpus.uris)  # index.json and languages.json
    return {
        "objects": corpus.shards + small,
        "index_mb": corpus.index_bytes / 1e6,
        "puts": corpus.shards * writes + small,
        "gets": corpus.shards * reads,
        "index_gets": small,
    }


def simulate(folder: Path, processes: int) -> dict[str, Any]:
    """Times in seconds and figures of one corpus; raises AssertionError where the order is wrong."""
    from mmbert.loader.loader import MixtureStream, open_streams

    clock = Clock()
    sources = {path.parent.name: str(path.parent) for path in sorted(folder.glob("*/languages.json"))}
    plan = plan_phases(sources)
    clock.lap("plan")
    mixture = [MixtureStream(row.source, row.language, sources[row.source], row.share) for row in plan.rows]
    streams, _ = open_streams(mixture)
    clock.lap("open")
    found: dict[str, Any] = {"streams": len(streams), "languages": len(plan.languages())}
    for gpus, lanes in LANES.items():
        found |= simulate_ranks(streams, gpus, lanes, processes)
        clock.lap(f"order_{gpus}")
    found["checked_documents"] = check_epochs(streams)
    clock.lap("epochs")
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    # ru_maxrss of children is the largest one's.
    return {**found, **clock.laps, "gib": (own + processes * children) / 2**20}


class Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now


def plan_phases(sources: dict[str, str]) -> MixturePlan:
    """The mixtures of pretrain, extend and decay-all of `base`, for tokens in the proportion of 3T; returns the last,
    which has every stream."""
    sizes = {
        (source, language): counts["tokens"]
        for source, place in sources.items()
        for language, counts in json.loads(Path(place, "languages.json").read_text()).items()
    }
    available = sorted({language for _, language in sizes})
    recipe = load_recipe("base")
    scale = sum(sizes.values()) / 3e12
    for phase, variant in (("pretrain", ""), ("extend", ""), ("decay", "decay-all")):
        mixture = recipe.mixture(phase, variant).model_copy(update={"max_epochs": MAX_EPOCHS})
        languages = resolve_languages(mixture.languages, recipe.language_sets, available)
        plan = plan_mixture(sizes, mixture, languages, int(getattr(recipe.phases, phase).tokens * scale))
    return plan


class Reader:
    """Stands in for reading: the right number of tokens, in documents of about 500; remembers what was asked for."""

    def __init__(self, streams: Sequence[Any]) -> None:
        self._streams = streams
        self._tokens = np.full(2**14, 5, np.uint32)
        self.read: list[tuple[int, int]] = []

    def __call__(self, stream: int, row: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        self.read.append((stream, row))
        of = self._streams[stream]
        whole = len(self._tokens)
        length = whole if row < of.row_begin + of.rows - 1 else of.tokens - (of.rows - 1) * whole
        ends = np.linspace(0, length, length // 500 + 2).astype(np.int64)[1:]
        return self._tokens[:length], np.diff(ends, prepend=0)


def simulate_ranks(streams: Sequence[Any], gpus: int, lanes: int, processes: int) -> dict[str, Any]:
    """All ranks' loaders make BATCHES global batches; what they drew is held against the order."""
    from mmbert.loader.lane import Schedule
    from mmbert.loader.state import LoaderState

    task = functools.partial(one_rank, streams=streams, gpus=gpus, lanes=lanes)
    # Forked: as on a machine, where a rank's workers share what it has opened.
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        ranks = pool.map(task, range(gpus), chunksize=max(1, gpus // processes // 4))
    state = LoaderState.merge([LoaderState.from_bytes(rank["state"]) for rank in ranks])
    drawn = np.concatenate([rank["read"] for rank in ranks])
    schedule = Schedule(streams, loader_settings(lanes).lane_settings())
    expected = np.array(list(drawn_rows(schedule, state, lanes)), np.int64)
    assert len(np.unique(expected, axis=0)) == len(expected), "a row comes twice in one epoch"
    rows = expected[:, [0, 2]]
    assert (sorted_rows(drawn) == sorted_rows(rows)).all(), "the ranks read other rows than the order says"
    seconds = [rank["seconds"] for rank in ranks]
    return {
        f"rows_{gpus}": len(drawn),
        f"batch_tokens_{gpus}": sum(rank["tokens"] for rank in ranks),
        f"rank_seconds_{gpus}": float(np.median(seconds)),
        f"state_bytes_{gpus}": len(state.to_bytes()),
    }


def drawn_rows(schedule: Any, state: Any, lanes: int) -> Iterator[tuple[int, int, int]]:
    """(stream, epoch, row) of everything that the lanes have drawn, by their numbers of draws alone."""
    from mmbert.loader.interleave import slot

    for lane, lane_state in state.lanes.items():
        for stream in np.flatnonzero(lane_state.draws).tolist():
            first = slot(schedule.names[stream], schedule.settings.seed, lane, lanes)
            order = schedule.orders[stream]
            for draw in range(int(lane_state.draws[stream])):
                position = first + draw * lanes
                yield stream, position // order.rows, order.row(position)


def sorted_rows(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return rows[np.lexsort(rows.T[::-1])]


def loader_settings(lanes: int) -> Any:
    """The decay phase of `base`: 4,608 rows of 8,192 tokens a batch."""
    from mmbert.loader.loader import LoaderSettings
    from mmbert.loader.masking import MaskingRule

    phase = load_recipe("base").phases.decay
    masking = MaskingRule(phase.mask_probability, 256_000, 4, (0, 1, 2, 3, 4))
    batch = functools.partial(_batch_rows, phase.batch.global_batch_size)
    return LoaderSettings(17, lanes, phase.max_seq_len, batch, masking, Path("unused"))


def _batch_rows(rows: int, _tokens: int) -> int:
    return rows


def one_rank(rank: int, *, streams: Sequence[Any], gpus: int, lanes: int) -> dict[str, Any]:
    """A rank as it is in a run, without its model: its schedule, its lanes, its batches and their state."""
    from mmbert.loader.loader import Loader

    reader = Reader(streams)
    begin = time.perf_counter()
    loader = Loader(streams, reader, loader_settings(lanes), rank, gpus, workers=0)
    tokens = 0
    for batch in islice(iter(loader), BATCHES):
        tokens += batch.tokens
        state = batch.state
    seconds = time.perf_counter() - begin
    assert state is not None
    return {"read": np.array(reader.read, np.int64), "tokens": tokens, "seconds": seconds, "state": state.to_bytes()}


def check_epochs(streams: Sequence[Any]) -> int:
    """Follow sampled streams through a whole epoch, and the longest through whole shards of one, over all lanes of all
    ranks; returns the documents (of about 500 tokens) that were seen."""
    from mmbert.loader.interleave import slot
    from mmbert.loader.order import StreamOrder

    rng = random.Random(3)
    documents = 0
    short = [s for s in streams if s.rows <= LONGEST_SAMPLE]
    sample = [max(short, key=lambda s: s.rows), *rng.sample(short, min(SAMPLED_STREAMS, len(short)))]
    for stream in sample:
        order = StreamOrder(stream.name, 17, stream.row_begin, stream.rows, stream.shard_begins)
        for gpus, lanes in LANES.items():
            rows: list[int] = []
            for rank in range(gpus):
                for lane in range(rank, lanes, gpus):
                    first = slot(stream.name, 17, lane, lanes)
                    rows += [order.row(position) for position in range(first, stream.rows, lanes)]
            whole = range(stream.row_begin, stream.row_begin + stream.rows)
            assert sorted(rows) == list(whole), f"{stream.name}: an epoch is not every row once"
        documents += stream.tokens // 500 + 1
    longest = max(streams, key=lambda s: s.rows)
    order = StreamOrder(longest.name, 17, longest.row_begin, longest.rows, longest.shard_begins)
    for _ in range(SAMPLED_SHARDS):
        documents += check_shard(longest, order, rng.randrange(longest.rows)) * 2**14 // 500
    return documents


def check_shard(stream: Any, order: Any, position: int) -> int:
    """The positions around one that stay in its shard read each of its rows once; returns how many."""

    def shard(at: int) -> int:
        return int(np.searchsorted(stream.shard_begins, order.row(at), side="right")) - 1

    number = shard(position)
    begin, end = position, position + 1
    while begin > 0 and shard(begin - 1) == number:
        begin -= 1
    while end < stream.rows and shard(end) == number:
        end += 1
    first, last = stream.shard_begins[number : number + 2].clip(stream.row_begin, stream.row_begin + stream.rows)
    rows = sorted(order.row(at) for at in range(begin, end))
    assert rows == list(range(first, last)), f"{stream.name}: shard {number} is not used up at once"
    return len(rows)


def print_tables(results: dict[str, dict[str, Any]]) -> None:
    print(f"decay-all of `base`, at most {MAX_EPOCHS:g} epochs; {BATCHES} global batch of 4,608 rows of 8,192 tokens\n")
    columns = ("corpus", "streams", "plan s", "open s", "8 GPUs s", "256 GPUs s", "epochs s", "total s", "GiB",
               "a rank s: 8 GPUs", "256 GPUs", "state kB: 8 GPUs", "256 GPUs")  # fmt: skip
    print(table([columns, *(
        (size, f"{r['streams']:,}", f"{r['plan']:.2f}", f"{r['open']:.2f}", f"{r['order_8']:.1f}",
         f"{r['order_256']:.1f}",
         f"{r['epochs']:.1f}", f"{r['total']:.1f}", f"{r['gib']:.2f}", f"{r['rank_seconds_8']:.2f}",
         f"{r['rank_seconds_256']:.2f}", f"{r['state_bytes_8'] / 1e3:,.0f}", f"{r['state_bytes_256'] / 1e3:,.0f}")
        for size, r in results.items()
    )]))  # fmt: skip
    print("\nS3, at PUT/LIST $0.005 and GET $0.0004 per 1,000 requests; reading = one epoch\n")
    columns = ("corpus", "objects", "index MB", "PUT to write", "$", "GET by 1 machine", "$", "GET by 32 machines", "$",
               "index GET by 256 ranks", "$")  # fmt: skip
    lines: list[tuple[str, ...]] = [columns]
    for size, r in results.items():
        machines = max(LANES) // GPUS_A_MACHINE
        many, index = machines * r["gets"], max(LANES) * r["index_gets"]
        lines.append((size, f"{r['objects']:,}", f"{r['index_mb']:.1f}", f"{r['puts']:,}",
                      f"{r['puts'] * PUT_PRICE:,.2f}",
                      f"{r['gets']:,}", f"{r['gets'] * GET_PRICE:,.2f}", f"{many:,}", f"{many * GET_PRICE:,.2f}",
                      f"{index:,}", f"{index * GET_PRICE:,.4f}"))  # fmt: skip
    print(table(lines), "\n")


def table(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


if __name__ == "__main__":
    main()
