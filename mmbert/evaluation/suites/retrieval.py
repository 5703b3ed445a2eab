"""Sentence retrieval between languages: find an article of the declaration among the same language's other articles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmbert.data.documents import Document
from mmbert.evaluation.scores import interval, resampling_counts

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Parallel:
    """Texts that say the same in several languages: `texts[i][j]` is article `articles[j]` in `languages[i]`."""

    languages: tuple[str, ...]
    articles: tuple[int, ...]
    texts: tuple[tuple[str, ...], ...]


def parallel_articles(
    declarations: Mapping[str, Sequence[Document]], sizes: Mapping[str, int], languages: int
) -> Parallel:
    """The held-out articles that nearly every declaration has, in the languages that have them all.

    Of those, the `languages` with the most held-out text of all sources (`sizes`, in bytes), because bitext retrieval
    is a task of languages that a model has seen; ties go by code.
    """
    by_language = {
        language: {int(d.metadata["article"]): d.text for d in documents if "article" in d.metadata}
        for language, documents in declarations.items()
    }
    counts: dict[int, int] = {}
    for texts in by_language.values():
        for article in texts:
            counts[article] = counts.get(article, 0) + 1
    articles = tuple(sorted(a for a, n in counts.items() if n > len(by_language) / 2))
    complete = [language for language, texts in by_language.items() if all(a in texts for a in articles)]
    chosen = sorted(sorted(complete, key=lambda code: (-sizes.get(code, 0), code))[:languages])
    return Parallel(tuple(chosen), articles, tuple(tuple(by_language[code][a] for a in articles) for code in chosen))


def pair_accuracies(embeddings: FloatArray) -> FloatArray:
    """Accuracy@1 of every ordered pair of languages: [L, L] from embeddings [L, A, H].

    Each language is centred on its own mean, so that what is compared is the article and not the language; the nearest
    by cosine counts. The diagonal is nan.
    """
    centred = embeddings - embeddings.mean(axis=1, keepdims=True)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=2, keepdims=True), 1e-12)
    similarity = np.einsum("iah,jbh->ijab", unit, unit, optimize=True)
    right = similarity.argmax(axis=3) == np.arange(embeddings.shape[1])
    accuracy: FloatArray = right.mean(axis=2)
    np.fill_diagonal(accuracy, np.nan)
    return accuracy


def mean_accuracy(accuracies: FloatArray) -> float:
    return float(np.nanmean(accuracies))


def accuracy_interval(accuracies: FloatArray, samples: int, seed: int) -> tuple[float, float]:
    """95% bootstrap interval of the mean over ordered pairs, resampling languages, without pairs of one language."""
    counts = resampling_counts(len(accuracies), samples, seed)
    known = np.nan_to_num(accuracies)
    off_diagonal = 1 - np.eye(len(accuracies))
    pairs = np.einsum("si,ij,sj->s", counts, off_diagonal, counts, optimize=True)
    return interval(np.einsum("si,ij,sj->s", counts, known, counts, optimize=True) / pairs)


def language_accuracies(accuracies: FloatArray) -> FloatArray:
    """Mean accuracy of each language's pairs, as query and as target: [L]."""
    means: FloatArray = (np.nanmean(accuracies, axis=0) + np.nanmean(accuracies, axis=1)) / 2
    return means
