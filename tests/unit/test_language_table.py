"""The language table against the published totals, the demo sources and the program that makes it."""

from __future__ import annotations

import csv
import hashlib
import re
from importlib import resources
from pathlib import Path

import pytest

from mmbert.data.eld import LANGUAGES
from mmbert.data.scripts import script_of
from mmbert.data.udhr import declaration_folder, read_declarations
from mmbert.recipe.languages import CODE, PUBLISHED_COLUMNS, language_name, language_table, published_set
from mmbert.recipe.make_languages import COLUMNS, make_rows


def committed() -> list[dict[str, str]]:
    text = resources.files("mmbert.recipe").joinpath("languages.csv").read_text("utf-8")
    return list(csv.DictReader(text.splitlines()))


@pytest.mark.parametrize(
    ("column", "languages", "tokens"),
    [
        ("pretrain", 60, 1_989_020_158_322),
        ("ext", 109, 600_815_468_128),
        ("decay-eng", 109, 104_398_382_373),
        ("decay-mid", 109, 103_308_072_307),
        ("decay-all", 1833, 114_226_161_784),
    ],
)
def test_published_totals(column: str, languages: int, tokens: int) -> None:
    rows = [row for row in committed() if int(row[column])]
    assert sum(int(row[column]) for row in rows) == tokens
    assert len([row for row in rows if row["code"] != CODE]) == languages
    assert CODE in {row["code"] for row in rows}


PUBLISHED_COUNTS = "867e547695c4594de5fd6e93a257091747d1318bfb48fddebde306a13e4f100f"
"""sha256 of the published table's lines `language,pretrain,ext,decay-eng,decay-mid,decay-all`, sorted."""


def test_the_counts_are_the_published_ones_line_by_line() -> None:
    languages = [language for language in language_table().values() if any(language.tokens.values())]
    lines = sorted((language.code.split("_")[0], *(language.tokens[c] for c in COLUMNS)) for language in languages)
    text = "".join(",".join(map(str, line)) + "\n" for line in lines)
    assert len(lines) == 1834
    assert hashlib.sha256(text.encode()).hexdigest() == PUBLISHED_COUNTS


def test_a_language_tells_its_script_and_its_phases() -> None:
    table = language_table()
    assert (table["deu_Latn"].script, table["amh_Ethi"].script, table[CODE].script) == ("Latn", "Ethi", "")
    assert table["deu_Latn"].phases == table[CODE].phases == tuple(PUBLISHED_COLUMNS)
    assert table["amh_Ethi"].phases == tuple(name for name in PUBLISHED_COLUMNS if name != "published-pretrain")
    assert table["aai_Latn"].phases == ("published-decay-all",)


def test_codes_are_unique_and_well_formed() -> None:
    codes = [row["code"] for row in committed()]
    assert len(codes) == len(set(codes))
    assert all(code == CODE or re.fullmatch(r"[a-z]{3}_[A-Z][a-z]{3}", code) for code in codes)
    assert all(row["name"].strip() for row in committed())


def test_known_languages_have_their_usual_script_and_name() -> None:
    usual = (
        "deu_Latn srp_Cyrl pan_Guru jpn_Jpan kor_Hang cmn_Hani uig_Arab kaz_Cyrl npi_Deva mya_Mymr ckb_Arab fas_Arab"
    )
    assert set(usual.split()) <= set(published_set("published-decay-all"))
    assert language_name("deu_Latn") == "German"
    assert language_table()["uig_Latn"].tokens["decay-all"] == 0
    assert language_table()["uig_Arab"].tokens["decay-all"] > 0


def test_every_language_of_the_demo_sources_is_in_the_table() -> None:
    declarations = {declaration.language for declaration in read_declarations(declaration_folder())}
    assert len(declarations) == 456
    # Its file holds another text.
    assert "chv_Cyrl" not in declarations
    assert declarations <= set(language_table())
    assert len(LANGUAGES) == len(set(LANGUAGES.values())) == 59
    assert set(LANGUAGES.values()) <= set(language_table())
    # The same language has the same code in both, whatever the packages call it.
    assert set(LANGUAGES.values()) - declarations == {"ckb_Arab", "ory_Orya"}


def test_the_table_is_what_its_program_makes(tmp_path: Path) -> None:
    counts = tmp_path / "counts.csv"
    with counts.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ("language", *COLUMNS))
        writer.writeheader()
        for row in committed():
            if int(row["decay-all"]):
                writer.writerow({"language": row["code"].split("_")[0]} | {c: row[c] for c in COLUMNS})
    assert make_rows(counts, declaration_folder()) == committed()


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Menschen 人", "Latn"),
        ("すべての人間は、生まれながらにして自由であり", "Jpan"),
        ("日本国憲法第十一条基本的人権の保障", "Jpan"),
        ("人人生而自由，在尊严和权利上一律平等。", "Hani"),
        ("모든 인간은 태어날 때부터", "Hang"),
        ("ሰዎች ሁሉ", "Ethi"),
        ("ᎾᏍᎩ ᎠᏂᏴᏫ", "Cher"),
        ("12:30 …", None),
    ],
)
def test_script_of_a_text(text: str, script: str | None) -> None:
    assert script_of(text) == script
