"""The model card: Markdown with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml


@dataclass(frozen=True)
class PhaseSummary:
    """One row of the card's table of phases. `tokens` is the count trained for."""

    name: str
    tokens: int
    max_seq_len: int
    mask_probability: float
    languages: int
    temperature: float
    global_rope_theta: float


def model_card(
    *,
    name: str,
    description: str,
    licence: str,
    languages: Sequence[str],
    parameters: int,
    mask_token: str,
    phases: Sequence[PhaseSummary],
    data: Sequence[str],
    scores: Mapping[str, Mapping[str, float]],
    limits: Sequence[str],
    lineage: Mapping[str, str],
) -> str:
    """The card's text.

    `languages` are codes like `deu_Latn`; the hub's front matter gets their ISO 639-3 part. `scores` is model -> score
    -> value, a row a model. `data` and `limits` are sentences; `lineage` names each input and gives its content digest.
    """
    front = {
        "license": licence,
        "language": sorted({code.partition("_")[0] for code in languages}),
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["modernbert", "multilingual", "masked-lm"],
    }
    sections = [
        f"# {name}\n\n{description}\n\nA multilingual encoder of {parameters:,} parameters, "
        f"trained on {len(languages)} languages.",
        f"## How to use it\n\n{usage(name, mask_token)}",
        f"## Training\n\n{_phases(phases)}",
        f"## Data\n\n{_list(data)}",
    ]
    if scores:
        sections.append(f"## Scores\n\n{_scores(scores)}")
    sections.append(f"## Limits\n\n{_list(limits)}")
    sections.append(f"## Lineage\n\n{_table(['Input', 'Content digest'], [[k, f'`{v}`'] for k, v in lineage.items()])}")
    header = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return f"---\n{header}---\n\n" + "\n\n".join(sections) + "\n"


def usage(name: str, mask_token: str) -> str:
    """How to load and use the model, in Markdown."""
    return f"""```python
from transformers import pipeline

fill = pipeline("fill-mask", model="{name}")
print(fill("Paris is the capital of{mask_token}."))
```

For sentence vectors, load `AutoModel` and average the hidden states over the tokens of the attention mask. The
tokenizer frames text with its first and last token, as in training; text needs no other preparation."""


def _phases(phases: Sequence[PhaseSummary]) -> str:
    head = ["Phase", "Tokens", "Context", "Masked", "Languages", "Temperature", "RoPE theta (global)"]
    rows = [
        [
            p.name,
            f"{p.tokens:,}",
            f"{p.max_seq_len:,}",
            f"{p.mask_probability:.0%}",
            f"{p.languages:,}",
            f"{p.temperature:g}",
            f"{p.global_rope_theta:,.0f}",
        ]
        for p in phases
    ]
    return _table(head, rows)


def _scores(scores: Mapping[str, Mapping[str, float]]) -> str:
    names = list(dict.fromkeys(score for row in scores.values() for score in row))
    rows = [[model, *(f"{row[n]:.4g}" if n in row else "" for n in names)] for model, row in scores.items()]
    return _table(["Model", *names], rows)


def _list(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])
