"""What the parity gate compares on: real text in many languages where the tokenizer knows it, else made-up ids."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import torch

from mmbert.data import eld
from mmbert.data.tokenizer import read_tokenizer
from mmbert.errors import UserError
from mmbert.model.config import EncoderConfig

_LANGUAGES = 24
_CHARACTERS = 2000  # of each language
_BEYOND_WINDOWS = 400
_MADE_UP_LENGTHS = (2, 41, 131, _BEYOND_WINDOWS)
_MOST_UNKNOWN = 0.1


def text_samples(texts: Mapping[str, str], tokenizer: Path, unknown: int, length: int) -> dict[str, list[int]]:
    """Token ids by name: the beginning of each language's text at lengths from 4 tokens on, one of 400 tokens, and one
    of `length` tokens, in which the languages follow each other (again from the first where there is too little text).

    Empty where more than a tenth of the tokens are `unknown`, the id for what a tokenizer does not know.
    """
    encoder = read_tokenizer(tokenizer)
    ids = {language: encoder.encode(texts[language]).ids for language in spread(texts)}
    together = [token for found in ids.values() for token in found]
    if not together or together.count(unknown) > _MOST_UNKNOWN * len(together):
        return {}
    samples = {language: found[: 4 + 5 * n] for n, (language, found) in enumerate(ids.items())}
    for wanted in (_BEYOND_WINDOWS, length):
        samples[f"{min(wanted, length)} tokens"] = list(
            itertools.islice(itertools.cycle(together), min(wanted, length))
        )
    return {name: found[:length] for name, found in samples.items()}


def spread(languages: Mapping[str, object]) -> list[str]:
    """No more than two dozen of the languages, spread over the alphabet."""
    return sorted(languages)[:: -(-len(languages) // _LANGUAGES) or 1]


def shipped_texts() -> dict[str, str]:
    """Sentences that the package eld ships, by language; empty where it is not installed."""
    try:
        sentences = list(eld.read_sentences(eld.sentence_file()))
    except UserError:
        return {}
    texts: dict[str, str] = {}
    for _, language, text in sentences:
        if len(texts.get(language, "")) < _CHARACTERS:
            texts[language] = f"{texts.get(language, '')} {text}".strip()
    return texts


def made_up_samples(config: EncoderConfig, length: int) -> dict[str, list[int]]:
    """Seeded ids of ordinary words between bos and eos, from 2 to `length` tokens long."""
    special = {config.pad_token_id, config.eos_token_id, config.bos_token_id, config.unk_token_id, config.mask_token_id}
    words = torch.tensor([n for n in range(config.vocab_size) if n not in special])
    generator = torch.Generator().manual_seed(0)
    samples = {}
    for wanted in sorted({min(n, length) for n in (*_MADE_UP_LENGTHS, length)}):
        drawn = torch.randint(len(words), (wanted - 2,), generator=generator)
        samples[f"{wanted} made-up tokens"] = [config.bos_token_id, *words[drawn].tolist(), config.eos_token_id]
    return samples
