"""The loader's speed from local shards, against StreamingDataset with transformers' masking collator, and its resume.

Documents of 500 tokens on average (log-normal, sigma 1) in seven languages, 256,000 words; 30% of the tokens masked.
All shards are uncompressed, on this machine's disk. Both loaders have one worker process, and batches are counted where
training takes them, as tensors in this process.

Speed: ours packs rows of 1,024 tokens, 576 a batch (a process's share of `base` on 8 GPUs) from 48 lanes. The peer
reads a document a sample, uint32, cut at 1,024 tokens, and pads batches of 32 documents. It gets them in the three ways
that the collator takes (dictionaries with or without a special-token mask, bare tensors), and the fastest is the peer.
Only real tokens count. Rounds are interleaved: a loader that waits has its prefetched batches full, so each round drops
those first. The figure is the median round, the ratio the median of the rounds' ratios. The worker's processor time a
token bears other work on the machine better than the clock does.

Resume: lanes run through 10 million documents without their text (the real order, the real lengths, rows of 8,192
tokens, `base`'s longest); after the first batches their state is compared, byte for byte, with the real loader's. Then
a fresh process opens the shards and makes the first batch from that state. Imports are not counted. The same at the
scale of 1,833 languages in 180,000 shards, where reading a row is replaced.

    .venv/bin/python benchmarks/bench_loader.py [--tokens 40e6] [--rounds 5] [--seconds 2] [--documents 10e6]
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from streaming import MDSWriter, StreamingDataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.utils.data import DataLoader, IterableDataset
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from mmbert.loader.lane import Lane, Schedule, StreamRows
from mmbert.loader.loader import Loader, LoaderSettings, MixtureStream, build_loader, open_streams
from mmbert.loader.masking import MaskingRule
from mmbert.loader.shards import ShardReader
from mmbert.loader.state import LoaderState

SEED = 17
WORDS, SPECIAL, EOS, BOS, MASK = 256_000, (0, 1, 2, 3, 4), 1, 2, 4
MEAN, SIGMA, ROW_TOKENS = 500, 1.0, 16_384
LANES, WIDTH, LONG_WIDTH = 48, 1_024, 8_192
PEER_DOCUMENTS = 32
PREFETCHED = 3
"""Batches that a worker may have ready: two are prefetched and one is under way."""
SHARES = {
    "eng_Latn": 0.4, "deu_Latn": 0.2, "rus_Cyrl": 0.15, "jpn_Jpan": 0.1, "tur_Latn": 0.08, "swh_Latn": 0.05,
    "isl_Latn": 0.02,
}  # fmt: skip
LANGUAGES_AT_SCALE, SHARDS_AT_SCALE, TOKENS_AT_SCALE = 1_833, 180_000, 3 * 10**12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=40e6, help="tokens of the corpus")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a loader's turn in a round")
    parser.add_argument("--documents", type=float, default=10e6, help="consumed before the resume")
    parser.add_argument("--processes", type=int, default=2, help="that run the lanes to that point")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mmbert-loader-") as name:
        folder = Path(name)
        mixture = write_corpus(folder, int(arguments.tokens))
        measure_speed(mixture, folder, arguments.rounds, arguments.seconds)
        measure_resume(mixture, folder, int(arguments.documents), arguments.processes)


def write_corpus(folder: Path, tokens: int) -> list[MixtureStream]:
    """The same documents as rows of ours and as single samples."""
    rng = np.random.default_rng(SEED)
    pool = rng.integers(len(SPECIAL), WORDS, 1 << 24, dtype=np.uint32)
    index: dict[str, dict[str, int]] = {}
    rows = 0
    ours = {"tokens": "ndarray:uint32", "lengths": "ndarray:uint32"}
    peer = {"input_ids": "ndarray:uint32"}
    with (
        MDSWriter(out=str(folder / "ours"), columns=ours, hashes=["xxh64"], size_limit=1 << 26) as row_writer,
        MDSWriter(out=str(folder / "peer"), columns=peer, hashes=["xxh64"], size_limit=1 << 26) as document_writer,
    ):
        for language, share in sorted(SHARES.items()):
            total = count = 0
            for lengths in language_rows(rng, int(tokens * share)):
                begin = int(rng.integers(0, len(pool) - lengths.sum()))
                row = pool[begin : begin + int(lengths.sum())].copy()
                ends = np.cumsum(lengths)
                row[ends - lengths], row[ends - 1] = BOS, EOS
                row_writer.write({"tokens": row, "lengths": lengths.astype(np.uint32)})
                for document in np.split(row, ends[:-1]):
                    document_writer.write({"input_ids": document})
                total, count = total + len(row), count + 1
            index[language] = {"row_begin": rows, "rows": count, "tokens": total}
            rows += count
    (folder / "ours" / "languages.json").write_text(json.dumps(index))
    return [MixtureStream("web", language, str(folder / "ours"), share) for language, share in SHARES.items()]


def language_rows(rng: np.random.Generator, tokens: int) -> Iterator[NDArray[np.int64]]:
    """Lengths of the documents of each row."""
    lengths = rng.lognormal(np.log(MEAN) - SIGMA**2 / 2, SIGMA, tokens // MEAN).astype(np.int64).clip(8, ROW_TOKENS)
    begin, ends = 0, np.cumsum(lengths)
    while begin < len(lengths):
        before = ends[begin - 1] if begin else 0
        end = int(np.searchsorted(ends, before + ROW_TOKENS, side="right"))
        yield lengths[begin:end]
        begin = end


def rows_a_batch(rows: int, _tokens: int) -> int:
    return rows


def settings(folder: Path, rows: int, width: int = WIDTH) -> LoaderSettings:
    masking = MaskingRule(0.3, WORDS, MASK, SPECIAL)
    return LoaderSettings(SEED, LANES, width, functools.partial(rows_a_batch, rows), masking, folder / "cache")


class Documents(IterableDataset[Any]):
    """The peer's samples; a document's tail beyond the sequence length is lost, as its users do it."""

    def __init__(self, folder: Path, form: str) -> None:
        self._set = StreamingDataset(
            local=str(folder), shuffle=True, shuffle_seed=SEED, batch_size=PEER_DOCUMENTS, num_canonical_nodes=1
        )
        self._form = form

    def __iter__(self) -> Iterator[Any]:
        while True:
            for sample in self._set:
                ids = sample["input_ids"][:WIDTH].astype(np.int64)
                if self._form == "tensors":
                    yield torch.from_numpy(ids)
                elif self._form == "dictionaries":
                    yield {"input_ids": ids}
                else:
                    yield {"input_ids": ids, "special_tokens_mask": np.isin(ids, SPECIAL).astype(np.int64)}


def peer_tokenizer() -> PreTrainedTokenizerFast:
    names = {0: "<pad>", EOS: "<eos>", BOS: "<bos>", 3: "<unk>", MASK: "<mask>"}
    vocabulary = {names.get(i, f"w{i}"): i for i in range(WORDS)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token=names[3])),
        **{f"{key[1:-1]}_token": key for key in names.values()},
    )


def peer_batches(folder: Path, tokenizer: Any, form: str) -> Generator[int, None, None]:
    """Real tokens of each batch."""
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3)
    documents = Documents(folder / "peer", form)
    for batch in DataLoader(documents, batch_size=PEER_DOCUMENTS, num_workers=1, collate_fn=collator):
        yield int((batch["input_ids"] != tokenizer.pad_token_id).sum())


def our_batches(mixture: Sequence[MixtureStream], loader_settings: LoaderSettings) -> Generator[int, None, None]:
    for batch in build_loader(mixture, loader_settings, 0, 1, 1):
        yield batch.tokens


def measure_speed(mixture: Sequence[MixtureStream], folder: Path, rounds: int, seconds: float) -> None:
    tokenizer = peer_tokenizer()
    forms = ("tensors", "dictionaries", "dictionaries with mask")
    loaders = {f"peer, {form}": peer_batches(folder, tokenizer, form) for form in forms}
    loaders |= {
        "ours": our_batches(mixture, settings(folder, 576)),
        "ours, 48 rows a batch (warm-up)": our_batches(mixture, settings(folder, 48)),
        "ours, 1,833 languages": at_scale_batches(576),
    }
    speeds: dict[str, list[float]] = {name: [] for name in loaders}
    work: dict[str, list[float]] = {name: [] for name in loaders}
    workers: dict[str, psutil.Process] = {}
    for name, batches in loaders.items():
        tokens_per_second(batches, seconds)  # warm-up
        # A fork server of the libraries would stand here, too; the newest child is the worker.
        workers[name] = max(psutil.Process().children(), key=lambda child: (child.create_time(), child.pid))
    for _ in range(rounds):
        for name, batches in loaders.items():
            before = workers[name].cpu_times()
            begin = time.perf_counter()
            speeds[name].append(tokens_per_second(batches, seconds))
            after = workers[name].cpu_times()
            # A worker works as long as it is asked: its busy share of this time.
            busy = (after.user + after.system - before.user - before.system) / (time.perf_counter() - begin)
            work[name].append(1e9 * busy / speeds[name][-1])
    for batches in loaders.values():
        batches.close()
    for name, values in speeds.items():
        spread = f"{min(values):,.0f} to {max(values):,.0f}, {len(values)} rounds"
        print(f"{name:32} {statistics.median(values):12,.0f} tokens/s  ({spread}), "
              f"{statistics.median(work[name]):6,.0f} ns of its worker's CPU a token")  # fmt: skip
    best = max((name for name in speeds if name.startswith("peer")), key=lambda name: statistics.median(speeds[name]))
    ratio = statistics.median(a / b for a, b in zip(speeds["ours"], speeds[best], strict=True))
    print(f"figure: loader_tokens {statistics.median(speeds['ours']):.0f} tokens/s (goal >= 5000000)")
    print(f"figure: loader_vs_streaming {ratio:.1f} x (goal >= 3)", flush=True)


def tokens_per_second(batches: Iterator[int], seconds: float) -> float:
    for _ in islice(batches, PREFETCHED):
        pass
    begin = time.perf_counter()
    tokens = 0
    while (elapsed := time.perf_counter() - begin) < seconds:
        tokens += next(batches)
    return tokens / elapsed


class Lengths:
    """Reads a row's real lengths, kept in memory, and zeros for its tokens."""

    def __init__(self, streams: Sequence[StreamRows], reader: ShardReader) -> None:
        self._zeros = np.zeros(ROW_TOKENS, np.uint32)
        self._rows = {
            row: reader(i, row)[1] for i, s in enumerate(streams) for row in range(s.row_begin, s.row_begin + s.rows)
        }

    def __call__(self, _stream: int, row: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        lengths = self._rows[row]
        return self._zeros[: int(lengths.sum())], lengths


def run_lanes(
    numbers: Sequence[int], streams: Sequence[StreamRows], read: Lengths, rows: Sequence[int], fingerprint: str
) -> list[tuple[int, bytes]]:
    """Documents taken, and the lanes' state, after so many rows of each; in a process of its own."""
    loader_settings = settings(Path(), LANES, LONG_WIDTH)
    schedule = Schedule(streams, loader_settings.lane_settings())
    lanes = {number: Lane(number, schedule, read) for number in numbers}
    found, taken = [], 0
    for goal in rows:
        for lane in lanes.values():
            while lane.emitted < goal:
                taken += len(lane.next_row().lengths)
        state = LoaderState(fingerprint, {number: lane.state() for number, lane in lanes.items()})
        found.append((taken, state.to_bytes()))
    return found


def measure_resume(mixture: Sequence[MixtureStream], folder: Path, documents: int, processes: int) -> None:
    streams, data_sets = open_streams(mixture)
    loader_settings = settings(folder, 576, LONG_WIDTH)
    read = Lengths(streams, ShardReader(data_sets, folder / "cache", WORDS))
    first = next(iter(build_loader(mixture, loader_settings, 0, 1, 1))).state
    assert first is not None
    # A hundredth more than the mean length asks for: rows hold pieces, and a piece of a cut document counts once.
    last = int(documents * MEAN * 1.01 / LANES / LONG_WIDTH) + 1
    goals = [576 // LANES, max(13, last // 100), max(14, last // 10), max(15, last)]
    begin = time.perf_counter()
    task = functools.partial(run_lanes, streams=streams, read=read, rows=goals, fingerprint=first.fingerprint)
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        shares = pool.map(task, [range(i, LANES, processes) for i in range(processes)], chunksize=1)
    print(f"\n{LANES} lanes without text, {processes} processes: {time.perf_counter() - begin:.0f} s")
    seconds = 0.0
    for number, goal in enumerate(goals):
        state = LoaderState.merge([LoaderState.from_bytes(share[number][1]) for share in shares])
        if number == 0:
            assert state.to_bytes() == first.to_bytes(), "the lanes without text are not the loader's"
            continue
        taken = sum(share[number][0] for share in shares)
        seconds = fresh_process(functools.partial(first_batch, mixture, loader_settings, state.to_bytes()))
        print(f"after {taken:12,} documents ({goal:,} rows a lane): first batch in {seconds:.2f} s, "
              f"state {len(state.to_bytes()) / 1e3:,.0f} kB")  # fmt: skip
    resume_at_scale()
    print(f"figure: resume_seconds {seconds:.2f} s (goal <= 10)", flush=True)


def first_batch(mixture: Sequence[MixtureStream], loader_settings: LoaderSettings, saved: bytes) -> float:
    begin = time.perf_counter()
    loader = build_loader(mixture, loader_settings, 0, 1, 1, state=LoaderState.from_bytes(saved))
    next(iter(loader))
    return time.perf_counter() - begin


def fresh_process(work: Callable[[], float]) -> float:
    """Run in a child that has what this process imported and nothing that it opened; only its time comes back."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(work()))
    process.start()
    seconds: float = receiver.recv()
    process.join()
    return seconds


class FixedRows:
    """Stands in for reading at scale: rows of 16,384 tokens in documents of 500."""

    def __init__(self) -> None:
        self._tokens = np.full(ROW_TOKENS, 5, np.uint32)
        self._lengths = np.diff(np.linspace(0, ROW_TOKENS, ROW_TOKENS // MEAN + 1).astype(np.int64))

    def __call__(self, _stream: int, _row: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        return self._tokens, self._lengths


def streams_at_scale() -> list[StreamRows]:
    """1,833 languages of sizes that fall as 1 / rank, sampled with temperature 0.3, in one data set."""
    sizes = 1 / np.arange(1, LANGUAGES_AT_SCALE + 1)
    rows = np.maximum(1, TOKENS_AT_SCALE / ROW_TOKENS * sizes / sizes.sum()).astype(np.int64)
    ends = np.cumsum(rows)
    shards = np.linspace(0, ends[-1], SHARDS_AT_SCALE + 1).astype(np.int64)
    weights = sizes**0.3 / (sizes**0.3).sum()
    return [
        StreamRows(f"web/{i}", float(weights[i]), int(ends[i] - rows[i]), int(rows[i]), int(rows[i]) * ROW_TOKENS,
                   shards)
        for i in range(LANGUAGES_AT_SCALE)
    ]  # fmt: skip


def scaled_loader(rows: int, state: LoaderState | None) -> Loader:
    return Loader(
        streams_at_scale(), FixedRows(), settings(Path("unused"), rows), 0, 1, workers=1, state=state
    )  # fmt: skip


def at_scale_batches(rows: int) -> Generator[int, None, None]:
    for batch in scaled_loader(rows, None):
        yield batch.tokens


def resume_at_scale() -> None:
    """From the start and from a state: the difference is what a resume costs."""
    state = None
    for batch in islice(scaled_loader(4_608, None), 3):
        state = batch.state
    assert state is not None
    saved = state.to_bytes()

    def work(saved: bytes | None) -> float:
        begin = time.perf_counter()
        next(iter(scaled_loader(576, LoaderState.from_bytes(saved) if saved else None)))
        return time.perf_counter() - begin

    anew, resumed = fresh_process(lambda: work(None)), fresh_process(lambda: work(saved))
    print(f"{LANGUAGES_AT_SCALE:,} languages, {SHARDS_AT_SCALE:,} shards, {LANES} lanes: first batch in "
          f"{resumed:.2f} s resumed, {anew:.2f} s anew; state {len(saved) / 1e3:,.0f} kB")  # fmt: skip


if __name__ == "__main__":
    main()
