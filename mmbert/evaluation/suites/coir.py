"""The suite `coir`: retrieval of code (CoIR, arXiv 2407.02883), after contrastive fine-tuning."""

from __future__ import annotations

from mmbert.evaluation.suites.mteb_tasks import mteb_suite

SUITE = mteb_suite(
    "coir",
    "CoIR, code retrieval",
    {
        "AppsRetrieval": "Apps",
        "CosQA": "CosQA",
        "SyntheticText2SQL": "Synthetic Text2SQL",
        "COIRCodeSearchNetRetrieval": "CodeSearchNet",
        "CodeSearchNetCCRetrieval": "SN-CCR",
        "CodeTransOceanContest": "CodeTrans-Contest",
        "CodeTransOceanDL": "CodeTrans-DL",
        "StackOverflowQA": "StackOverflow QA",
        "CodeFeedbackST": "CodeFeedback-ST",
        "CodeFeedbackMT": "CodeFeedback-MT",
    },
)
