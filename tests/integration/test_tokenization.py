"""Tokenizers and MDS shards, on articles of the declarations."""

from __future__ import annotations

import functools
import itertools
import json
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zstandard
from streaming import MDSWriter, StreamingDataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from mmbert.artifacts import Artifact, ArtifactWriter
from mmbert.data.documents import (
    HELD_OUT,
    TRAIN,
    Document,
    document_files,
    part_path,
    read_documents,
    write_documents,
)
from mmbert.data.encoding import EngineDifferenceError
from mmbert.data.mds import COLUMNS, ShardBuffer, ShardFormat, finish_shard
from mmbert.data.rows import Ids
from mmbert.data.shard_sets import TokenCounts
from mmbert.data.shard_units import Part
from mmbert.data.tokenization import tokenize_documents, write_token_shards
from mmbert.data.tokenizer import SPECIAL_TOKENS, TOKENIZER_FILE, load_pretrained, read_tokenizer, sample, train_bpe
from mmbert.data.udhr import declaration_folder, read_declarations
from mmbert.errors import UserError
from mmbert.loader.shards import ShardReader, open_data_set
from mmbert.recipe.loading import load_recipe
from mmbert.recipe.schema import Model, Shards
from tests.fixtures_stack import ROOT

LANGUAGES = ("amh_Ethi", "deu_Latn", "eng_Latn", "hin_Deva", "jpn_Jpan", "rus_Cyrl", "tha_Thai")
ROW_TOKENS = 256
SHARDS = Shards(row_tokens=ROW_TOKENS, shard_size_mb=0.005)
BOS, EOS = 2, 1
GEMMA_FILE = ROOT / "node_modules" / "@lenml" / "tokenizer-gemma2" / "models" / "tokenizer.json"
GEMMA_MODEL = load_recipe("base").model
MODEL = load_recipe("tiny").model.model_copy(update={"vocab_size": 1200})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Articles as `udhr`, and English and German ones once more as `more`, one of them far longer than a row."""
    folder = tmp_path_factory.mktemp("documents")
    for declaration in read_declarations(declaration_folder()):
        if declaration.language not in LANGUAGES:
            continue
        language = declaration.language
        articles = [Document(f"{language}/{n}", text, language, "udhr") for n, text in declaration.articles.items()]
        write_documents(part_path(folder, TRAIN, "udhr", language), articles[:21])
        write_documents(part_path(folder, HELD_OUT, "udhr", language), articles[21:])
        if language in {"deu_Latn", "eng_Latn"}:
            long = Document(f"{language}/long", "\n".join(a.text for a in articles[:21]), language, "more")
            write_documents(part_path(folder, TRAIN, "more", language), [articles[1], long, articles[2]])
    return folder


@pytest.fixture(scope="module")
def tokenizer(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    train_bpe([documents], MODEL, 20_000, out)
    return out


@pytest.fixture(scope="module")
def curated(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return documents_artifact(documents, str(tmp_path_factory.mktemp("curated")))


def documents_artifact(folder: Path, root: str) -> Artifact:
    writer = ArtifactWriter(f"{root}/documents/f", "documents", "f", {}, {})
    writer.add_folder("", folder)
    writer.outputs["label"] = "group 0"
    return writer.commit({})


def tokenize(
    curated: Artifact, tokenizer: Path, place: Path, settings: Shards = SHARDS, model: Model = MODEL, processes: int = 1
) -> tuple[Artifact, TokenCounts]:
    place.mkdir(exist_ok=True)
    output = ArtifactWriter(str(place / "shards"), "shards", "f", {}, {})
    counts = tokenize_documents(curated, tokenizer, settings, model, output, place, processes)
    return output.commit({}), counts


@pytest.fixture(scope="module")
def shards(
    curated: Artifact, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Artifact, TokenCounts]:
    return tokenize(curated, tokenizer, tmp_path_factory.mktemp("shards"))


def read_rows(
    shards: Artifact, source: str, cache: Path, vocab_size: int = MODEL.vocab_size
) -> Iterator[list[list[int]]]:
    """The documents of each row, read as training reads them."""
    data_set, _ = open_data_set(shards.remote_folder(source))
    reader = ShardReader([data_set], cache, vocab_size)
    for row in range(int(data_set.begins[-1])):
        tokens, lengths = reader(0, row)
        yield [piece.tolist() for piece in np.split(tokens, np.cumsum(lengths)[:-1])]


def test_auto_tokenizer_loads_it_with_all_roles(tokenizer: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.bos_token_id, loaded.unk_token_id) == (0, 1, 2, 3)
    assert (loaded.mask_token_id, loaded.cls_token_id, loaded.sep_token_id) == (4, 2, 1)
    assert len(loaded) == MODEL.vocab_size
    ids = loaded("All human beings")["input_ids"]
    assert (ids[0], ids[-1]) == (BOS, EOS)
    assert loaded.decode(ids, skip_special_tokens=True) == "All human beings"
    assert loaded("All <mask> beings")["input_ids"].count(4) == 1
    pair = loaded("one", "two")["input_ids"]
    assert [i for i in pair if i in {BOS, EOS}] == [BOS, EOS, EOS]


def test_no_script_is_hopeless(documents: Path, tokenizer: Path) -> None:
    """On held-out text even scripts of three bytes a character need hardly more than a token a character."""
    encoder = read_tokenizer(tokenizer)
    for file in document_files([documents], HELD_OUT):
        texts = [document.text for document in read_documents(file.path)]
        tokens = sum(len(e.ids) for e in encoder.encode_batch(texts, add_special_tokens=False))
        assert tokens / sum(map(len, texts)) < 1.6, file.language
        assert encoder.decode(encoder.encode(texts[0]).ids) == unicodedata.normalize("NFC", texts[0])


def test_words_keep_their_marks(tokenizer: Path) -> None:
    pieces = read_tokenizer(tokenizer).pre_tokenizer.pre_tokenize_str("हिन्दी में, สวัสดี 12345")
    assert len(pieces) == 6  # two words, a comma, a word, and two groups of digits


def test_training_is_deterministic_and_never_sees_held_out_text(
    documents: Path, tokenizer: Path, tmp_path: Path
) -> None:
    for file in document_files([documents], TRAIN):
        write_documents(tmp_path / "train_only" / file.path.relative_to(documents), read_documents(file.path))
    train_bpe([tmp_path / "train_only"], MODEL, 20_000, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tokenizer)


def test_a_large_language_does_not_crowd_out_a_small_one(tmp_path: Path) -> None:
    paths = [tmp_path / "a.jsonl.zst", tmp_path / "b.jsonl.zst"]
    for path in paths:
        write_documents(
            path, [Document(f"{path.name}/{n}", f"{path.name} {n:04d}", "deu_Latn", "a") for n in range(500)]
        )
    texts = sample(paths, 2_000)
    assert sum(map(len, texts)) <= 2_000
    assert len(texts) > 100
    # Drawn from all of the documents, not from the first ones.
    assert {text[0] for text in texts} == {"a", "b"}
    assert max(int(text[-4:]) for text in texts) > 400


def test_a_tokenizer_needs_text_and_room(documents: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training documents"):
        train_bpe([tmp_path], MODEL, 1000, tmp_path / "out")
    with pytest.raises(UserError, match="at least 261"):
        train_bpe([documents], MODEL.model_copy(update={"vocab_size": 100}), 1000, tmp_path / "out")
    with pytest.raises(UserError, match="special token ids 0 to 4"):
        train_bpe([documents], MODEL.model_copy(update={"mask_token_id": 9}), 1000, tmp_path / "out")


def save_word_level(folder: Path, vocabulary: list[str]) -> Path:
    folder.mkdir()
    words = {word: number for number, word in enumerate(vocabulary)}
    Tokenizer(models.WordLevel(words, unk_token="<unk>")).save(str(folder / TOKENIZER_FILE))
    return folder


def test_a_pretrained_tokenizer_gets_mask_token_and_template(tmp_path: Path) -> None:
    name = save_word_level(tmp_path / "gemma-like", ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "word"])
    load_pretrained(str(name), "main", tmp_path / "out", MODEL)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert loaded("word")["input_ids"] == [BOS, 5, EOS]
    assert loaded.mask_token_id == 4
    assert loaded.convert_tokens_to_ids("<mask>") == 4


def test_a_tokenizer_that_does_not_fit_the_model_is_the_users_error(tmp_path: Path) -> None:
    without = save_word_level(tmp_path / "without", ["<pad>", "<eos>", "<bos>", "<unk>", "word"])
    with pytest.raises(UserError, match=r"no mask token at model\.mask_token_id 4: that is 'word'"):
        load_pretrained(str(without), "main", tmp_path / "out", MODEL)
    tiny = save_word_level(tmp_path / "tiny", ["<pad>", "<eos>", "<bos>", "<unk>"])
    with pytest.raises(UserError, match=r"no mask token .* there is no such token"):
        load_pretrained(str(tiny), "main", tmp_path / "out", MODEL)
    large = save_word_level(tmp_path / "large", ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *map(str, range(2000))])
    with pytest.raises(UserError, match=r"its largest id is 2004, but model\.vocab_size is 1200"):
        load_pretrained(str(large), "main", tmp_path / "out", MODEL)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        load_pretrained(str(tmp_path / "empty"), "main", tmp_path / "out", MODEL)
    assert not (tmp_path / "out").exists()


def test_no_token_is_lost_and_every_piece_is_wrapped(
    documents: Path, tokenizer: Path, shards: tuple[Artifact, TokenCounts], tmp_path: Path
) -> None:
    encoder = read_tokenizer(tokenizer)
    for source in ("more", "udhr"):
        expected = [
            encoder.encode(document.text, add_special_tokens=False).ids
            for file in document_files([documents], TRAIN)
            if file.source == source
            for document in read_documents(file.path)
        ]
        pieces = [piece for row in read_rows(shards[0], source, tmp_path) for piece in row]
        assert all((piece[0], piece[-1]) == (BOS, EOS) for piece in pieces)
        assert [i for piece in pieces for i in piece[1:-1]] == [i for ids in expected for i in ids]
        whole = [piece[1:-1] for piece in pieces if piece[1:-1] in expected]
        assert len(whole) == len([ids for ids in expected if len(ids) <= ROW_TOKENS - 2])


def test_rows_are_full_and_of_one_language_in_one_run(
    documents: Path, tokenizer: Path, shards: tuple[Artifact, TokenCounts], tmp_path: Path
) -> None:
    out, _ = shards
    for source in ("more", "udhr"):
        rows = list(read_rows(out, source, tmp_path))
        table = out.read_json(f"{source}/languages.json")
        assert list(table) == sorted(table)
        assert [entry["row_begin"] for entry in table.values()] == [
            sum(e["rows"] for e in list(table.values())[:n]) for n in range(len(table))
        ]
        assert sum(entry["rows"] for entry in table.values()) == len(rows)
        for entry in table.values():
            own = rows[entry["row_begin"] : entry["row_begin"] + entry["rows"]]
            sizes = [sum(map(len, row)) for row in own]
            assert sum(sizes) == entry["tokens"]
            assert max(sizes) <= ROW_TOKENS
            # A row ends only where the next document did not fit.
            assert all(size + len(after[0]) > ROW_TOKENS for size, after in zip(sizes, own[1:], strict=False))
        english = read_tokenizer(tokenizer).decode(rows[table["eng_Latn"]["row_begin"]][0])
        assert english.split()[0] in {"Whereas", "All"}
    assert len([path for path in out.paths("udhr/") if path.endswith(".zstd")]) > len(LANGUAGES)


def test_counts_are_of_the_documents(documents: Path, shards: tuple[Artifact, TokenCounts]) -> None:
    out, counts = shards
    assert out.read_json("counts.json") == counts.to_json()
    assert sorted(counts.sources["udhr"]) == sorted(LANGUAGES)
    for file in document_files([documents], TRAIN):
        found = counts.sources[file.source][file.language]
        texts = [document.text for document in read_documents(file.path)]
        assert (found.documents, found.bytes) == (len(texts), sum(len(t.encode()) for t in texts))
        assert found.to_json()["bytes_per_token"] == pytest.approx(found.bytes / found.tokens, abs=1e-3)
    metrics = counts.metrics()
    assert metrics["tokens"] == sum(c.tokens for languages in counts.sources.values() for c in languages.values())


def test_the_bytes_do_not_depend_on_the_number_of_processes(
    curated: Artifact, tokenizer: Path, shards: tuple[Artifact, TokenCounts], tmp_path: Path
) -> None:
    again, _ = tokenize(curated, tokenizer, tmp_path, processes=2)
    assert again.digest == shards[0].digest
    assert not list(tmp_path.rglob("progress/**/*.json"))


def test_the_streaming_library_reads_every_row(shards: tuple[Artifact, TokenCounts], tmp_path: Path) -> None:
    found = StreamingDataset(
        remote=shards[0].remote_folder("udhr"),
        local=str(tmp_path / "a"),
        validate_hash="xxh64",
        shuffle=False,
        batch_size=1,
    )
    rows = [np.split(sample["tokens"], np.cumsum(sample["lengths"])[:-1]) for sample in found]
    assert [[p.tolist() for p in row] for row in rows] == list(read_rows(shards[0], "udhr", tmp_path / "b"))


@pytest.mark.parametrize("compression", ["zstd:3", None])
def test_shards_are_those_of_the_streaming_librarys_writer(compression: str | None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    settings = ShardFormat(compression, 300_000)
    buffer, entries = ShardBuffer(settings), []
    with MDSWriter(
        columns=COLUMNS, out=str(tmp_path), compression=compression, hashes=["xxh64"], size_limit=300_000
    ) as writer:
        for pieces, length in [(1, 3), (255, 3), (256, 7), (4, 64), (1, 65_535), (1, 65_536), (5, 4000)]:
            lengths = np.full(pieces, length, np.uint32)
            tokens = rng.integers(0, 256_000, pieces * length).astype(np.uint32)
            writer.write({"tokens": tokens, "lengths": lengths})
            if not buffer.add(tokens, lengths):
                entries.append(finish_shard(buffer, settings, f"shard.{len(entries):05d}.mds"))
                buffer = ShardBuffer(settings)
                assert buffer.add(tokens, lengths)
    entries.append(finish_shard(buffer, settings, f"shard.{len(entries):05d}.mds"))
    index = json.loads((tmp_path / "index.json").read_text())
    assert len(entries) == len(index["shards"]) > 1
    for (entry, data), expected in zip(entries, index["shards"], strict=True):
        raw = zstandard.decompress(data) if compression else data
        file = tmp_path / (expected["zip_data"] or expected["raw_data"])["basename"]
        written = file.read_bytes()
        assert raw == (zstandard.decompress(written) if compression else written)
        assert entry | {"zip_data": None} == expected | {"zip_data": None}


def test_bos_and_eos_are_as_the_recipe_says(curated: Artifact, tokenizer: Path, tmp_path: Path) -> None:
    settings = SHARDS.model_copy(update={"add_bos": False, "add_eos": False})
    out, counts = tokenize(curated, tokenizer, tmp_path, settings)
    pieces = [piece for row in read_rows(out, "more", tmp_path / "cache") for piece in row]
    assert not [piece for piece in pieces if BOS in piece or EOS in piece]
    encoder = read_tokenizer(tokenizer)
    documents = [d for path in curated.paths("train/more/") for d in read_documents(Path(curated.remote(path)))]
    expected = [i for d in documents for i in encoder.encode(d.text, add_special_tokens=False).ids]
    assert [i for piece in pieces for i in piece] == expected
    assert sum(found.tokens for found in counts.sources["more"].values()) == len(expected)


def test_ids_beyond_the_vocabulary_are_the_users_error(curated: Artifact, tokenizer: Path, tmp_path: Path) -> None:
    for processes in (1, 2):
        with pytest.raises(UserError, match=r"model\.vocab_size is 400"):
            tokenize(
                curated, tokenizer, tmp_path, model=MODEL.model_copy(update={"vocab_size": 400}), processes=processes
            )
    assert not list(tmp_path.rglob("counts.json"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data + zstandard.compress(b"{broken\n"), "line 22: not a document"),
        (lambda data: zstandard.compress(b'{"id": "a"}\n'), "line 1: not a document .'text'"),
        (lambda data: data[:-9], "not a document .the file is truncated"),
    ],
)
def test_a_damaged_document_is_named_and_nothing_is_committed(
    documents: Path, tokenizer: Path, tmp_path: Path, damage: Callable[[bytes], bytes], words: str
) -> None:
    path = part_path(documents, TRAIN, "udhr", "hin_Deva")
    damaged = part_path(tmp_path / "text", TRAIN, "udhr", "hin_Deva")
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(damage(path.read_bytes()))
    curated = documents_artifact(tmp_path / "text", str(tmp_path))
    with pytest.raises(UserError, match=f"'train/udhr/hin_Deva/00000.jsonl.zst', .*{words}"):
        tokenize(curated, tokenizer, tmp_path)
    assert not (tmp_path / "shards" / "manifest.json").exists()


# Gemma 2's tokenizer, which the fast engine runs.


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gemma")
    load_pretrained(str(GEMMA_FILE), "main", out, GEMMA_MODEL)
    return out


def test_gemma_gets_its_roles_and_template(gemma: Path) -> None:
    template = json.loads((gemma / TOKENIZER_FILE).read_text())["post_processor"]["single"]
    assert [next(iter(piece.values()))["id"] for piece in template] == ["<bos>", "A", "<eos>"]
    roles = json.loads((gemma / "tokenizer_config.json").read_text())
    assert (roles["mask_token"], roles["cls_token"], roles["sep_token"]) == ("<mask>", "<bos>", "<eos>")


def test_the_fast_engine_gives_the_references_shards(
    gemma: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for declaration in read_declarations(declaration_folder()):
        if declaration.language in {"chr_Cher", "eng_Latn", "tha_Thai"}:
            documents = [
                Document(str(n), text, declaration.language, "udhr") for n, text in declaration.articles.items()
            ]
            write_documents(part_path(tmp_path / "text", TRAIN, "udhr", declaration.language), documents)
    curated = documents_artifact(tmp_path / "text", str(tmp_path))
    fast, counts = tokenize(curated, gemma, tmp_path / "fast", model=GEMMA_MODEL)
    reference, _ = tokenize(
        curated, gemma, tmp_path / "reference", SHARDS.model_copy(update={"engine": "reference"}), GEMMA_MODEL
    )
    assert fast.digest == reference.digest
    assert "warning" not in capsys.readouterr().out
    # Cherokee is spelt in bytes, English never.
    assert counts.sources["udhr"]["eng_Latn"].byte_tokens == 0
    encoder = read_tokenizer(gemma)
    assert encoder.encode("a <mask>").ids[2:] == [encoder.token_to_id("\u2581"), 4, EOS]
    path = Path(curated.remote("train/udhr/chr_Cher/00000.jsonl.zst"))
    tokens = [t for d in read_documents(path) for t in encoder.encode(d.text).tokens]
    assert counts.sources["udhr"]["chr_Cher"].byte_tokens == len([t for t in tokens if t.startswith("<0x")]) > 0


def test_text_tokenized_elsewhere_gives_the_same_shards(
    curated: Artifact, tokenizer: Path, shards: tuple[Artifact, TokenCounts], tmp_path: Path
) -> None:
    parts = []
    for path in curated.paths("train/"):
        _, source, language, _ = path.split("/")
        parts.append(Part(source, language, path, curated.file(path).size))
    read = functools.partial(encoded_documents, curated, tokenizer)
    output = ArtifactWriter(str(tmp_path / "shards"), "shards", "f", {}, {})
    write_token_shards(parts, read, tokenizer, SHARDS, MODEL, output)
    expected, found = ({f.path: f.sha256 for f in a.manifest.files} for a in (shards[0], output.commit({})))
    # Where the tokenizer's normaliser changed the text (Hindi's), bytes are counted after it.
    changed = {path for path in expected if found[path] != expected[path]}
    assert changed <= {"udhr/languages.json", "counts.json"}


def encoded_documents(curated: Artifact, tokenizer: Path, part: Part, skip: int) -> Iterator[Ids]:
    """Every other document comes with its bos and eos."""
    encoder = read_tokenizer(tokenizer)
    documents = read_documents(Path(curated.remote(part.path)))
    for number, document in enumerate(itertools.islice(documents, skip, None)):
        yield np.array(encoder.encode(document.text, add_special_tokens=bool(number % 2)).ids, np.uint32)


def test_a_tokenizer_that_the_fast_engine_cannot_load_is_warned_of_once(
    curated: Artifact, tokenizer: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenize(curated, tokenizer, tmp_path, processes=2)
    assert capfd.readouterr().out.count("the fast one cannot load this tokenizer") == 1


def test_a_difference_from_the_reference_stops_the_run(curated: Artifact, tmp_path: Path) -> None:
    """gigatoken 0.10 takes a byte-level BPE without splitting for one that splits."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    bpe.train_from_iterator(["the right of the people to the"] * 9, trainer)
    bpe.save(str(tmp_path / "tokenizer.json"))
    load_pretrained(str(tmp_path / "tokenizer.json"), "main", tmp_path / "out", MODEL)
    for processes in (1, 2):
        with pytest.raises(
            EngineDifferenceError,
            match=r"language eng_Latn, document 'eng_Latn/\d+': .* at token \d+ \(.* instead of .*\); .*: reference",
        ):
            tokenize(english(curated, tmp_path), tmp_path / "out", tmp_path, processes=processes)
    assert not (tmp_path / "shards" / "manifest.json").exists()


def english(curated: Artifact, tmp_path: Path) -> Artifact:
    for path in curated.paths("train/"):
        if "eng_Latn" in path:
            target = tmp_path / "english" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(curated.read(path))
    return documents_artifact(tmp_path / "english", str(tmp_path))


def test_with_a_prefix_space_a_word_alone_is_the_word_in_a_sentence(documents: Path, tmp_path: Path) -> None:
    train_bpe([documents], MODEL, 20_000, tmp_path, prefix_space=True)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    words = ["Everyone", "has", "the", "right"]
    assert loaded(words, is_split_into_words=True)["input_ids"] == loaded(" ".join(words))["input_ids"]
    assert loaded.decode(loaded(" ".join(words))["input_ids"], skip_special_tokens=True) == " ".join(words)
    assert loaded.encode("right", add_special_tokens=False) == loaded.encode("the right", add_special_tokens=False)[-1:]
