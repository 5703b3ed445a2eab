"""The suite `xtreme`: understanding in many languages after fine-tuning on English alone.

The eight tasks of mmBERT's table. XCOPA is of XTREME-R, the others of XTREME (arXiv 2003.11080).
"""

from __future__ import annotations

from mmbert.evaluation.suites import question_answering, sentences, tagging
from mmbert.evaluation.suites.base import Suite

SUITE = Suite(
    "xtreme",
    "XTREME",
    (*sentences.TASKS, *question_answering.TASKS, *tagging.TASKS),
    published="xtreme",
    columns={
        "xnli": "XNLI",
        "paws-x": "PAWS-X",
        "xcopa": "XCOPA",
        "xquad": "XQuAD",
        "mlqa": "MLQA",
        "tydiqa": "TyDiQA",
        "wikiann": "WikiANN",
        "udpos": "UDPOS",
    },
)
