"""`mmbert mixture` as a user meets it: its files, its table, and what it says of wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from components.cli import _exit_code, cli

COUNTS = "language,tokens\ndeu,1000000\nfra,10000\nfao,100\n"
BY_SOURCE = "source,language,tokens\nweb,deu,1M\nweb,fra,10k\nwiki,deu,2000\nwiki,klingon,500\n"


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code and both outputs of `mmbert mixture`, through the command's own translation of errors."""
    outputs = CliRunner().isolation()
    with outputs as (out, err, _):
        code = _exit_code(lambda: cli(["mixture", *arguments], standalone_mode=False))
        return code, out.getvalue().decode(), err.getvalue().decode()


def table(folder: Path, text: str = COUNTS) -> str:
    path = folder / "counts.csv"
    path.write_text(text, "utf-8")
    return str(path)


def test_it_writes_json_a_plot_and_a_table(tmp_path: Path) -> None:
    out = tmp_path / "new" / "mixture.json"
    code, printed, _ = run(
        "--counts", table(tmp_path), "--temperature", "0.5", "--tokens", "1M", "--max-epochs", "3", "--out", str(out)
    )
    assert code == 0
    found = json.loads(out.read_text("utf-8"))
    assert found["languages"]["fao"] == {
        "share": pytest.approx(0.0003), "tokens": 300, "epochs": 3, "size": 100, "caps": ["max_epochs"],
    }  # fmt: skip
    assert found["languages"]["deu"]["share"] == pytest.approx(1 - 0.03 - 0.0003)
    assert sum(language["tokens"] for language in found["languages"].values()) == 1_000_000
    assert found["caps"] == {"fixed_share": [], "max_epochs": ["fao", "fra"]}
    assert found["settings"]["temperature"] == 0.5
    assert [line.split()[0] for line in printed.splitlines()[1:4]] == ["deu", "fra", "fao"]
    assert "max epochs" in next(line for line in printed.splitlines() if line.startswith("fao"))
    page = (tmp_path / "new" / "mixture.html").read_text("utf-8")
    assert "klingon" not in page
    assert '"fao"' in page
    assert sorted(path.name for path in out.parent.iterdir()) == ["mixture.html", "mixture.json"]


def test_sources_have_their_shares_and_any_label_is_a_language(tmp_path: Path) -> None:
    out, plot = tmp_path / "m.json", tmp_path / "shares.html"
    code, _, _ = run(
        "--counts", table(tmp_path, BY_SOURCE), "--temperature", "1", "--tokens", "1000", "--out", str(out),
        "--source-shares", "web=0.75,wiki=0.25", "--share", "klingon=0.1", "--plot", str(plot),
    )  # fmt: skip
    found = json.loads(out.read_text("utf-8"))
    assert code == 0
    assert found["sources"] == {
        "web": {"share": pytest.approx(0.75), "tokens": 750},
        "wiki": {"share": pytest.approx(0.25), "tokens": 250},
    }
    assert found["languages"]["klingon"]["share"] == pytest.approx(0.1)
    assert found["languages"]["klingon"]["caps"] == ["fixed_share"]
    rows = {(row["source"], row["language"]): row["tokens"] for row in found["rows"]}
    assert rows == {("web", "deu"): 743, ("web", "fra"): 7, ("wiki", "deu"): 150, ("wiki", "klingon"): 100}
    assert plot.exists()


def test_a_source_without_a_share_is_left_out_and_said_so(tmp_path: Path) -> None:
    out = tmp_path / "m.json"
    code, _, warned = run(
        "--counts", table(tmp_path, BY_SOURCE), "--temperature", "1", "--tokens", "1000", "--out", str(out),
        "--source-shares", "web=1",
    )  # fmt: skip
    assert code == 0
    assert "left out: wiki" in warned
    assert "klingon" in json.loads(out.read_text("utf-8"))["warnings"][1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("language,words\ndeu,5\n", "line 1: no column 'tokens', found language, words"),
        ("", "line 1: no column 'language', found nothing"),
        ("language,tokens\n", "the table has no rows"),
        ("language,tokens\ndeu,5\nfra,many\n", "line 3: tokens: 'many'"),
        ("language,tokens\ndeu,-5\n", "line 2: tokens: '-5'"),
        ("language,tokens\ndeu,1.5\n", "line 2: tokens: '1.5'"),
        ("language,tokens\ndeu\n", "line 2: tokens: ''"),
        ("language,tokens\n,5\n", "line 2: the language is empty"),
        ("language,tokens\ndeu,5\nfra,6\ndeu,7\n", "line 4: language 'deu' stands on line 2 already"),
        ("source,language,tokens\nw,deu,5\nw,deu,7\n", "line 3: language 'deu' of source 'w' stands on line 2"),
        ('language,tokens\n"deu,5\n', "not valid CSV"),
        ("language,tokens\ndeu,0\n", "no text of 1 language asked for"),
    ],
)
def test_a_wrong_table_is_named_by_line_and_value(tmp_path: Path, text: str, words: str) -> None:
    refused(tmp_path, words, counts=table(tmp_path, text))


def test_a_table_that_is_not_text_or_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes("language,tokens\ndéu,5\n".encode("latin-1"))
    refused(tmp_path, "latin.csv: not UTF-8", counts=str(path))
    refused(tmp_path, "absent.csv: no such file", counts=str(tmp_path / "absent.csv"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--temperature", "0"), "--temperature = 0.0: Input should be greater than 0"),
        (("--temperature", "-0.5"), "--temperature = -0.5"),
        (("--temperature", "1.5"), "--temperature = 1.5: Input should be less than or equal to 1"),
        (("--temperature", "nan"), "--temperature = nan"),
        (("--tokens", "0"), "--tokens is 0"),
        (("--tokens", "600G"), "--tokens: '600G'"),
        (("--max-epochs", "0"), "--max-epochs = 0.0"),
        (("--max-epochs", "inf"), "--max-epochs = inf"),
        (("--max-epochs", "0.01"), "are missing"),
        (("--share", "deu=1.2"), "--share deu = 1.2"),
        (("--share", "deu=nan"), "--share deu = nan"),
        (("--share", "deu=0.7,fra=0.7"), "--share add up to 1.4"),
        (("--share", "deu=0.1,deu=0.1"), "--share: 'deu' stands there twice"),
        (("--share", "deu"), "--share 'deu' is not of the form"),
        (("--share", "deu=x"), "--share deu: 'x' is not a number"),
        (("--share", "eng=0.1"), "--share eng:"),
        (("--source-shares", "web=0.8"), "--source-shares add up to 0.8"),
        (("--source-shares", "web=0.8", "--source-shares", "books=0.2"), "--source-shares books:"),
        (("--plot", "SAME"), "give the plot another name"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    out = str(tmp_path / "m.json")
    refused(tmp_path, words, *(out if option == "SAME" else option for option in options),
            counts=table(tmp_path, BY_SOURCE))  # fmt: skip


def refused(folder: Path, words: str, *options: str, counts: str) -> None:
    """Exit code 2, one message with these words, and no file."""
    out = folder / "m.json"
    code, _, message = run("--counts", counts, "--temperature", "0.5", "--tokens", "1M", "--out", str(out), *options)
    assert (code, words in message) == (2, True), message
    assert message.count("error:") == 1
    assert not list(folder.glob("*m.*"))


def test_a_place_that_cannot_be_written_is_infrastructure(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    for out in ("/dev/full/m.json", str(tmp_path / "taken")):
        code, _, message = run("--counts", table(tmp_path), "--temperature", "1", "--tokens", "1M", "--out", out)
        assert code == 3
        assert out.removesuffix(".json") in message
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["counts.csv", "taken"]


def test_a_failed_run_keeps_the_last_plan(tmp_path: Path) -> None:
    out = tmp_path / "m.json"
    run("--counts", table(tmp_path), "--temperature", "1", "--tokens", "1M", "--out", str(out))
    before = {path.name: path.read_bytes() for path in tmp_path.glob("m.*")}
    code, _, _ = run(
        "--counts", table(tmp_path), "--temperature", "1", "--tokens", "1M", "--out", str(out), "--max-epochs", "0.1"
    )
    assert code == 2
    assert {path.name: path.read_bytes() for path in tmp_path.glob("m.*")} == before
