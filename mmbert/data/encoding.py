"""Text to token ids: a fast engine, and the reference tokenizer that it is held to on every run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mmbert.data.rows import Ids, Integers
from mmbert.data.tokenizer import TOKENIZER_FILE, read_tokenizer
from mmbert.errors import MmbertError, UserError

EngineName = Literal["fast", "reference"]
Engine = Callable[[Sequence[bytes]], tuple[Ids, Integers]]
"""UTF-8 texts -> the ids of all, one after another (uint32), and the number of tokens of each (int64)."""

_COMPARED_CHARACTERS = 20_000


class EngineDifferenceError(MmbertError):
    """The fast engine and the reference disagree: a fault of the engine, not of the data."""


class Encoder:
    """A tokenizer's folder, ready to encode batches of texts.

    `fast` is gigatoken; where it cannot load the tokenizer, the reference (the tokenizers library) does its work and
    `fallback` says why.
    """

    def __init__(self, folder: Path, engine: EngineName, vocab_size: int) -> None:
        self._folder = folder
        self._vocab_size = vocab_size
        self.reference = read_tokenizer(folder)
        self.fallback = ""
        self._engine: Engine = self._encode_reference
        self.is_fast = False
        if engine == "fast":
            try:
                self._engine = _fast_engine(folder / TOKENIZER_FILE)
                self.is_fast = True
            except (RuntimeError, ValueError) as error:
                self.fallback = str(error).splitlines()[0]

    def encode(self, texts: Sequence[bytes]) -> tuple[Ids, Integers]:
        """Ids (uint32) of all texts and tokens of each (int64), without special tokens.

        Raises UserError for ids beyond the model's vocabulary.
        """
        ids, lengths = self._engine(texts)
        if ids.size and (largest := int(ids.max())) >= self._vocab_size:
            raise UserError(
                f"tokenizer {self._folder}: it gives id {largest}, but model.vocab_size is {self._vocab_size}; "
                "take the tokenizer that belongs to the model, or set model.vocab_size"
            )
        return ids, lengths

    def compare(self, text: bytes, ids: Ids, language: str, document: str) -> None:
        """Compare a document's ids with the reference's; of a long one, its beginning is encoded by both.

        Raises EngineDifferenceError.
        """
        beginning = text.decode()[:_COMPARED_CHARACTERS]
        if len(beginning) == _COMPARED_CHARACTERS:
            ids, _ = self.encode([beginning.encode()])
        expected = np.array(self.reference.encode(beginning, add_special_tokens=False).ids, np.uint32)
        if np.array_equal(ids, expected):
            return
        shared = min(len(ids), len(expected))
        differing = np.flatnonzero(ids[:shared] != expected[:shared])
        position = int(differing[0]) if len(differing) else shared
        fast, reference = (_token(self.reference, found, position) for found in (ids, expected))
        raise EngineDifferenceError(
            f"language {language}, document '{document}': the fast tokenization engine differs from the reference at "
            f"token {position} ({fast} instead of {reference}); tokenize with shards.engine: reference, and report this"
        )

    def _encode_reference(self, texts: Sequence[bytes]) -> tuple[Ids, Integers]:
        found = self.reference.encode_batch_fast([text.decode() for text in texts], add_special_tokens=False)
        ids = [encoding.ids for encoding in found]
        lengths = np.array([len(i) for i in ids], np.int64)
        return np.concatenate([np.array(i, np.uint32) for i in ids]), lengths


def _fast_engine(file: Path) -> Engine:
    """Raises RuntimeError or ValueError for a tokenizer that gigatoken does not know how to run."""
    import gigatoken

    tokenizer = gigatoken.Tokenizer(file)

    def encode(texts: Sequence[bytes]) -> tuple[Ids, Integers]:
        # Processes share the cores, so each runs one thread.
        layout: Any = tokenizer.encode_batch(list(texts), parallel=False).layout
        offsets = np.asarray(layout.offsets)
        return np.asarray(layout.content.data)[offsets[0] : offsets[-1]], np.diff(offsets)

    return encode


def _token(tokenizer: Tokenizer, ids: Ids, position: int) -> str:
    return repr(tokenizer.id_to_token(int(ids[position]))) if position < len(ids) else "its end"


def byte_tokens(tokenizer: Tokenizer, vocab_size: int) -> NDArray[np.bool_]:
    """bool [vocab_size]: the tokens that stand for one byte because the vocabulary lacks the character.

    With byte fallback (Gemma) these are `<0x00>` to `<0xFF>`; in a byte-level BPE the bytes from 0x80, which are less
    than a character.
    """
    found = np.zeros(vocab_size, bool)
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    if _is_byte_level(tokenizer):
        pieces = [piece for piece, byte in _byte_level_alphabet().items() if byte >= 0x80]
    ids = [number for piece in pieces if (number := tokenizer.token_to_id(piece)) is not None]
    found[[number for number in ids if number < vocab_size]] = True
    return found


def token_text_bytes(tokenizer: Tokenizer, vocab_size: int) -> Integers:
    """int64 [vocab_size]: the bytes of UTF-8 text that each token stands for; special tokens stand for none.

    The sum over a text's tokens is its size, up to what the tokenizer's normaliser changed.
    """
    sizes = np.zeros(vocab_size, np.int64)
    byte_level = _is_byte_level(tokenizer)
    single = byte_tokens(tokenizer, vocab_size)
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    for piece, number in tokenizer.get_vocab(with_added_tokens=True).items():
        if number < vocab_size and number not in special:
            sizes[number] = len(piece) if byte_level else len(piece.replace("\u2581", " ").encode())
    sizes[single] = 1
    return sizes


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    # A large vocabulary of another kind has these characters too, and byte fallback.
    return tokenizer.token_to_id("<0x00>") is None and all(
        tokenizer.token_to_id(character) is not None for character in _byte_level_alphabet()
    )


def _byte_level_alphabet() -> dict[str, int]:
    """Character -> byte, as in GPT-2: printable bytes stand for themselves, the others follow from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
