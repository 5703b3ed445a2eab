"""Tokenizers and MDS shards, on articles of the declarations."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from mmbert.data.documents import (
    HELD_OUT,
    TRAIN,
    Document,
    document_files,
    part_path,
    read_documents,
    write_documents,
)
from mmbert.data.tokenization import TokenCounts, tokenize_documents
from mmbert.data.tokenizer import TOKENIZER_FILE, load_pretrained, read_tokenizer, sample, train_bpe
from mmbert.data.udhr import declaration_folder, read_declarations
from mmbert.errors import UserError
from mmbert.loader.shards import ShardReader, open_data_set
from mmbert.recipe.loading import load_recipe
from mmbert.recipe.schema import Shards

LANGUAGES = ("amh_Ethi", "deu_Latn", "eng_Latn", "hin_Deva", "jpn_Jpan", "rus_Cyrl", "tha_Thai")
ROW_TOKENS = 256
SHARDS = Shards(row_tokens=ROW_TOKENS, shard_size_mb=0.02)
BOS, EOS = 2, 1
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
def shards(documents: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TokenCounts]:
    out = tmp_path_factory.mktemp("shards")
    return out, tokenize_documents(documents, tokenizer, SHARDS, MODEL.vocab_size, out)


def read_rows(shards: Path, source: str, cache: Path, vocab_size: int = MODEL.vocab_size) -> Iterator[list[list[int]]]:
    """The documents of each row, read as training reads them."""
    data_set, _ = open_data_set(str(shards / source))
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
    documents: Path, tokenizer: Path, shards: tuple[Path, TokenCounts], tmp_path: Path
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
    documents: Path, tokenizer: Path, shards: tuple[Path, TokenCounts], tmp_path: Path
) -> None:
    out, _ = shards
    for source in ("more", "udhr"):
        rows = list(read_rows(out, source, tmp_path))
        table = json.loads((out / source / "languages.json").read_text())
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
    assert len(list((out / "udhr").glob("*.zstd"))) > 1


def test_counts_are_of_the_documents(documents: Path, shards: tuple[Path, TokenCounts]) -> None:
    out, counts = shards
    assert json.loads((out / "counts.json").read_text()) == counts.to_json()
    assert sorted(counts.sources["udhr"]) == sorted(LANGUAGES)
    for file in document_files([documents], TRAIN):
        found = counts.sources[file.source][file.language]
        texts = [document.text for document in read_documents(file.path)]
        assert (found.documents, found.bytes) == (len(texts), sum(len(t.encode()) for t in texts))
        assert found.to_json()["bytes_per_token"] == pytest.approx(found.bytes / found.tokens, abs=1e-3)
    metrics = counts.metrics()
    assert metrics["tokens"] == sum(c.tokens for languages in counts.sources.values() for c in languages.values())


def test_the_same_documents_give_the_same_shards(
    documents: Path, tokenizer: Path, shards: tuple[Path, TokenCounts], tmp_path: Path
) -> None:
    tokenize_documents(documents, tokenizer, SHARDS, MODEL.vocab_size, tmp_path)
    assert contents(tmp_path) == contents(shards[0])


def test_ids_beyond_the_vocabulary_are_the_users_error(documents: Path, tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.vocab_size is 400"):
        tokenize_documents(documents, tokenizer, SHARDS, 400, tmp_path)
    assert not (tmp_path / "counts.json").exists()
