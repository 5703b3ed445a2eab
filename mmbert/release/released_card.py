"""The card of a released model from what led to it: its manifest, the mixtures that it was trained on, its scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmbert.artifacts import Artifact
from mmbert.errors import UserError
from mmbert.evaluation.scores import Score
from mmbert.release.model_card import PhaseSummary, model_card
from mmbert.tables import counted

MIXTURE, CHECKPOINT = "mixture", "checkpoint"
_MASK = "<mask>"


def released_card(
    name: str, address: str, model: Artifact, lineage: Sequence[Artifact], scores: Sequence[Score]
) -> str:
    """The text of `README.md`.

    `address` is the repository that it is published as; `lineage` holds all that the model was made from, inputs
    first. Raises UserError where the model's manifest does not tell how it was trained.
    """
    told: Mapping[str, Any] = model.manifest.parameters.get("recipe", {})
    if not {"phases", "model"} <= set(told):
        raise UserError(
            f"{model.uri}: its manifest tells nothing of the recipe; convert it with this version of mmbert"
        )
    merge = _merge(lineage)
    mixtures = [artifact.read_json("mixture.json") for artifact in lineage if artifact.manifest.kind == MIXTURE]
    chosen = {"", *(merge.get("variants") or [mixture["variant"] for mixture in mixtures])}
    mixtures = [mixture for mixture in mixtures if mixture["variant"] in chosen]
    drawn = {row["language"] for mixture in mixtures for row in mixture["rows"] if row["tokens"]}
    phases = [_summary(told["phases"], mixture) for mixture in mixtures]
    decay = told["phases"]["decay"]
    return model_card(
        name=name,
        address=address,
        description=str(told.get("description", "")),
        licence=told.get("release", {}).get("license", "mit"),
        languages=sorted(drawn),
        parameters=_parameters(told["model"]),
        mask_token=_MASK,
        phases=phases,
        data=[f"{counted(len(drawn), 'language')}, {counted(len({s for p in phases for s in p.sources}), 'source')}."],
        recipe=_recipe(merge),
        scores=scores,
        limits=[
            f"The longest context trained for is {decay['max_seq_len']:,} tokens.",
            "Trained on the text named above and nothing else. Languages with few tokens are known less well; see the "
            "spread of the scores over languages.",
            "Scores of other models hold for the same suite, version and settings alone.",
        ],
        lineage={_label(artifact): artifact.digest for artifact in [*lineage, model]},
    )


def _summary(phases: Mapping[str, Any], mixture: Mapping[str, Any]) -> PhaseSummary:
    settings, variant = phases[mixture["phase"]], mixture["variant"]
    sources: dict[str, int] = {}
    for row in mixture["rows"]:
        sources[row["source"]] = sources.get(row["source"], 0) + row["tokens"]
    return PhaseSummary(
        name=f"{mixture['phase']}: {variant}" if variant else mixture["phase"],
        tokens=settings["tokens"],
        max_seq_len=settings["max_seq_len"],
        mask_probability=settings["mask_probability"],
        languages=len({row["language"] for row in mixture["rows"] if row["tokens"]}),
        temperature=settings["temperature"],
        learning_rate=settings["learning_rate"],
        global_rope_theta=settings["rope_theta"]["global_attention"],
        sources={source: tokens for source, tokens in sources.items() if tokens},
    )


def _merge(lineage: Sequence[Artifact]) -> Mapping[str, Any]:
    """The recipe's settings of the merge; empty where there was none."""
    for artifact in lineage:
        if artifact.manifest.producer.get("component") == "merge":
            settings: Mapping[str, Any] = artifact.manifest.parameters["recipe"]["merge"]
            return settings
    return {}


def _recipe(merge: Mapping[str, Any]) -> list[str]:
    """How the weights came about besides the phases."""
    told = ["StableAdamW; sequences packed without padding; the loss is the mean over a batch's masked tokens."]
    if merge:
        how = {
            "ties": f"The weights are the TIES merge (density {merge['density']:g}) of",
            "linear": "The weights are the mean of",
            "ema": f"The weights are the running average (decay {merge['ema_decay']:g}) of checkpoints of",
        }
        told.append(f"{how[merge['method']]} {', '.join(merge['variants']) or 'all decay variants'}.")
    return told


def _parameters(model: Mapping[str, int]) -> int:
    """Weights of a model of this shape, the tied decoder counted once."""
    vocab, hidden, inner = model["vocab_size"], model["hidden_size"], model["intermediate_size"]
    layers = model["num_hidden_layers"]
    layer = 4 * hidden * hidden + 3 * hidden * inner + 2 * hidden
    # Embedding and decoder bias; norms of embedding, end and head; the first layer has no attention norm.
    return vocab * hidden + vocab + layers * layer + 3 * hidden - hidden + hidden * hidden


def _label(artifact: Artifact) -> str:
    label = artifact.outputs.get("label")
    task = str(artifact.manifest.producer.get("task", ""))
    told = f"{artifact.manifest.kind}: {label or task}"
    return f"{told} ({artifact.manifest.fingerprint[:8]})"
