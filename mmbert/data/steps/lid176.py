"""What the labels of fastText's lid.176 (Joulin et al. 2016) say about this project's languages.

lid.176 was trained on Wikipedia, Tatoeba and SETimes: its labels are the codes of Wikipedia's editions, so `als` is
Alemannic and `sq` Tosk Albanian, `no` Bokmaal, `ku` Kurmanji, `tl` Filipino.
"""

MIN_SCORE = 0.3
"""No document of 12 sentences of eld, in any language, scores below 0.5."""

# Languages that lid.176 gives MIN_SCORE in at least 80% of their own clean texts of 50 characters and more: sentences
# of eld and articles of the declarations. It misses the others' so often (Yoruba 1%, Sorani 10%, Somali 0%,
# Amharic's declaration 44%) that its verdict says nothing about them, and those in neither corpus are not known.
# Several labels: languages so close that their scores count together.
# fmt: off
LABELS = {
    "afr_Latn": "af", "als_Latn": "sq", "arb_Arab": "ar arz", "azj_Latn": "az", "bel_Cyrl": "be", "ben_Beng": "bn",
    "bod_Tibt": "bo", "bos_Cyrl": "bs hr sh sr", "bos_Latn": "bs hr sh sr", "bre_Latn": "br", "bul_Cyrl": "bg",
    "cat_Latn": "ca", "ceb_Latn": "ceb", "ces_Latn": "cs sk", "cmn_Hani": "zh wuu yue", "cnr_Latn": "sh bs hr sr",
    "cym_Latn": "cy", "dan_Latn": "da nn no", "deu_Latn": "de", "div_Thaa": "dv", "ekk_Latn": "et", "ell_Grek": "el",
    "eng_Latn": "en", "epo_Latn": "eo", "eus_Latn": "eu", "fas_Arab": "fa", "fil_Latn": "tl", "fin_Latn": "fi",
    "fra_Latn": "fr", "fry_Latn": "fy", "gla_Latn": "gd", "gle_Latn": "ga", "glg_Latn": "gl", "guj_Gujr": "gu",
    "heb_Hebr": "he", "hin_Deva": "hi", "hrv_Latn": "hr bs sh sr", "hun_Latn": "hu", "hye_Armn": "hy",
    "ilo_Latn": "ilo", "ind_Latn": "id ms", "isl_Latn": "is", "ita_Latn": "it", "jpn_Jpan": "ja", "kan_Knda": "kn",
    "kat_Geor": "ka", "kaz_Cyrl": "kk", "khk_Cyrl": "mn", "khm_Khmr": "km", "kir_Cyrl": "ky", "kmr_Latn": "ku",
    "kor_Hang": "ko", "lao_Laoo": "lo", "lat_Latn": "la", "lit_Latn": "lt", "ltz_Latn": "lb", "lvs_Latn": "lv",
    "mal_Mlym": "ml", "mar_Deva": "mr", "mkd_Cyrl": "mk", "mlt_Latn": "mt", "mya_Mymr": "my", "nds_Latn": "nds",
    "nld_Latn": "nl", "nno_Latn": "nn da no", "nob_Latn": "no da nn", "npi_Deva": "ne", "ory_Orya": "or",
    "pan_Guru": "pa", "pbu_Arab": "ps", "plt_Latn": "mg", "pnb_Arab": "pnb", "pol_Latn": "pl", "por_Latn": "pt",
    "prs_Arab": "fa", "ron_Latn": "ro", "rus_Cyrl": "ru", "sah_Cyrl": "sah", "sin_Sinh": "si", "slk_Latn": "sk cs",
    "slv_Latn": "sl", "spa_Latn": "es", "srp_Cyrl": "sr bs hr sh", "srp_Latn": "sr bs hr sh", "swe_Latn": "sv",
    "swh_Latn": "sw", "tam_Taml": "ta", "tat_Cyrl": "tt", "tel_Telu": "te", "tgk_Cyrl": "tg", "tha_Thai": "th",
    "tur_Latn": "tr", "uig_Arab": "ug", "ukr_Cyrl": "uk", "urd_Arab": "ur", "uzn_Latn": "uz", "vie_Latn": "vi",
    "wuu_Hani": "wuu yue zh", "ydd_Hebr": "yi", "yue_Hani": "yue wuu zh", "zsm_Latn": "ms id",
}
# fmt: on

LANGUAGES = {labels.split()[0]: language for language, labels in reversed(LABELS.items())} | {"bs": "bos_Latn"}
"""Label -> language; of several the first."""
