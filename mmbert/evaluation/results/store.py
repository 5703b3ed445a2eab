"""The results store: every evaluation for good, a Parquet file each, below `<root>/results/`.

Files are only ever added: `<root>/results/<model digest>/<suite>/<content>.parquet`. The name is made of the content
(all but the time), so writers never collide and the same result recorded twice is one file with its first time.
"""

from __future__ import annotations

import datetime
import functools
import io
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmbert import storage
from mmbert.artifacts import Artifact, digest_json
from mmbert.errors import UserError
from mmbert.evaluation.results.scorecard import SCHEMA_VERSION, Scorecard, check, read_scorecard
from mmbert.evaluation.scores import Score, Units
from mmbert.tables import now

if TYPE_CHECKING:
    import pyarrow  # type: ignore[import-untyped]

    from mmbert.tracking import ComponentRun

FOLDER = "results"
SCORES = "scores.json"
_VERSION_KEY = b"mmbert.scores_schema"


def record(root: str, card: Scorecard) -> str:
    """Keep an evaluation in the store; returns its file's URI. Keeping it again changes nothing."""
    content = digest_json({**card.to_json(), "when": ""})[:32]
    uri = storage.join(root, FOLDER, card.model_digest or "no-digest", card.suite or "several", f"{content}.parquet")
    if not storage.exists(uri):
        timed = card if card.when else replace(card, when=now())
        storage.write_bytes(uri, to_parquet(timed))
    return uri


def keep(root: str, run: ComponentRun, card: Scorecard, commit: str) -> None:
    """Keep an evaluation made now in the store, and in its MLflow run: metrics, `scores.json` and `scores.parquet`.

    Metrics are `suite.task.metric`, and `suite.task.metric/language` by language.
    """
    kept = replace(card, when=card.when or now(), commit=card.commit or commit)
    record(root, kept)
    run.log_metrics({metric_key(score): score.value for score in kept.scores}, step=0)
    run.log_text(json.dumps(kept.to_json(), indent=1, ensure_ascii=False), SCORES)
    run.log_bytes(to_parquet(kept), "scores.parquet")


def metric_key(score: Score) -> str:
    """The score's name in MLflow."""
    overall = f"{score.suite}.{score.task}.{score.metric}"
    return f"{overall}/{score.language}" if score.language else overall


def history(root: str, model_digest: str = "", suite: str = "") -> list[Scorecard]:
    """All evaluations kept, or those of a model or a suite, the oldest first. Raises UserError as `from_parquet`."""
    folder = storage.join(root, FOLDER)
    paths = [path for path in storage.list_files(folder) if path.endswith(".parquet")]
    wanted = [p for p in paths if model_digest in {"", p.split("/")[0]} and suite in {"", p.split("/")[1]}]

    def read(path: str) -> Scorecard:
        uri = storage.join(folder, path)
        return from_parquet(storage.read_bytes(uri), uri)

    with ThreadPoolExecutor(8) as pool:
        return sorted(pool.map(read, wanted), key=lambda card: (card.when, card.model, card.suite))


def artifact_scorecard(artifact: Artifact) -> Scorecard:
    """The scorecard of a scores artifact, with the time and commit of its manifest. Raises as `read_scorecard`."""
    card = read_scorecard(artifact.read(SCORES), f"{artifact.uri} ({SCORES})")
    producer = artifact.manifest.producer
    finished = producer.get("finished")
    when = card.when or (now(float(finished)) if finished else "")
    return replace(card, when=when, commit=card.commit or str(producer.get("commit", "")))


@functools.cache
def _schema() -> pyarrow.Schema:
    import pyarrow as pa

    texts = ("model", "model_digest", "kind", "suite", "task", "metric")
    numbers = ("value", "low", "high")
    fields = [pa.field(name, pa.string(), nullable=False) for name in texts]
    fields += [pa.field("language", pa.string())]
    fields += [pa.field(name, pa.float64(), nullable=False) for name in numbers]
    fields += [
        pa.field("n", pa.int64(), nullable=False),
        pa.field("chance", pa.float64()),
        pa.field("deviation", pa.float64()),
        pa.field("seeds", pa.list_(pa.int64())),
        pa.field("data_revision", pa.string()),
        pa.field("settings", pa.string()),
        pa.field("unit_parts", pa.list_(pa.float64())),
        pa.field("unit_wholes", pa.list_(pa.float64())),
        pa.field("when", pa.timestamp("s", "UTC")),
        pa.field("commit", pa.string()),
    ]
    return pa.schema(fields, metadata={_VERSION_KEY: str(SCHEMA_VERSION).encode()})


def to_parquet(card: Scorecard) -> bytes:
    """The scorecard as a Parquet file: a row a score, `settings` as JSON, `suite` that of the score."""
    import pyarrow as pa
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    header = {"model": card.model, "model_digest": card.model_digest, "kind": card.kind, "commit": card.commit}
    header_when = datetime.datetime.fromisoformat(card.when) if card.when else None
    rows = [{**header, "when": header_when, **_row(score)} for score in card.scores]
    stream = io.BytesIO()
    schema = _schema().with_metadata({**(_schema().metadata or {}), b"mmbert.suite": card.suite.encode()})
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), stream, compression="zstd")
    return stream.getvalue()


def _row(score: Score) -> dict[str, Any]:
    data = score.to_json()
    units = score.units
    data |= {"unit_parts": units and list(units.parts), "unit_wholes": units and list(units.wholes)}
    data.pop("units", None)
    return {**data, "settings": json.dumps(data["settings"], sort_keys=True, ensure_ascii=False)}


def from_parquet(data: bytes, where: str) -> Scorecard:
    """Raises UserError where it is no Parquet file of scores, of another schema version, or of several models."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # A short process that ends while pyarrow's threads start is aborted.
        table = pq.read_table(io.BytesIO(data), use_threads=False, pre_buffer=False)
    except pa.ArrowException as error:
        raise UserError(f"{where}: no Parquet file: {error}") from error
    metadata = table.schema.metadata or {}
    version = metadata.get(_VERSION_KEY, b"none").decode()
    if version != str(SCHEMA_VERSION):
        raise UserError(
            f"{where}: scores of schema version {version}; this version of mmbert reads version {SCHEMA_VERSION}"
        )
    rows = table.to_pylist()
    headers = {(row["model"], row["model_digest"], row["kind"], row["when"], row["commit"]) for row in rows}
    if len(headers) != 1:
        raise UserError(f"{where}: {len(headers)} evaluations in one file instead of one")
    ((model, digest, kind, when, commit),) = headers
    card = Scorecard(
        model, digest, kind, metadata.get(b"mmbert.suite", b"").decode(), tuple(_score(row) for row in rows),
        when.isoformat(timespec="seconds") if when else "", commit or "",
    )  # fmt: skip
    check(card, where)
    return card


def _score(row: Mapping[str, Any]) -> Score:
    parts = row["unit_parts"]
    return Score(
        suite=row["suite"],
        task=row["task"],
        metric=row["metric"],
        value=row["value"],
        low=row["low"],
        high=row["high"],
        n=row["n"],
        language=row["language"],
        chance=row["chance"],
        deviation=row["deviation"],
        seeds=tuple(row["seeds"] or ()),
        data_revision=row["data_revision"] or "",
        settings=json.loads(row["settings"] or "{}"),
        units=None if parts is None else Units(tuple(parts), tuple(row["unit_wholes"] or ())),
    )
