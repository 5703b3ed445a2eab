"""The suite `mteb-english`: MTEB's second English version, after contrastive fine-tuning."""

from __future__ import annotations

from mmbert.evaluation.suites.mteb_tasks import mteb_suite

SUITE = mteb_suite(
    "mteb-english",
    "MTEB v2, English",
    {
        "PairClassification": "Pair",
        "Classification": "Class.",
        "STS": "STS",
        "Retrieval": "Retrieve",
        "Clustering": "Cluster",
        "Reranking": "Rerank",
        "Summarization": "Summ.",
    },
)
