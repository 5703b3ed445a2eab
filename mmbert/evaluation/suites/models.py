"""What is evaluated, from wherever it comes, as a Hugging Face folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmbert import storage
from mmbert.artifacts import MANIFEST, content_digest, digest_file, digest_json, open_artifact
from mmbert.artifacts import File as ArtifactFile
from mmbert.errors import UserError
from mmbert.evaluation.report_data import RELEASE, VARIANT
from mmbert.evaluation.suites.base import ModelFolder
from mmbert.recipe.schema import Recipe
from mmbert.release.names import CONFIG

_DECIDING = (".safetensors", ".bin", ".json", ".model", ".txt", ".py")
_ASIDE = ("scores",)


@dataclass(frozen=True)
class Opened:
    """A model and its kind (RELEASE, or VARIANT for a checkpoint)."""

    model: ModelFolder
    kind: str


def open_model(source: str, scratch: Path, cache: Path, *, tokenizer: str = "", recipe: Recipe | None = None) -> Opened:
    """The model at `source`: a Hugging Face folder, a model artifact, or a checkpoint of any form that converts.

    `scratch` takes what has to be fetched or converted. A checkpoint that carries no tokenizer needs one, and one
    that does not state its shape its recipe. Raises UserError where there is no such model, it is damaged, or it cannot
    be converted.
    """
    if storage.exists(storage.join(source, MANIFEST)):
        artifact = open_artifact(source)
        if artifact.manifest.kind == "model":
            folder = artifact.fetch_folder(scratch / "model", cache / "files")
            return Opened(ModelFolder(folder, artifact.digest, _label(source, artifact.outputs.get("label"))), RELEASE)
        if artifact.manifest.kind != "checkpoint":
            raise UserError(f"{source}: a {artifact.manifest.kind} artifact; a model or a checkpoint is needed here")
        # Another tokenizer makes another model of the same checkpoint.
        folder = _converted(source, tokenizer, recipe, scratch)
        digest = digest_json([artifact.digest, folder_digest(folder)])
        return Opened(ModelFolder(folder, digest, _label(source, artifact.outputs.get("label"))), VARIANT)
    if not storage.is_s3(source) and (Path(source) / CONFIG).is_file():
        _check_weights(Path(source))
        return Opened(ModelFolder(Path(source), folder_digest(Path(source)), _label(source)), RELEASE)
    folder = _converted(source, tokenizer, recipe, scratch)
    return Opened(ModelFolder(folder, folder_digest(folder), _label(source)), VARIANT)


def _check_weights(folder: Path) -> None:
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
        try:
            safe_open(path, "numpy")
        except SafetensorError as error:
            raise UserError(f"{path}: damaged, it cannot be read ({error}); copy or export it again") from error


def folder_digest(folder: Path) -> str:
    """Content digest of the files that decide what a model computes: weights, configuration, tokenizer; no card."""
    files = [
        ArtifactFile(str(path.relative_to(folder)), "", digest_file(path), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in _DECIDING and not path.name.startswith((".", *_ASIDE))
    ]
    return content_digest("model", files)


def _converted(source: str, tokenizer: str, recipe: Recipe | None, scratch: Path) -> Path:
    from mmbert.release.conversion import convert_to_folder

    out = scratch / "converted"
    convert_to_folder(source, str(out), tokenizer, recipe, None)
    return out


def _label(source: str, label: object = None) -> str:
    return str(label or Path(source.rstrip("/")).name or source)
