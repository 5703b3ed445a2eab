"""One task of mteb on one model: its score on every subset and split, with what the score can be resampled by."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmbert.evaluation.scores import resampling_counts

FloatArray = npt.NDArray[np.float64]

_PER_QUERY = {"ndcg_at_": "ndcg_cut_", "map_at_": "map_cut_", "recall_at_": "recall_", "precision_at_": "P_"}
"""mteb's names of metrics, and trec_eval's of the same metric of one query."""

_PAIRS = {"STS": "spearman", "PairClassification": "average_precision"}
_SIMILARITIES = {
    "similarity_scores": 1,
    "cosine_scores": 1,
    "dot_scores": 1,
    "manhattan_distances": -1,
    "euclidean_distances": -1,
}
_SAME = 1e-4  # mteb rounds its scores


@dataclass(frozen=True)
class Cell:
    """The score of one subset (by its hub name) and split.

    `unit` says what is resampled and `values` are these units': with `statistic` "mean", the score's parts [n]; with
    "spearman", predictions and gold values [2, n]; with "average_precision", similarities by each measure and then
    labels [measures + 1, n]. `values` is empty where mteb gives no parts whose statistic is the score.
    """

    subset: str
    split: str
    languages: tuple[str, ...]
    score: float
    statistic: str = "mean"
    unit: str = ""
    values: tuple[Any, ...] = ()

    def resampled(self, samples: int, seed: int) -> FloatArray | None:
        """The score of each bootstrap sample: [samples]; None where there is nothing to resample."""
        values = np.asarray(self.values, dtype=np.float64)
        n = values.shape[-1] if values.size else 0
        if n < 2:
            return None
        if self.statistic == "mean":
            return np.asarray(resampling_counts(n, samples, seed) @ values / n)
        rng = np.random.default_rng(seed)
        measure = _STATISTICS[self.statistic]
        return np.array([measure(values[:, rng.integers(0, n, n)]) for _ in range(samples)])


def measure(
    name: str,
    benchmark: str,
    encoder_folder: Path,
    *,
    data_folder: Path | None,
    data_revision: str,
    batch_size: int,
    max_seq_length: int,
    device: str,
    scratch: Path,
) -> list[Cell]:
    """The cells of mteb's task `name`, with the benchmark's subsets and splits.

    `data_folder` holds the task's data set in place of the hub, whose commit is `data_revision`. Texts are cut at
    `max_seq_length` tokens. Whatever mteb and datasets raise on data that are missing or of another schema passes
    through.
    """
    import mteb
    from sentence_transformers import SentenceTransformer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        listed = next(task for task in mteb.get_benchmark(benchmark).tasks if task.metadata.name == name)
        # A new one, for the listed task's data and random state are of the process.
        task = type(listed)().filter_eval_splits(listed.eval_splits)
        task.hf_subsets = listed.hf_subsets
        place = {"revision": data_revision} if data_folder is None else {"path": str(data_folder)}
        task.metadata = task.metadata.model_copy(update={"dataset": {**task.metadata.dataset, **place}})
        task.load_data()  # mteb forgets what it loads by itself, and the gold values are needed below
        encoder = SentenceTransformer(str(encoder_folder), device=device, trust_remote_code=False)
        encoder.max_seq_length = min(encoder.max_seq_length or max_seq_length, max_seq_length)
        pairs = task.metadata.type in _PAIRS
        with _queries_kept(task) as queries:
            found = mteb.evaluate(
                encoder,
                task,
                encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
                cache=None,
                co2_tracker=False,
                prediction_folder=scratch if pairs else None,
                show_progress_bar=False,
            ).task_results[0]
    predictions = json.loads(next(scratch.glob("*.json")).read_text("utf-8")) if pairs else {}
    cells = []
    for split, rows in found.scores.items():
        for row in rows:
            subset, score = row["hf_subset"], float(row["main_score"])
            bare = Cell(subset, split, tuple(code.replace("-", "_") for code in row["languages"]), score)
            if pairs:
                parts = _pairs(task, predictions[subset][split], subset, split)
            else:
                parts = _parts(task.metadata.main_score, row, queries.get((subset, split), {}))
            cells.append(_with_parts(bare, parts))
    return cells


@contextlib.contextmanager
def _queries_kept(task: Any) -> Iterator[Mapping[tuple[str, str], Mapping[str, Mapping[str, float]]]]:
    """Each query's own scores by subset and split, of a task of retrieval; mteb gives them to this one method only."""
    kept: dict[tuple[str, str], Mapping[str, Mapping[str, float]]] = {}
    original = getattr(task, "task_specific_scores", None)

    def keep(scores: Any, qrels: Any, results: Any, hf_split: str, hf_subset: str) -> Any:
        kept[hf_subset, hf_split] = scores
        return original(scores, qrels, results, hf_split=hf_split, hf_subset=hf_subset)  # type: ignore[misc]

    if original is not None:
        task.task_specific_scores = keep
    yield kept


def _parts(metric: str, row: Mapping[str, Any], queries: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    for ours, theirs in _PER_QUERY.items():
        if queries and metric.startswith(ours):
            name = theirs + metric.removeprefix(ours)
            return {"unit": "queries", "values": tuple(scores[name] for _, scores in sorted(queries.items()))}
    if "scores_per_experiment" in row:
        return {"unit": "experiments", "values": tuple(run[metric] for run in row["scores_per_experiment"])}
    if "v_measures" in row:
        by_level = row["v_measures"]
        levels = by_level.values() if isinstance(by_level, Mapping) else [by_level]
        return {"unit": "clusterings", "values": tuple(value for level in levels for value in level)}
    return {}


def _pairs(task: Any, predicted: Mapping[str, Any], subset: str, split: str) -> dict[str, Any]:
    rows = task.dataset[subset][split] if subset in task.dataset else task.dataset[split]
    kind = _PAIRS[task.metadata.type]
    if kind == "spearman":
        return {"unit": "pairs", "statistic": kind, "values": (predicted["cosine_scores"], list(rows["score"]))}
    labels = rows[task.label_column_name]
    labels = labels[0] if isinstance(labels[0], list) else labels  # the older layout: all pairs in one row
    measures = [
        [sign * float(np.squeeze(v)) for v in predicted[name]]
        for name, sign in _SIMILARITIES.items()
        if predicted.get(name) is not None
    ]
    return {"unit": "pairs", "statistic": kind, "values": (*measures, list(labels))}


def _with_parts(bare: Cell, parts: Mapping[str, Any]) -> Cell:
    """The cell with its parts, if their statistic is the score that mteb gave."""
    cell = Cell(bare.subset, bare.split, bare.languages, bare.score, **parts)
    values = np.asarray(cell.values, dtype=np.float64)
    same = values.size and abs(_STATISTICS[cell.statistic](values) - cell.score) < _SAME
    return cell if same else bare


def _spearman(values: FloatArray) -> float:
    from scipy.stats import spearmanr  # type: ignore[import-untyped]

    return float(spearmanr(values[0], values[1])[0])


def _average_precision(values: FloatArray) -> float:
    from sklearn.metrics import average_precision_score

    labels = values[-1]
    if not 0 < labels.sum() < len(labels):
        return float("nan")
    return float(max(average_precision_score(labels, measure) for measure in values[:-1]))


_STATISTICS: dict[str, Callable[[FloatArray], float]] = {
    "mean": lambda values: float(values.mean()),
    "spearman": _spearman,
    "average_precision": _average_precision,
}
