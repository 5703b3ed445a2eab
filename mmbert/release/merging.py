"""Merging whole models: the recipe's merge over checkpoint artifacts, and checkpoints of any form as a command."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmbert import storage
from mmbert.artifacts import MANIFEST, Artifact, ArtifactWriter, open_artifact
from mmbert.errors import UserError
from mmbert.model.head import TIED_DECODER, TOKEN_EMBEDDING
from mmbert.places import scratch_folder
from mmbert.recipe.schema import Merge
from mmbert.release import checkpoints, merge, sources
from mmbert.release.checkpoints import load_weights, save_weights
from mmbert.release.folders import new_folder
from mmbert.release.hugging_face import to_hugging_face_names, vocabulary
from mmbert.release.merge_report import TensorReport, merge_report
from mmbert.release.names import CONFIG, MODEL_WEIGHTS, STATE, TOKENIZER_FILES, WEIGHTS, beside
from mmbert.release.sources import TrainedModel
from mmbert.training import canonical

Method = Literal["linear", "ema", "ties"]

SNAPSHOTS = "snapshots/"
REPORT = "merge.json"
MERGED = "merged.pt"
# Models that differ in these cannot be merged though their tensors have the same shapes.
_SHAPE = ("num_attention_heads", "global_attn_every_n_layers", "sliding_window")
# Those of the original's sections that belong to one run and not to a merge of several.
_EMPTIED: dict[str, Any] = {"optimizers": {}, "schedulers": {}, "callbacks": {}, "scaler": {}}


@dataclass(frozen=True)
class MergeSettings:
    """How to merge. `weights` are in the variants' order; empty for equal ones. `density` is TIES's alone, `decay` the
    running average's."""

    method: Method
    weights: tuple[float, ...] = ()
    density: float = Merge().density
    decay: float = Merge().ema_decay


def merge_checkpoints(
    settings: Merge, decayed: Sequence[Artifact], base: Artifact, cache: Path, scratch: Path, output: ArtifactWriter
) -> dict[str, Any]:
    """Merge the chosen variants into `weights.safetensors`, and write and return the report (`merge.json`).

    Raises UserError where a chosen variant is not among the checkpoints, or two of them are the same.
    """
    by_label = {str(c.outputs["label"]): c for c in decayed}
    if len(by_label) < len(decayed) or len(set(settings.variants)) < len(settings.variants):
        raise UserError("merge: a decay variant was given twice")
    chosen = settings.variants or tuple(by_label)
    for name in chosen:
        if name not in by_label:
            raise UserError(f"merge.variants: no checkpoint of '{name}' was given; there are {', '.join(by_label)}")
    start = load_weights(base.fetch(canonical.WEIGHTS, cache))
    if settings.method == "ema":
        models = _snapshots(by_label, chosen, cache)
    else:
        models = {name: load_weights(by_label[name].fetch(canonical.WEIGHTS, cache)) for name in chosen}
    merge.check_models({"the base": start, **{f"variant '{name}'": weights for name, weights in models.items()}})
    shares = tuple(settings.weights.get(name, 1.0) for name in chosen)
    how = MergeSettings(settings.method, shares, settings.density, settings.ema_decay)
    merged, report = _merge(how, models, start)
    output.add_json(REPORT, report)
    save_weights(merged, scratch / canonical.WEIGHTS)
    output.add_file(canonical.WEIGHTS, scratch / canonical.WEIGHTS)
    return report


def _snapshots(by_label: dict[str, Artifact], chosen: Sequence[str], cache: Path) -> dict[str, dict[str, Tensor]]:
    """The weights kept during the decay of one variant, oldest first, its end last."""
    if len(chosen) != 1:
        raise UserError(f"merge.method ema averages the checkpoints of one variant; merge.variants names {len(chosen)}")
    artifact = by_label[chosen[0]]
    paths = [*artifact.paths(SNAPSHOTS), canonical.WEIGHTS]
    return {path: load_weights(artifact.fetch(path, cache)) for path in paths}


def merge_files(settings: MergeSettings, variants: Sequence[str], base: str, out: str) -> dict[str, Any]:
    """Merge models of any form of `sources` into `out`, in the form of the first; returns the report.

    All are paths or s3:// URIs; `base` may be empty but for TIES. A `.pt` or `.safetensors` as `out` is that file, with
    the report beside it; else `out` becomes a folder: of one `.pt` where the first variant is one, else with the
    configuration and tokenizer, or the training state, of the first. The tensors keep its types. It is there whole or
    not at all. Raises UserError for a model given twice, models of different shapes, weights that are not finite, or an
    `out` that is there already.
    """
    _check_inputs(settings, variants, base, out)
    with scratch_folder() as scratch:
        opened = {uri: _open(uri, scratch / str(number)) for number, uri in enumerate(variants)}
        start = _open(base, scratch / "base") if base else None
        _check_configs({**({base: start} if start else {}), **opened})
        models = {uri: model.found.weights for uri, model in opened.items()}
        start_weights = start.found.weights if start else None
        merge.check_models({**({base: start_weights} if start_weights else {}), **models})
        merged, report = _merge(settings, models, start_weights)
        first = opened[variants[0]]
        if out.endswith((".pt", ".safetensors")):
            made = Path(scratch, "merged", out.rpartition("/")[2])
            made.parent.mkdir()
            first.write_file(merged, made)
            write_report(report, made.with_name(REPORT))
            storage.upload(report_place(out), made.with_name(REPORT))
            storage.upload(out, made)
        else:
            with new_folder(out) as (folder, _):
                folder.mkdir(parents=True, exist_ok=True)
                write_report(report, folder / REPORT)
                first.write_folder(merged, folder)
    return report


def report_place(out: str) -> str:
    """Where the report of a merge into `out` lies."""
    stem, dot, suffix = out.rpartition(".")
    return f"{stem}.{REPORT}" if dot and suffix in {"pt", "safetensors"} else storage.join(out, REPORT)


def write_report(report: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _merge(
    settings: MergeSettings, models: Mapping[str, merge.Weights], base: merge.Weights | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    shares = settings.weights or (1.0,) * len(models)
    told: dict[str, Any] = {"method": settings.method, "models": list(models)}
    report: list[TensorReport]
    if settings.method == "ties":
        if base is None:
            raise UserError("merge: TIES needs the checkpoint that the variants started from; give --base")
        merged, report = merge.ties(base, models, settings.density, shares)
        told |= {"weights": list(shares), "density": settings.density}
    else:
        if settings.method == "ema":
            merged = merge.ema(list(models.values()), settings.decay)
            told |= {"decay": settings.decay}
        else:
            merged = merge.linear(list(models.values()), shares)
            told |= {"weights": list(shares)}
        report = merge.changes(base, models, merged) if base is not None else []
    return merged, merge_report(told, report)


def _check_inputs(settings: MergeSettings, variants: Sequence[str], base: str, out: str) -> None:
    if settings.method == "ties" and not base:
        raise UserError("merge: TIES needs the checkpoint that the variants started from; give --base")
    if settings.weights and settings.method == "ema":
        raise UserError("--weights: a running average has none; give its --decay, or take --method linear")
    if settings.weights and len(settings.weights) != len(variants):
        raise UserError(f"--weights: {len(settings.weights)} for {len(variants)} variants; give one for each")
    if len(variants) < 2:
        raise UserError("merge: one VARIANT was given; a merge takes two or more")
    places = [uri if storage.is_s3(uri) else str(Path(uri).resolve()) for uri in (*variants, *([base] if base else []))]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise UserError(f"merge: {place} was given twice; give each model once")
    suffix = Path(variants[0]).suffix
    if out.endswith((".pt", ".safetensors")):
        wanted = suffix if suffix == ".pt" else ".safetensors"
        if not out.endswith(wanted):
            raise UserError(f"{out}: the variants are no {Path(out).suffix} files; name a {wanted} file, or a folder")
        if storage.exists(out):
            raise UserError(f"{out}: this file is there already; choose another name")


@dataclass(frozen=True)
class _Model:
    """A model as it lies on this machine: `path` is its file, `found` what `sources` makes of it."""

    uri: str
    path: Path
    found: TrainedModel
    is_released: bool

    def write_file(self, merged: Mapping[str, Tensor], target: Path) -> None:
        """The merged weights under this model's names and in its types."""
        if target.suffix == ".pt":
            torch.save(self._composer(merged), target)
            return
        stored = checkpoints.load_tensors(self.path)
        named = to_hugging_face_names(merged) if self.is_released else merged
        save_weights({name: value.to(stored[name].dtype) for name, value in named.items()}, target)

    def write_folder(self, merged: Mapping[str, Tensor], folder: Path) -> None:
        for name in [CONFIG, *TOKENIZER_FILES] if self.is_released else [STATE]:
            _bring(self.uri, name, folder / name)
        name = MERGED if self.path.suffix == ".pt" else MODEL_WEIGHTS if self.is_released else WEIGHTS
        self.write_file(merged, folder / name)

    def _composer(self, merged: Mapping[str, Tensor]) -> dict[str, Any]:
        """This checkpoint with other weights, and without what belongs to its run alone. A tied decoder stays tied."""
        state = checkpoints.composer_state(self.path)
        model = type(state["model"])()
        for key, value in state["model"].items():
            name = key.removeprefix("model.")
            tied = TOKEN_EMBEDDING if name == TIED_DECODER else name
            first = model.get(key.removesuffix(name) + tied)
            model[key] = merged[tied].to(value.dtype) if first is None else first
        return {"state": {**state, **{k: v for k, v in _EMPTIED.items() if k in state}, "model": model}, "rng": []}


def _open(uri: str, scratch: Path) -> _Model:
    local = sources.fetch(uri, scratch, optimizer=False)
    found = sources.read(local, uri, optimizer=False)
    path = local if local.is_file() else next(p for p in (local / MODEL_WEIGHTS, local / WEIGHTS) if p.is_file())
    return _Model(uri, path, found, path.suffix != ".pt" and (path.parent / CONFIG).is_file())


def _bring(uri: str, name: str, target: Path) -> None:
    """A file that lies with the model, where it is there."""
    if uri.endswith((".pt", ".safetensors")):
        folder = uri.rpartition("/")[0] or "."
        places = [p for p in beside(uri) if p.rpartition("/")[2] == name] or [storage.join(folder, name)]
    elif storage.exists(storage.join(uri, MANIFEST)):
        artifact = open_artifact(uri)
        if name in artifact.paths():
            artifact.download(name, target)
        return
    else:
        places = [storage.join(uri, name)]
    for place in places:
        if storage.exists(place):
            storage.download(place, target)
            return


def _check_configs(models: Mapping[str, _Model]) -> None:
    """Raises UserError where models state different configurations or vocabularies; other rotary bases are told."""
    (first, expected), *others = models.items()
    for who, model in others:
        for key in _SHAPE:
            values = (model.found.config.get(key), expected.found.config.get(key))
            if None not in values and values[0] != values[1]:
                raise UserError(f"merge: {key} is {values[0]} in {who} and {values[1]} in {first}; other models")
        words = (vocabulary(model.found.tokenizer), vocabulary(expected.found.tokenizer))
        if words[0] and words[1] and words[0] != words[1]:
            raise UserError(f"merge: {who} and {first} carry different tokenizers; their embeddings cannot be merged")
        for key in ("global_rope_theta", "local_rope_theta"):
            values = (model.found.config.get(key), expected.found.config.get(key))
            if None not in values and values[0] != values[1]:
                print(f"note: {key} is {values[0]:,.0f} in {who} and {values[1]:,.0f} in {first}")
