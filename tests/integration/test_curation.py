"""Curation of the demo sources and of a user's own text."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import zstandard

from mmbert.data.documents import HELD_OUT, TRAIN, Document, document_files, read_documents, write_documents
from mmbert.data.pieces import split_text
from mmbert.data.readers import is_held_out, language_group
from mmbert.data.steps.light import letter_share
from mmbert.data.steps.repair import Repair
from mmbert.errors import UserError
from mmbert.recipe.schema import Curation, EldSource, FilesSource, Source, UdhrSource
from tests.curating import contents, curate, dropped, read_all

DEMO: dict[str, Source] = {"eld": EldSource(kind="eld"), "udhr": UdhrSource(kind="udhr")}
# A sixteenth of the languages keeps these tests short; the code is the same.
GROUPS = 16
GROUP = language_group("eng_Latn", GROUPS)
ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def sentence(number: int) -> str:
    """A sentence of letters that no other number gives."""
    word = "".join(ALPHABET[(number // 26**place) % 26] for place in range(4))
    return f"Der Satz {word} steht hier und sagt nichts."


def user_files(folder: Path, files: Mapping[str, bytes | str]) -> FilesSource:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    folder.mkdir(exist_ok=True)
    return FilesSource(kind="files", path=str(folder), held_out_share=0.2)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("demo")
    return out, curate(DEMO, Curation(groups=GROUPS), ["eng_Latn"], GROUP, out).counts


def test_articles_21_to_30_and_a_tenth_of_the_sentences_are_held_out(demo: tuple[Path, dict[str, Any]]) -> None:
    train, held_out = (read_all(demo[0], split) for split in (TRAIN, HELD_OUT))
    articles = {split: {d.metadata["article"] for d in documents if d.source == "udhr"}
                for split, documents in ((TRAIN, train), (HELD_OUT, held_out))}  # fmt: skip
    assert articles == {TRAIN: set(range(21)), HELD_OUT: set(range(21, 31))}
    sentences = [len([d for d in documents if d.source == "eld"]) for documents in (train, held_out)]
    assert 0.08 < sentences[1] / sum(sentences) < 0.12
    trained_on = {(d.language, d.text) for d in train}
    assert not trained_on & {(d.language, d.text) for d in held_out}


def test_reserved_languages_are_nowhere(demo: tuple[Path, dict[str, Any]]) -> None:
    out, counts = demo
    assert all("eng_Latn" not in languages for languages in counts.values())
    assert not [d for split in (TRAIN, HELD_OUT) for d in read_all(out, split) if d.language == "eng_Latn"]
    assert "eng_Latn" not in {d.language for d in dropped(out)}


def test_counts_are_of_what_was_written_and_dropped(demo: tuple[Path, dict[str, Any]]) -> None:
    out, counts = demo
    assert json.loads((out / "counts.json").read_text()) == counts
    for split in (TRAIN, HELD_OUT):
        for file in document_files([out], split):
            documents = list(read_documents(file.path))
            entry = counts[file.source][file.language][split]
            assert entry["documents"] == len(documents) > 0
            assert entry["bytes"] == sum(len(d.text.encode()) for d in documents)
            assert {(d.language, d.source) for d in documents} == {(file.language, file.source)}
    for language, splits in counts["eld"].items():
        found = sum(entry["documents"] + sum(entry["dropped"].values()) for entry in splits.values())
        assert found == 1000, language


def test_the_same_sources_give_the_same_bytes(demo: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    curate(DEMO, Curation(groups=GROUPS), ["eng_Latn"], GROUP, tmp_path)
    assert contents(tmp_path) == contents(demo[0])


def test_groups_share_out_the_languages(tmp_path: Path) -> None:
    codes = ["deu_Latn", "fra_Latn", "fao_Latn", "tha_Thai", "hin_Deva", "kor_Hang"]
    source = user_files(tmp_path / "mine", {f"{code}/a.txt": sentence(1) for code in codes})
    found = [
        sorted(curate({"mine": source}, Curation(groups=3), [], group, tmp_path / str(group)).counts.get("mine", {}))
        for group in range(3)
    ]
    assert sorted(code for group in found for code in group) == sorted(codes)
    assert len([group for group in found if group]) > 1
    with pytest.raises(UserError, match="group 3 does not exist"):
        curate({"mine": source}, Curation(groups=3), [], 3, tmp_path / "3")


def test_a_users_text_and_jsonl_plain_and_compressed(tmp_path: Path) -> None:
    rows = [json.dumps({"text": sentence(n), "url": f"https://example.org/{n}", "junk": 1}) for n in range(40)]
    source = user_files(
        tmp_path / "mine",
        {
            "deu_Latn/a.jsonl": "\n".join(rows[:10]),
            "deu_Latn/sub/b.jsonl.gz": gzip.compress("\n".join(rows[10:20]).encode()),
            # Two frames, as pigz-like tools and appends make them.
            "deu_Latn/c.jsonl.zst": b"".join(zstandard.compress((r + "\n").encode()) for r in rows[20:30]),
            "fao_Latn/d.txt": "\r\n".join(sentence(n) for n in range(30, 40)),
        },
    )
    counts = curate({"mine": source}, Curation(), [], 0, tmp_path / "out").counts
    documents = [d for split in (TRAIN, HELD_OUT) for d in read_all(tmp_path / "out", split)]
    assert sorted(d.text for d in documents) == sorted(sentence(n) for n in range(40))
    assert {d.language: d.metadata.get("url", "")[:20] for d in documents} == {
        "deu_Latn": "https://example.org/",
        "fao_Latn": "",
    }
    assert len({d.id for d in documents}) == 40
    assert counts["mine"]["deu_Latn"][TRAIN]["documents"] == len(
        [d for d in documents if d.language == "deu_Latn" and not is_held_out(d.text, 0.2)]
    )


def test_what_is_dropped_is_kept_with_its_reason(tmp_path: Path) -> None:
    lines = [sentence(1), "kurz", "1234 5678 9012 3456 7890", sentence(1), "  " + sentence(1).replace(" ", "  ")]
    repeated = json.dumps({"text": "\n".join(["Immer dieselbe Zeile."] * 5 + [sentence(2)])})
    source = user_files(tmp_path / "mine", {"deu_Latn/a.txt": "\n".join(lines), "deu_Latn/b.jsonl": repeated})
    counts = curate({"mine": source}, Curation(), [], 0, tmp_path / "out").counts
    assert sorted(d.metadata["reason"] for d in dropped(tmp_path / "out")) == [
        "duplicate", "duplicate", "few_letters", "repeated_lines", "too_short",
    ]  # fmt: skip
    splits = counts["mine"]["deu_Latn"].values()
    assert sum(entry["documents"] for entry in splits) == 1
    assert sum(sum(entry["dropped"].values()) for entry in splits) == 5


@pytest.mark.parametrize("order", [("books", "web"), ("web", "books")])
@pytest.mark.parametrize("deduplicate", [True, False])
def test_a_training_text_that_is_held_out_elsewhere_is_dropped(
    tmp_path: Path, order: tuple[str, str], deduplicate: bool
) -> None:
    text = next(
        sentence(n) for n in range(1000) if is_held_out(sentence(n), 0.1) and not is_held_out(sentence(n), 0.01)
    )
    other = next(sentence(n) for n in range(1000) if not is_held_out(sentence(n), 0.1))
    files = user_files(tmp_path / "text", {"deu_Latn/a.txt": f"{text}\n{other}"})
    shares = {"books": 0.1, "web": 0.01}
    sources = {name: files.model_copy(update={"held_out_share": shares[name]}) for name in order}
    counts = curate(sources, Curation(exact_deduplication=deduplicate), [], 0, tmp_path / "out").counts
    assert {d.text for d in read_all(tmp_path / "out", TRAIN)} == {other}
    assert [d.text for d in read_all(tmp_path / "out", HELD_OUT)] == [text]
    assert counts["web"]["deu_Latn"][TRAIN]["dropped"]["equals_held_out"] == 1
    assert [d.metadata["reason"] for d in dropped(tmp_path / "out") if d.text == text] == ["equals_held_out"]


def test_long_documents_are_split_not_dropped(tmp_path: Path) -> None:
    text = " ".join(sentence(n) for n in range(200))
    source = user_files(tmp_path / "mine", {"deu_Latn/a.txt": text})
    curate({"mine": source}, Curation(max_characters=1000), [], 0, tmp_path / "out")
    pieces = [d for split in (TRAIN, HELD_OUT) for d in read_all(tmp_path / "out", split)]
    assert len(pieces) > 8
    assert max(len(d.text) for d in pieces) <= 1000
    assert " ".join(d.text for d in pieces) == text


def test_a_cut_falls_on_line_ends_then_spaces_then_anywhere() -> None:
    assert split_text("aaaa bbbb\ncccc dddd", 12) == ["aaaa bbbb", "cccc dddd"]
    assert split_text("aaaa bbbb cccc", 10) == ["aaaa bbbb", "cccc"]
    assert split_text("a" * 25, 10) == ["a" * 10, "a" * 10, "a" * 5]
    assert split_text("short", 10) == ["short"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("filiÃ¨re renforcÃ©e de l\x92Ã‰tat", "filière renforcée de l’État"),
        ("e\u0301te\u0301", "été"),
        ("a \t b\u00a0c\r\nd\n\n\n\ne  ", "a b c\nd\n\ne"),
        ("\ufeffكتاب\x00", "كتاب"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("ＡＢＣ「引用」", "ＡＢＣ「引用」"),
    ],
)
def test_repair(before: str, after: str) -> None:
    assert Repair().format(before) == after


def test_marks_count_as_letters() -> None:
    assert letter_share("हिन्दी में") == 1
    assert letter_share("12 34 ab") == pytest.approx(2 / 6)


def test_source_code_keeps_its_white_space(tmp_path: Path) -> None:
    code = "if x:\n\tif y:\n\t\treturn  {1: 2}\n" + "}\n" * 9
    source = user_files(tmp_path / "mine", {"code/a.jsonl": json.dumps({"text": code})})
    curate({"mine": source}, Curation(), [], 0, tmp_path / "out")
    assert [d.text for split in (TRAIN, HELD_OUT) for d in read_all(tmp_path / "out", split)] == [code]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("deu_Latn/a.txt", sentence(1).encode() + b"\n\xff\xfe\n", r"deu_Latn/a\.txt, line 2: not UTF-8"),
        ("deu_Latn/a.txt", "\n\n", r"source mine: no text in deu_Latn/a\.txt"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes | str, message: str) -> None:
    source = user_files(tmp_path / "mine", {name: content})
    with pytest.raises(UserError, match=message):
        curate({"mine": source}, Curation(), [], 0, tmp_path / "out")
    assert not (tmp_path / "out" / "counts.json").exists()


def test_missing_or_broken_declarations_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source: dict[str, Source] = {"udhr": UdhrSource(kind="udhr")}
    monkeypatch.setenv("MMBERT_UDHR", str(tmp_path))
    with pytest.raises(UserError, match="MMBERT_UDHR must name"):
        curate(source, Curation(), [], 0, tmp_path / "out")
    (tmp_path / "declaration").mkdir()
    with pytest.raises(UserError, match="holds no declarations"):
        curate(source, Curation(), [], 0, tmp_path / "out")
    (tmp_path / "declaration" / "deu.html").write_bytes(b'<html data-iso6393="deu">\n<p>Pr\xe4ambel</p></html>')
    with pytest.raises(UserError, match=r"deu\.html, line 2: not UTF-8"):
        curate(source, Curation(), [], 0, tmp_path / "out")


def test_documents_survive_the_round_trip_and_damage_is_named(tmp_path: Path) -> None:
    documents = [Document("a/1", "Zeile\u2028\nnoch\x85 eine \U0001f600", "deu_Latn", "a", {"url": "ü", "article": 3})]
    path = tmp_path / "x.jsonl.zst"
    write_documents(path, documents)
    assert list(read_documents(path)) == documents
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match=r"x\.jsonl\.zst.*not a file of documents"):
        list(read_documents(path))
