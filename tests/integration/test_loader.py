"""The loader over real MDS shards: the same global batches for any number of processes, resume, damage, batch sizes."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from streaming import MDSWriter

from mmbert.errors import InfrastructureError, UserError
from mmbert.loader.batch import Batch, split_microbatches
from mmbert.loader.lane import LaneState
from mmbert.loader.loader import Loader, LoaderSettings, MixtureStream, build_loader
from mmbert.loader.masking import MaskingRule
from mmbert.loader.state import LoaderState

VOCAB, MASK, SPECIAL = 5_000, 4, (0, 1, 2, 4)
WIDTH, LANES = 64, 4


def write_data_set(folder: Path, languages: dict[str, int], compression: str | None = "zstd:3") -> str:
    """An MDS data set with this many rows a language, in small shards: bos, text, eos in each document."""
    rng = np.random.default_rng(len(folder.name))
    index, row = {}, 0
    columns = {"tokens": "ndarray:uint32", "lengths": "ndarray:uint32"}
    with MDSWriter(
        out=str(folder), columns=columns, hashes=["xxh64"], compression=compression, size_limit=4_000
    ) as writer:
        for language, rows in sorted(languages.items()):
            total = 0
            for _ in range(rows):
                lengths = rng.integers(3, 90, rng.integers(1, 6), dtype=np.uint32)
                tokens = rng.integers(5, VOCAB, lengths.sum(), dtype=np.uint32)
                ends = np.cumsum(lengths)
                tokens[ends - lengths], tokens[ends - 1] = 2, 1
                writer.write({"tokens": tokens, "lengths": lengths})
                total += len(tokens)
            index[language] = {"row_begin": row, "rows": rows, "tokens": total, "documents": rows, "bytes": total}
            row += rows
    (folder / "languages.json").write_text(json.dumps(index))
    return str(folder)


@dataclass(frozen=True)
class WarmUp:
    """From `first` rows to `last` rows after so many nominal tokens; a class, so that spawned workers can have it."""

    first: int
    last: int
    tokens: int

    def __call__(self, tokens: int) -> int:
        return self.first if tokens < self.tokens else self.last


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[MixtureStream]:
    root = tmp_path_factory.mktemp("data")
    web = write_data_set(root / "web", {"deu_Latn": 30, "eng_Latn": 40, "fao_Latn": 1})
    wiki = write_data_set(root / "wiki", {"deu_Latn": 9, "tur_Latn": 20}, compression=None)
    return [
        MixtureStream("web", "deu_Latn", web, 0.3),
        MixtureStream("web", "eng_Latn", web, 0.4),
        MixtureStream("web", "fao_Latn", web, 0.02),
        MixtureStream("wiki", "deu_Latn", wiki, 0.08),
        MixtureStream("wiki", "tur_Latn", wiki, 0.2),
    ]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> LoaderSettings:
    return LoaderSettings(
        seed=17,
        lanes=LANES,
        max_seq_len=WIDTH,
        batch_rows=WarmUp(4, 12, 4 * 3 * WIDTH),
        masking=MaskingRule(0.3, VOCAB, MASK, SPECIAL),
        cache=tmp_path_factory.mktemp("cache"),
        buffer_tokens=1_000,
    )


def take(loader: Loader, count: int) -> list[Batch]:
    return list(islice(loader, count))


def rows_of(batch: Batch) -> list[tuple[list[int], ...]]:
    """Each row as plain lists: tokens, segment lengths, masked positions, targets."""
    rows = []
    for micro in split_microbatches(batch, 1):
        parts = (micro.input_ids, micro.cu_seqlens.diff(), micro.masked_indices, micro.targets)
        rows.append(tuple(p.tolist() for p in parts))
    return rows


def global_rows(ranks: list[Batch]) -> list[tuple[list[int], ...]]:
    """Rows of the global batch in order: row r comes from lane r % lanes, which rank (r % lanes) % ranks makes."""
    queues = [iter(rows_of(b)) for b in ranks]
    return [next(queues[r % LANES % len(ranks)]) for r in range(sum(b.rows for b in ranks))]


def global_batches(
    corpus: list[MixtureStream],
    settings: LoaderSettings,
    count: int,
    world_size: int = 1,
    workers: int = 0,
    *,
    state: LoaderState | None = None,
) -> tuple[list[list[tuple[list[int], ...]]], list[LoaderState]]:
    """The first global batches, and the merged state after each."""
    ranks = [
        take(build_loader(corpus, settings, rank, world_size, workers, state=state), count)
        for rank in range(world_size)
    ]
    steps = list(zip(*ranks, strict=True))
    states = [LoaderState.merge([b.state for b in step if b.state]) for step in steps]
    return [global_rows(list(step)) for step in steps], states


@pytest.fixture(scope="module")
def reference(
    corpus: list[MixtureStream], settings: LoaderSettings
) -> tuple[list[list[tuple[list[int], ...]]], list[LoaderState]]:
    return global_batches(corpus, settings, 12)


@pytest.mark.parametrize(("world_size", "workers"), [(1, 1), (1, 2), (1, 3), (2, 0), (2, 2), (4, 0), (4, 1)])
def test_global_batches_do_not_depend_on_processes(corpus, settings, reference, world_size: int, workers: int) -> None:
    batches, states = global_batches(corpus, settings, 6, world_size, workers)
    assert batches == reference[0][:6]
    assert [s.to_bytes() for s in states] == [s.to_bytes() for s in reference[1][:6]]


def test_spawned_workers_make_the_same_batches(corpus, settings, reference) -> None:
    loader = build_loader(corpus, settings, 0, 1, 1, start_method="spawn")
    assert [rows_of(b) for b in take(loader, 2)] == reference[0][:2]


@pytest.mark.parametrize(("saved_by", "resumed_by"), [((1, 0), (4, 0)), ((4, 0), (1, 2)), ((2, 2), (1, 0))])
def test_resume_at_any_step_with_other_processes(
    corpus, settings, reference, saved_by: tuple[int, int], resumed_by: tuple[int, int]
) -> None:
    batches, saved = reference[0], global_batches(corpus, settings, 7, *saved_by)[1]
    for step in (0, 3, 6) if resumed_by[1] == 0 else (3,):
        state = LoaderState.from_bytes(saved[step].to_bytes())
        again, states = global_batches(corpus, settings, 4, *resumed_by, state=state)
        assert again == batches[step + 1 : step + 5]
        assert states[-1].to_bytes() == reference[1][step + 4].to_bytes()


@pytest.mark.parametrize(("saved_by", "resumed_by"), [((1, 0), (4, 0)), ((2, 2), (1, 1))])
def test_repeats_and_later_epochs_resume(
    corpus, settings, saved_by: tuple[int, int], resumed_by: tuple[int, int]
) -> None:
    """Every stream is past its first epoch, the smallest has one row and is past its eighth."""
    straight, states = global_batches(corpus, settings, 90)
    last = states[-1].lanes.values()
    draws = sum(lane.draws for lane in last)
    rows = np.array([s.rows for s in build_loader(corpus, settings, 0, 1, 0)._streams])
    assert (draws > rows).all()
    assert (draws // rows)[2] >= 8
    saved = global_batches(corpus, settings, 86, *saved_by)[1]
    for step in (40, 85):
        state = LoaderState.from_bytes(saved[step].to_bytes())
        again, resumed = global_batches(corpus, settings, 4, *resumed_by, state=state)
        assert again == straight[step + 1 : step + 5]
        assert resumed[-1].to_bytes() == states[step + 4].to_bytes()


def test_resume_reads_only_the_rows_that_wait(corpus, settings, reference) -> None:
    """No replay: the rows read to make the next batch do not grow with the step that is resumed."""
    reads: list[int] = []
    for state in (reference[1][3], reference[1][11]):
        loader = build_loader(corpus, settings, 0, 1, 0, state=state)
        rows: Counter[tuple[int, int]] = Counter()
        inner = loader._read

        def counted(stream: int, row: int, inner=inner, rows=rows) -> tuple[np.ndarray, np.ndarray]:
            rows[stream, row] += 1
            return inner(stream, row)

        loader._read = counted
        take(loader, 1)
        reads.append(rows.total())
    waiting = [sum(len(lane.open_rows) for lane in reference[1][i].lanes.values()) for i in (3, 11)]
    assert all(r <= w + 20 for r, w in zip(reads, waiting, strict=True))
    assert sum(int(lane.draws.sum()) for lane in reference[1][11].lanes.values()) > reads[1]


def test_a_state_without_the_waiting_pieces_does_not_continue(corpus, settings, reference) -> None:
    batches, states = reference
    emptied = {
        n: replace(lane, open_rows=np.zeros((0, 3), np.int64), waiting=np.zeros(0, np.uint8))
        for n, lane in states[3].lanes.items()
    }
    again, _ = global_batches(corpus, settings, 2, state=replace(states[3], lanes=emptied))
    assert again != batches[4:6]


def test_workers_run_ahead_but_the_state_is_of_what_was_consumed(corpus, settings, reference) -> None:
    loader = build_loader(corpus, settings, 0, 1, 2)
    stopped = take(loader, 3)[-1]
    assert stopped.state is not None
    assert stopped.state.to_bytes() == reference[1][2].to_bytes()
    # The same object goes on where its consumer stopped.
    assert [rows_of(b) for b in take(loader, 2)] == reference[0][3:5]


def test_iterating_leaves_torch_s_global_generator_alone(corpus, settings) -> None:
    before = torch.get_rng_state()
    take(build_loader(corpus, settings, 0, 1, 1), 1)
    assert torch.equal(torch.get_rng_state(), before)


def shared_memory() -> set[Path]:
    """What torch's processes share: other tests of the same run, in processes of their own, make semaphores there."""
    return set(Path("/dev/shm").glob("torch_*"))  # noqa: S108


def test_no_process_or_shared_memory_is_left(corpus, settings) -> None:
    before = shared_memory()
    batches: Iterator[Batch] = iter(build_loader(corpus, settings, 0, 1, 2))
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    assert shared_memory() <= before
    del batches
    assert not multiprocessing.active_children()
    assert shared_memory() <= before


def test_a_killed_run_leaves_nothing_in_the_way(corpus, settings, reference) -> None:
    """SIGKILL from outside, with workers that have batches ready: they end by themselves, no shared memory is left, and
    the next run makes the same batches from the same cache."""
    fresh = replace(settings, cache=settings.cache / "killed")
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    before = shared_memory()

    def run() -> None:
        for batch in build_loader(corpus, fresh, 0, 1, 2):
            if batch.rows == 12:
                sender.send([p.pid for p in multiprocessing.active_children()])
                time.sleep(600)

    process = fork.Process(target=run)
    process.start()
    assert receiver.poll(60)
    workers = [psutil.Process(pid) for pid in receiver.recv()]
    assert len(workers) == 2
    process.kill()
    process.join()
    assert [rows_of(b) for b in take(build_loader(corpus, fresh, 0, 1, 2), 3)] == reference[0][:3]
    _, alive = psutil.wait_procs(workers, timeout=60)  # torch's workers look for their parent every 5 s
    assert not alive
    assert shared_memory() <= before


def test_batch_sizes_follow_the_warm_up(corpus, settings) -> None:
    batches = take(build_loader(corpus, settings, 1, 2, 0), 5)
    assert [b.rows for b in batches] == [2, 2, 2, 6, 6]
    wrong = replace(settings, batch_rows=WarmUp(6, 6, 0))
    with pytest.raises(UserError, match="6 rows is not a positive multiple of the 4 lanes"):
        take(build_loader(corpus, wrong, 0, 1, 0), 1)


def test_batches_are_consistent(corpus, settings) -> None:
    for batch in take(build_loader(corpus, settings, 0, 2, 0), 6):
        assert (batch.input_ids.dtype, batch.cu_seqlens.dtype) == (torch.int64, torch.int32)
        assert batch.cu_seqlens[0] == 0
        assert batch.cu_seqlens[-1] == batch.tokens == len(batch.input_ids)
        assert batch.max_seqlen == int(batch.cu_seqlens.diff().max()) <= WIDTH
        assert batch.tokens + batch.padded_tokens == batch.rows * WIDTH
        assert (np.diff(batch.row_begins[:, 0]) <= WIDTH).all()
        assert batch.stream_tokens is not None
        assert batch.stream_tokens.sum() == batch.tokens
        assert not np.isin(batch.targets.numpy(), SPECIAL).any()


def test_masked_tokens_put_back_give_whole_documents(corpus, settings) -> None:
    """Every segment is a document of the corpus, or a piece of it, with bos and eos where they stood."""
    for batch in take(build_loader(corpus, settings, 0, 1, 0), 4):
        tokens = batch.input_ids.clone()
        tokens[batch.masked_indices] = batch.targets
        starts = tokens[batch.cu_seqlens[:-1].long()] == 2
        ends = tokens[batch.cu_seqlens[1:].long() - 1] == 1
        assert starts.float().mean() > 0.6
        assert ends.float().mean() > 0.6
        assert int((tokens == 2).sum()) == int(starts.sum())
        assert int((tokens == 1).sum()) == int(ends.sum())


def test_token_shares_follow_the_weights(corpus, settings) -> None:
    got = sum(
        b.stream_tokens for b in take(build_loader(corpus, settings, 0, 1, 0), 150) if b.stream_tokens is not None
    )
    weights = np.array([s.weight for s in corpus]) / sum(s.weight for s in corpus)
    # 110,000 tokens; the buffers of four lanes hold 4,000 of them back.
    assert np.abs(got / got.sum() - weights).max() < 0.02


def test_microbatches_are_the_batch_in_pieces(corpus, settings) -> None:
    batch = take(build_loader(corpus, settings, 0, 1, 0), 4)[-1]
    micros = split_microbatches(batch, 5)
    assert [m.rows for m in micros] == [5, 5, 2]
    assert torch.equal(torch.cat([m.input_ids for m in micros]), batch.input_ids)
    assert torch.equal(torch.cat([m.targets for m in micros]), batch.targets)
    assert torch.equal(torch.cat([m.cu_seqlens.diff() for m in micros]), batch.cu_seqlens.diff())
    assert sum(m.padded_tokens for m in micros) == batch.padded_tokens
    starts = np.cumsum([0, *(m.tokens for m in micros)])
    masked = torch.cat([m.masked_indices + int(s) for m, s in zip(micros, starts, strict=False)])
    assert torch.equal(masked, batch.masked_indices)
    assert max(m.max_seqlen for m in micros) == batch.max_seqlen
    assert [r for m in micros for r in rows_of(m)] == rows_of(batch)


def test_unpacked_has_one_document_a_row(corpus, settings) -> None:
    unpacked = replace(settings, packing="unpacked")
    batches, states = global_batches(corpus, unpacked, 5)
    assert all(len(segments) == 1 for batch in batches for _, segments, _, _ in batch)
    assert global_batches(corpus, unpacked, 5, 2)[0] == batches
    assert global_batches(corpus, unpacked, 2, state=states[2])[0] == batches[3:]


def test_a_state_of_something_else_is_refused(corpus, settings, reference) -> None:
    state = reference[1][2]
    with pytest.raises(UserError, match="another mixture"):
        build_loader(corpus[:-1], settings, 0, 1, 0, state=state)
    with pytest.raises(UserError, match="another mixture"):
        build_loader(corpus, replace(settings, seed=18), 0, 1, 0, state=state)
    with pytest.raises(UserError, match="lacks lanes"):
        build_loader(corpus, settings, 0, 1, 0, state=take(build_loader(corpus, settings, 0, 2, 0), 1)[0].state)
    with pytest.raises(UserError, match="not a loader's state"):
        LoaderState.from_bytes(state.to_bytes()[:-9])
    half: dict[int, LaneState] = {0: state.lanes[0], 1: reference[1][3].lanes[1]}
    with pytest.raises(UserError, match="different steps"):
        LoaderState.merge([replace(state, lanes=half)])


def test_processes_must_divide_the_lanes(corpus, settings) -> None:
    with pytest.raises(UserError, match="4 lanes cannot be shared evenly by 3"):
        build_loader(corpus, settings, 0, 3, 0)


def test_a_language_without_rows_is_named(corpus, settings) -> None:
    with pytest.raises(UserError, match="no rows of 'xho_Latn'"):
        build_loader([replace(corpus[0], language="xho_Latn")], settings, 0, 1, 0)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data_set(tmp_path_factory.mktemp("written") / "set", {"deu_Latn": 24})


@pytest.fixture
def small(written: str, tmp_path: Path, settings: LoaderSettings) -> tuple[Path, list[MixtureStream], LoaderSettings]:
    """A data set of its own, to be damaged."""
    uri = shutil.copytree(written, tmp_path / "set")
    return uri, [MixtureStream("set", "deu_Latn", str(uri), 1.0)], replace(settings, cache=tmp_path / "cache")


def _damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_shard_is_named_and_nothing_of_it_stays(small, workers: int) -> None:
    folder, streams, settings = small
    victim = sorted(folder.glob("*.mds.zstd"))[1]
    whole = victim.read_bytes()
    _damage(victim)
    with pytest.raises(UserError, match=f"{victim.name}: the shard is damaged") as caught:
        take(build_loader(streams, settings, 0, 1, workers), 4)
    assert "Traceback" not in str(caught.value)
    assert not multiprocessing.active_children()
    assert victim.name.removesuffix(".zstd") not in {p.name for p in settings.cache.rglob("*")}
    victim.write_bytes(whole)
    assert len(take(build_loader(streams, settings, 0, 1, workers), 4)) == 4


def test_a_shard_damaged_on_its_way_is_fetched_again(small, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first copy of each shard arrives with a flipped bit, as over a bad network."""
    from streaming.base.storage.download import LocalDownloader

    folder, streams, settings = small
    expected = [rows_of(b) for b in take(build_loader(streams, replace(settings, cache=folder / "c"), 0, 1, 0), 3)]
    copies: Counter[str] = Counter()
    download = LocalDownloader._download_file_impl

    def flaky(self: LocalDownloader, remote: str, local: str, timeout: float) -> None:
        download(self, remote, local, timeout)
        copies[remote] += 1
        if copies[remote] == 1:
            _damage(Path(local))

    monkeypatch.setattr(LocalDownloader, "_download_file_impl", flaky)
    assert [rows_of(b) for b in take(build_loader(streams, settings, 0, 1, 0), 3)] == expected
    assert set(copies.values()) == {2}


def test_a_cached_shard_cut_short_is_fetched_again(small) -> None:
    _, streams, settings = small
    first = [rows_of(b) for b in take(build_loader(streams, settings, 0, 1, 0), 3)]
    for shard in settings.cache.rglob("*.mds"):
        shard.write_bytes(shard.read_bytes()[:100])
    assert [rows_of(b) for b in take(build_loader(streams, settings, 0, 1, 0), 3)] == first


def test_what_a_killed_process_left_in_staging_is_harmless(small) -> None:
    _, streams, settings = small
    first = [rows_of(b) for b in take(build_loader(streams, settings, 0, 1, 0), 3)]
    for shard in list(settings.cache.rglob("*.mds")):
        left = shard.parent / "incoming" / shard.name
        left.mkdir(parents=True)
        shard.rename(left / shard.name)
        _damage(left / shard.name)
    assert [rows_of(b) for b in take(build_loader(streams, settings, 0, 1, 0), 3)] == first


def test_the_cache_stays_within_its_limit(small) -> None:
    _, streams, settings = small
    expected = [rows_of(b) for b in take(build_loader(streams, settings, 0, 1, 0), 6)]
    sizes = [p.stat().st_size for p in settings.cache.rglob("*.mds")]
    limit = 2 * max(sizes)
    assert sum(sizes) > limit
    limited = replace(settings, cache=settings.cache / "limited", cache_limit_bytes=limit)
    assert [rows_of(b) for b in take(build_loader(streams, limited, 0, 1, 2), 6)] == expected
    assert sum(p.stat().st_size for p in limited.cache.rglob("*.mds")) <= limit


def test_a_missing_shard_and_a_wrong_vocabulary_are_the_user_s_errors(small) -> None:
    folder, streams, settings = small
    tiny = replace(settings, masking=MaskingRule(0.3, 100, MASK, SPECIAL))
    with pytest.raises(UserError, match="another tokenizer"):
        take(build_loader(streams, tiny, 0, 1, 0), 1)
    victim = min(folder.glob("*.mds.zstd"))
    victim.unlink()
    with pytest.raises(UserError, match=f"{victim.name}: the shard is missing"):
        take(build_loader(streams, replace(settings, cache=folder / "new"), 0, 1, 0), 4)


def test_shards_of_another_kind_are_refused(small, tmp_path: Path) -> None:
    _, streams, settings = small
    other = tmp_path / "other"
    with MDSWriter(out=str(other), columns={"input_ids": "ndarray:uint32"}, hashes=["xxh64"]) as writer:
        writer.write({"input_ids": np.arange(5, dtype=np.uint32)})
    with pytest.raises(UserError, match=r"its columns are .*input_ids.*mmbert run tokenize"):
        build_loader([replace(streams[0], uri=str(other))], settings, 0, 1, 0)


def test_a_full_or_forbidden_cache_is_infrastructure(small) -> None:
    folder, streams, settings = small
    blocked = folder / "file"
    blocked.write_text("not a folder")
    with pytest.raises(InfrastructureError, match="file"):
        take(build_loader(streams, replace(settings, cache=blocked), 0, 1, 0), 1)
