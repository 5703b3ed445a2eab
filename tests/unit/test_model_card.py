"""The model card: what the hub reads of it, and what people do."""

from __future__ import annotations

from typing import Any

import yaml
from huggingface_hub import ModelCard

from mmbert.release.model_card import PhaseSummary, model_card
from tests.scores import score

PHASES = [
    PhaseSummary("pretrain", 2_300_000_000_000, 1024, 0.3, 60, 0.7, 8e-4, 10_000, {"web": 300, "wiki | talk": 100}),
    PhaseSummary("decay", 100_000_000_000, 8192, 0.05, 1833, 0.3, 8e-4, 160_000, {"books": 50}),
]


def card(**changes: Any) -> str:
    settings: dict[str, Any] = {
        "name": "tiny-encoder",
        "description": "A small one.",
        "licence": "mit",
        "languages": ["deu_Latn", "nor_Latn", "srp_Latn", "srp_Cyrl"],
        "parameters": 1_000_000,
        "mask_token": "<mask>",
        "phases": PHASES,
        "data": ["Made-up words."],
        "limits": ["It knows no language."],
        "lineage": {"weights": "sha256:00"},
    }
    return model_card(**{**settings, **changes})


def test_front_matter_without_scores() -> None:
    front = yaml.safe_load(card().split("---\n")[1])
    assert front["language"] == ["deu", "nor", "srp"]
    assert front["language_bcp47"] == ["deu-Latn", "nor-Latn", "srp-Cyrl", "srp-Latn"]
    assert (front["license"], front["pipeline_tag"], front["library_name"]) == ("mit", "fill-mask", "transformers")
    assert "model-index" not in front
    assert "## Scores" not in card()
    assert "trained on 4 languages." in card()
    assert "trained on 1 language." in card(languages=["deu_Latn"])


def test_scores_stand_in_the_model_index_and_with_intervals_in_the_text() -> None:
    spread = {"deu_Latn": 0.8, "nor_Latn": 0.6, "srp_Cyrl": 0.7}
    found = [
        score("xnli", 0.7123456789, seeds=(1, 2), data_revision="c" * 40),
        score("pawsx", 0.9, data_revision="c" * 40),
        score("heldout", 1.25, metric="masked_bits_per_byte", suite="demo", data_revision=""),
        *(score("xnli", value, language=code) for code, value in spread.items()),
    ]
    text = card(scores=found)
    results = ModelCard(text).data.eval_results
    assert [(r.dataset_type, r.task_name, r.metric_type, r.metric_value) for r in results] == [
        ("xtreme", "xnli", "accuracy", 0.712346),
        ("xtreme", "pawsx", "accuracy", 0.9),
        ("demo", "heldout", "masked_bits_per_byte", 1.25),
    ]
    assert [r.dataset_revision for r in results] == ["c" * 40, "c" * 40, None]
    assert "| xtreme | xnli | accuracy | 0.7123 | 0.6923 to 0.7323 | 2 |" in text
    assert "| xtreme | xnli | accuracy | 3 | 0.6 (nor_Latn) | 0.7 | 0.8 (deu_Latn) |" in text


def test_data_by_phase_and_source() -> None:
    text = card()
    assert "| Tokens drawn from | pretrain | decay |" in text
    assert "| web | 300 (75.0%) |  |" in text
    assert "| wiki \\| talk | 100 (25.0%) |  |" in text
    assert "| books |  | 50 (100.0%) |" in text
    assert "Tokens drawn from" not in card(phases=[PhaseSummary("pretrain", 5, 8, 0.3, 6, 0.7, 1e-3, 10_000)])


def test_many_languages_are_folded_away_and_all_there() -> None:
    codes = [f"{a}{b}c_Latn" for a in "abcdefghij" for b in "abcdefghij"]
    text = card(languages=codes)
    assert "<summary>100 languages" in text
    assert all(f"`{code}`" in text for code in codes)
    assert yaml.safe_load(text.split("---\n")[1])["language"] == sorted(code[:3] for code in codes)
