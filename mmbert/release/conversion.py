"""From a checkpoint to a Hugging Face folder that passed the parity gate: as a component, and as a command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from mmbert import storage
from mmbert.artifacts import MANIFEST, Artifact
from mmbert.data.mixture import resolve_languages
from mmbert.data.tokenizer import TOKENIZER_FILE, read_tokenizer
from mmbert.errors import UserError
from mmbert.evaluation.heldout import HeldOut, by_language, read_held_out
from mmbert.model.config import EncoderConfig, config_from_recipe
from mmbert.recipe import Recipe
from mmbert.release import checkpoints, sources
from mmbert.release.folders import new_folder
from mmbert.release.hugging_face import export, read_json, vocabulary
from mmbert.release.model_card import PhaseSummary, model_card, usage
from mmbert.release.names import TOKENIZER_FILES
from mmbert.release.original import special_token_ids
from mmbert.release.parity import ParityReport, check_parity
from mmbert.release.parity_samples import made_up_samples, shipped_texts, spread, text_samples
from mmbert.release.sources import TrainedModel
from mmbert.tables import counted
from mmbert.training import canonical

DEFAULT_TOLERANCE = 1e-4


def convert_checkpoint(
    recipe: Recipe, checkpoint: Artifact, tokenizer: Path, held_out: Sequence[Path], cache: Path, out: Path
) -> dict[str, float]:
    """Write the model into `out` and return the parity gate's figures.

    Raises UserError where the weights do not fit the recipe, or the exported model differs from the training model by
    more than `release.parity_tolerance`; then nothing may be released.
    """
    config = config_from_recipe(recipe.model, recipe.phases.decay.rope_theta)
    weights = checkpoints.load_weights(checkpoint.fetch(canonical.WEIGHTS, cache))
    documents = read_held_out(held_out)
    length = max(p.max_seq_len for p in (recipe.phases.pretrain, recipe.phases.extend, recipe.phases.decay))
    card = _card(recipe, checkpoint, documents, sum(w.numel() for w in weights.values()))
    by_code = by_language(documents)
    texts = {code: by_code[code][0].text for code in spread(by_code)}
    samples = text_samples(texts, tokenizer, config.unk_token_id, length) or made_up_samples(config, length)
    export(weights, config, tokenizer, length, out, card=card)
    del weights
    report = check_parity(out, config, samples, recipe.release.parity_tolerance)
    return {f"parity.{name}": float(value) for name, value in asdict(report).items()}


def convert_to_folder(
    checkpoint: str, out: str, tokenizer: str, recipe: Recipe | None, max_seq_len: int | None
) -> ParityReport:
    """Write a checkpoint of any form of `sources` as a Hugging Face folder: whole, and past the parity gate, or not at
    all.

    All are paths or s3:// URIs; `tokenizer` may be empty where the checkpoint carries its own. `recipe` is needed where
    the checkpoint does not state its configuration. `max_seq_len` is the longest context trained for, in tokens; None
    for what the checkpoint states. Raises UserError where `out` holds anything, the checkpoint is refused, damaged or
    of another shape than the recipe's, the tokenizer is another's, or the gate does not pass.
    """
    name = (out if storage.is_s3(out) else str(Path(out).resolve())).rstrip("/").rpartition("/")[2]
    with new_folder(out) as (folder, scratch):
        config, words, length = _export(checkpoint, tokenizer, recipe, max_seq_len, name, folder, scratch)
        samples = text_samples(shipped_texts(), words, config.unk_token_id, length) or made_up_samples(config, length)
        return check_parity(folder, config, samples, recipe.release.parity_tolerance if recipe else DEFAULT_TOLERANCE)


def _export(
    checkpoint: str,
    tokenizer: str,
    recipe: Recipe | None,
    max_seq_len: int | None,
    name: str,
    folder: Path,
    scratch: Path,
) -> tuple[EncoderConfig, Path, int]:
    """Write the model's folder; what the gate needs: configuration, tokenizer's folder and context.

    When this returns, the checkpoint's weights are gone from memory.
    """
    found = sources.read(
        sources.fetch(checkpoint, scratch / "checkpoint", optimizer=False), checkpoint, optimizer=False
    )
    config = _config(found, recipe, checkpoint)
    checkpoints.check_weights(found.weights, config, checkpoint)
    words = _tokenizer_folder(found, config, tokenizer, scratch / "tokenizer", checkpoint)
    if found.by_original and max_seq_len is None:
        print(
            f"note: the context is taken to be {found.max_seq_len} tokens; the original training code states its "
            "configuration's default and not what it trained with, so give --max-seq-len for a real model"
        )
    length = max_seq_len or found.max_seq_len or (recipe.phases.decay.max_seq_len if recipe else 0)
    if not length:
        raise UserError(f"{checkpoint}: it does not say the context that it was trained for; give --max-seq-len")
    card = _plain_card(name, checkpoint, sum(w.numel() for w in found.weights.values()), config)
    export(found.weights, config, words, length, folder, card=card)
    return config, words, length


def _config(found: TrainedModel, recipe: Recipe | None, where: str) -> EncoderConfig:
    """What the checkpoint states; where it is silent, the recipe with the rotary bases of its last phase."""
    known = {field.name for field in fields(EncoderConfig)}
    stated: dict[str, Any] = {key: value for key, value in found.config.items() if key in known}
    if recipe is not None:
        checkpoints.check_shape({**checkpoints.shape_of(found.weights), **stated}, recipe.model, where)
        return EncoderConfig(**{**asdict(config_from_recipe(recipe.model, recipe.phases.decay.rope_theta)), **stated})
    if "num_attention_heads" not in stated or "global_rope_theta" not in stated:
        raise UserError(f"{where}: it does not state its model's configuration; give the recipe with --recipe")
    return EncoderConfig(**stated)


def _tokenizer_folder(found: TrainedModel, config: EncoderConfig, tokenizer: str, scratch: Path, where: str) -> Path:
    """The local folder of the tokenizer: the given one, held against the one that the checkpoint carries or was trained
    with, where that is known, and against the model's special tokens."""
    if not tokenizer:
        if not found.tokenizer:
            raise UserError(f"{where}: it carries no tokenizer; give the one that it was trained with, --tokenizer DIR")
        scratch.mkdir()
        (scratch / TOKENIZER_FILE).write_text(json.dumps(found.tokenizer), "utf-8")
        return scratch
    folder = Path(tokenizer)
    if storage.is_s3(tokenizer) or storage.exists(storage.join(tokenizer, MANIFEST)):
        folder = sources.fetch_tokenizer(tokenizer, scratch)
    read_tokenizer(folder)
    ours = vocabulary(read_json(folder / TOKENIZER_FILE))
    theirs = vocabulary(found.tokenizer or sources.trained_tokenizer(where))
    if theirs and ours != theirs:
        does = "carries" if found.tokenizer else "was trained with"
        token = min({token for token, number in (ours.items() ^ theirs.items())}, key=lambda t: (theirs.get(t, -1), t))
        raise UserError(
            f"{tokenizer}: not the tokenizer that the checkpoint {does}: it has {len(ours):,} tokens, the "
            f"checkpoint's {len(theirs):,}; '{token}' has id {ours.get(token)} here and {theirs.get(token)} there. "
            f"Give the right folder{', or leave --tokenizer out' if found.tokenizer else ''}"
        )
    _check_special_tokens(folder, config, tokenizer)
    return folder


def _check_special_tokens(folder: Path, config: EncoderConfig, where: str) -> None:
    """Raises UserError where the tokenizer's own files give a special token another id than the model has for it."""
    files = {p.name: read_json(p) for p in sorted(folder.glob("*.json")) if p.name in TOKENIZER_FILES}
    for role, number in special_token_ids(files).items():
        if getattr(config, role) != number:
            raise UserError(
                f"{where}: {role} is {number} here and {getattr(config, role)} in the model; it is another model's "
                "tokenizer"
            )


def _plain_card(name: str, source: str, parameters: int, config: EncoderConfig) -> str:
    front = "---\nlibrary_name: transformers\npipeline_tag: fill-mask\ntags: [modernbert, masked-lm]\n---\n\n"
    return (
        f"{front}# {name}\n\nAn encoder of {parameters:,} parameters, converted from `{source.rpartition('/')[2]}`. "
        f"RoPE theta: {config.global_rope_theta:,.0f} in global layers, {config.local_rope_theta:,.0f} in local ones."
        f"\n\n## How to use it\n\n{usage(name, '<mask>')}\n"
    )


def _card(recipe: Recipe, checkpoint: Artifact, documents: HeldOut, parameters: int) -> str:
    available = by_language(documents)
    phases = [_summary(recipe, name, list(available)) for name in ("pretrain", "extend", "decay")]
    return model_card(
        name=recipe.release.model_name,
        description=recipe.description,
        licence=recipe.release.license,
        languages=sorted(available),
        parameters=parameters,
        mask_token="<mask>",  # noqa: S106 - a token of the vocabulary
        phases=phases,
        data=[f"Source {name}: {counted(len(languages), 'language')}" for name, languages in documents.items()],
        limits=[
            "Trained on the text named above and nothing else; judge it by the evaluation report of its run.",
            f"The longest context trained for is {recipe.phases.decay.max_seq_len:,} tokens.",
        ],
        lineage={"checkpoint": checkpoint.digest},
    )


def _summary(recipe: Recipe, phase: str, available: list[str]) -> PhaseSummary:
    settings = getattr(recipe.phases, phase)
    draws = list(settings.variants) if phase == "decay" else [""]
    languages: set[str] = set()
    for variant in draws:
        wanted = resolve_languages(recipe.mixture(phase, variant).languages, recipe.language_sets, available)
        languages |= set(wanted) & set(available)
    return PhaseSummary(
        name=phase,
        tokens=settings.tokens,
        max_seq_len=settings.max_seq_len,
        mask_probability=settings.mask_probability,
        languages=len(languages),
        temperature=settings.temperature,
        learning_rate=settings.learning_rate,
        global_rope_theta=settings.rope_theta.global_attention,
    )
