"""The suite `mteb-multilingual`: MTEB's second multilingual version, after contrastive fine-tuning.

The published table has no column for reranking by instructions, so these three tasks are in the suite and in no column.
"""

from __future__ import annotations

from mmbert.evaluation.suites.mteb_tasks import mteb_suite

SUITE = mteb_suite(
    "mteb-multilingual",
    "MTEB v2, multilingual",
    {
        "BitextMining": "Bitext",
        "PairClassification": "Pair",
        "Classification": "Class.",
        "STS": "STS",
        "Retrieval": "Retrieve",
        "MultilabelClassification": "Multilabel",
        "Clustering": "Cluster",
        "Reranking": "Rerank",
    },
)
