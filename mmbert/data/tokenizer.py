"""Tokenizers: a byte-level BPE trained on the run's own text, or one that exists, in files that AutoTokenizer loads."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from mmbert.data.documents import TRAIN, document_files, read_documents
from mmbert.errors import InfrastructureError, UserError

if TYPE_CHECKING:  # importing it costs each process that tokenizes half a second
    from mmbert.recipe.schema import Model

TOKENIZER_FILE = "tokenizer.json"
SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")

# Words keep their marks: the usual \p{L}+ of byte-level BPEs cuts Indic, Thai or Tibetan words at every vowel sign.
# Runs are bounded because scripts without spaces would otherwise make "words" of whole sentences, and training slow.
_WORDS = r" ?[\p{L}\p{M}\u200c\u200d]{1,24}| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]{1,8}|\s+(?!\S)|\s+"


def special_token_ids(model: Model) -> dict[str, int]:
    """Role -> id, in the order of `SPECIAL_TOKENS`."""
    return {role: getattr(model, f"{role}_token_id") for role in ("pad", "eos", "bos", "unk", "mask")}


def train_bpe(
    document_folders: Sequence[Path], model: Model, max_bytes_per_language: int, out: Path, prefix_space: bool = False
) -> None:
    """Train a byte-level BPE of `model.vocab_size` pieces on the training split and write its files into `out`.

    At most `max_bytes_per_language` bytes of each language are used, drawn evenly from its documents, so that large
    languages do not crowd out small ones. `prefix_space` puts a space in front of every text, so that a word alone
    (as taggers see it) has the tokens that it has within a sentence. The same documents give the same bytes. Where the
    text is too short, there are fewer pieces, and a warning says so. Raises UserError where the special tokens' ids are
    not 0 to 4, the vocabulary cannot hold the 256 bytes, or there is no training text.
    """
    ids = special_token_ids(model)
    if sorted(ids.values()) != list(range(len(SPECIAL_TOKENS))):
        raise UserError(f"model: a trained tokenizer needs the special token ids 0 to 4, not {ids}")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if model.vocab_size < len(alphabet) + len(SPECIAL_TOKENS):
        raise UserError(f"model.vocab_size = {model.vocab_size}: a byte-level tokenizer needs at least 261")
    files = document_files(document_folders, TRAIN)
    if not files:
        where = ", ".join(map(str, document_folders)) or "no folder"
        raise UserError(f"no training documents to train a tokenizer on in {where}; curate some sources first")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    if prefix_space:
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Prepend(" ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    if prefix_space:
        tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    by_id = sorted(zip(ids.values(), SPECIAL_TOKENS, strict=True))
    trainer = trainers.BpeTrainer(
        vocab_size=model.vocab_size,
        special_tokens=[token for _, token in by_id],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    by_language = itertools.groupby(sorted(files, key=lambda f: f.language), key=lambda f: f.language)
    samples = (sample([f.path for f in group], max_bytes_per_language) for _, group in by_language)
    tokenizer.train_from_iterator(samples, trainer)
    if (pieces := tokenizer.get_vocab_size()) < model.vocab_size:
        print(f"warning: the text gave {pieces} pieces of the {model.vocab_size} of model.vocab_size; curate more text")
    _write(tokenizer, model, out)


def sample(paths: Sequence[Path], max_bytes: int) -> list[str]:
    """Texts of one language, at most `max_bytes` of UTF-8: those whose ids hash smallest, in that order."""
    kept: list[tuple[int, str, int]] = []
    total = 0
    for document in itertools.chain.from_iterable(map(read_documents, paths)):
        digest = int.from_bytes(hashlib.blake2b(document.id.encode(), digest_size=8).digest(), "big")
        size = len(document.text.encode())
        # The largest hash is on top of the heap.
        heapq.heappush(kept, (-digest, document.text, size))
        total += size
        while total > max_bytes and len(kept) > 1:
            total -= heapq.heappop(kept)[2]
    return [text for _, text, _ in sorted(kept, reverse=True)]


def load_pretrained(name: str, revision: str, out: Path, model: Model) -> None:
    """Write the files of an existing tokenizer, from the hub, a local folder or its tokenizer.json, into `out`.

    Its mask token and its template (`<bos> text <eos>`; Gemma's adds only `<bos>`) are set here. Raises UserError where
    there is no such tokenizer, it has no mask token or other special tokens at the recipe's ids, or ids beyond
    `model.vocab_size`; InfrastructureError where the hub cannot be reached.
    """
    local = Path(name)
    if local.is_dir():
        local /= TOKENIZER_FILE
    path = local if local.is_file() or Path(name).is_dir() else _download(name, revision)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        # The library raises a bare Exception for whatever it cannot read.
        raise UserError(f"tokenizer {name}: {path} cannot be read: {error}") from error
    for role, number in special_token_ids(model).items():
        token = tokenizer.id_to_token(number)
        if token is None or (role == "mask" and "mask" not in token.lower()):
            found = "there is no such token" if token is None else f"that is '{token}'"
            raise UserError(
                f"tokenizer {name}: no {role} token at model.{role}_token_id {number}: {found}; "
                "correct the id, or take a tokenizer that has one"
            )
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest >= model.vocab_size:
        raise UserError(
            f"tokenizer {name}: its largest id is {largest}, but model.vocab_size is {model.vocab_size}; "
            f"set model.vocab_size to at least {largest + 1}"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    _write(tokenizer, model, out)


def _download(name: str, revision: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, TOKENIZER_FILE, revision=revision))
    except (LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in {401, 403, 404}:
            raise UserError(
                f"tokenizer {name}: the hub has no {TOKENIZER_FILE} of it at revision '{revision}' that you may read; "
                "check name, revision and your token, or give a local folder"
            ) from error
        raise InfrastructureError(f"tokenizer {name}: the hub cannot be reached: {error}") from error
    except HFValidationError as error:
        raise UserError(f"tokenizer {name}: neither a local folder nor a name of the hub: {error}") from error


def _write(tokenizer: Tokenizer, model: Model, out: Path) -> None:
    """tokenizer.json with mask token and template, and the two small files by which AutoTokenizer knows the roles."""
    ids = special_token_ids(model)
    tokens = {role: tokenizer.id_to_token(number) for role, number in ids.items()}
    tokenizer.add_special_tokens(list(tokens.values()))
    bos, eos = tokens["bos"], tokens["eos"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} $B:1 {eos}:1",
        special_tokens=[(bos, ids["bos"]), (eos, ids["eos"])],
    )
    out.mkdir(parents=True, exist_ok=True)
    # Its own `save` raises no OSError where the disk is full.
    (out / TOKENIZER_FILE).write_text(tokenizer.to_str(pretty=True), "utf-8")
    roles = {f"{role}_token": token for role, token in (tokens | {"cls": bos, "sep": eos}).items()}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **roles}
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", roles)):
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
        (out / name).write_text(text + "\n", encoding="utf-8")


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder that this module wrote. Raises UserError where there is none, or a damaged one."""
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise UserError(f"{folder}: no {TOKENIZER_FILE}; this is not a tokenizer's folder")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        # The library raises a bare Exception for whatever it cannot read.
        raise UserError(f"{path}: cannot be read as a tokenizer: {error}") from error
