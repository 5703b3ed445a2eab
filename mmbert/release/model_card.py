"""The model card: Markdown with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmbert.evaluation.scores import Score
from mmbert.tables import counted

_SOME_LANGUAGES = 60


@dataclass(frozen=True)
class PhaseSummary:
    """One row of the card's table of phases. `tokens` is the count trained for; `sources` names tokens by source."""

    name: str
    tokens: int
    max_seq_len: int
    mask_probability: float
    languages: int
    temperature: float
    learning_rate: float
    global_rope_theta: float
    sources: Mapping[str, int] = field(default_factory=dict)


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
    limits: Sequence[str],
    lineage: Mapping[str, str],
    recipe: Sequence[str] = (),
    scores: Sequence[Score] = (),
    address: str = "",
) -> str:
    """The card's text.

    `languages` are codes like `deu_Latn`; the hub's front matter gets their ISO 639-3 part, and them as BCP 47 tags.
    `data`, `recipe` (how it was trained) and `limits` are sentences; `lineage` names each input and gives its content
    digest. Scores over all languages stand in the front matter as a `model-index` too. `address` is what the model is
    loaded by, where that is not its name.
    """
    sections = [
        f"# {name}\n\n{description}".rstrip()
        + f"\n\nA multilingual encoder of {parameters:,} parameters, trained on {counted(len(languages), 'language')}.",
        f"## How to use it\n\n{usage(address or name, mask_token)}",
    ]
    if scores:
        sections.append(f"## Scores\n\n{_scores(scores)}")
    sections.append("## Training\n\n" + "\n\n".join([_phases(phases), *([_list(recipe)] if recipe else [])]))
    by_source = _sources(phases)
    sections.append("## Data\n\n" + "\n\n".join([_list(data), *([by_source] if by_source else [])]))
    sections.append(f"## Limits\n\n{_list(limits)}")
    sections.append(f"## Languages\n\n{_languages(languages)}")
    sections.append(f"## Lineage\n\n{_table(['Input', 'Content digest'], [[k, f'`{v}`'] for k, v in lineage.items()])}")
    return f"---\n{_front_matter(name, licence, languages, scores)}\n---\n\n" + "\n\n".join(sections) + "\n"


def _front_matter(name: str, licence: str, languages: Sequence[str], scores: Sequence[Score]) -> str:
    from huggingface_hub import ModelCardData

    card = ModelCardData(
        language=sorted({code.partition("_")[0] for code in languages}),
        language_bcp47=sorted({code.replace("_", "-") for code in languages if "_" in code}),
        license=licence,
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=["modernbert", "multilingual", "masked-lm"],
        model_name=name if _overall(scores) else None,
        eval_results=[_result(score) for score in _overall(scores)] or None,
    )
    return card.to_yaml(line_break="\n").strip()


def _overall(scores: Sequence[Score]) -> list[Score]:
    return [score for score in scores if score.language is None]


def _result(score: Score) -> Any:
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type="other",  # the hub's list of tasks names none of these
        task_name=score.task,
        dataset_type=score.suite,
        dataset_name=f"{score.suite}: {score.task}",
        dataset_config=score.task,  # results of one data set and configuration are taken for one task's
        dataset_revision=score.data_revision or None,
        metric_type=score.metric,
        metric_value=round(score.value, 6),
        metric_name=score.metric,
    )


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
    head = ["Phase", "Tokens", "Context", "Masked", "Languages", "Temperature", "Learning rate", "RoPE theta (global)"]
    rows = [
        [
            p.name,
            f"{p.tokens:,}",
            f"{p.max_seq_len:,}",
            f"{p.mask_probability:.0%}",
            f"{p.languages:,}",
            f"{p.temperature:g}",
            f"{p.learning_rate:g}",
            f"{p.global_rope_theta:,.0f}",
        ]
        for p in phases
    ]
    return _table(head, rows)


def _sources(phases: Sequence[PhaseSummary]) -> str:
    """Tokens by source, a column a phase; empty where no phase says."""
    told = [phase for phase in phases if phase.sources]
    names = sorted({source for phase in told for source in phase.sources})
    rows = [[source, *(_share(phase, source) for phase in told)] for source in names]
    return _table(["Tokens drawn from", *(phase.name for phase in told)], rows) if told else ""


def _share(phase: PhaseSummary, source: str) -> str:
    tokens, total = phase.sources.get(source, 0), sum(phase.sources.values())
    return f"{tokens:,} ({tokens / total:.1%})" if tokens else ""


def _scores(scores: Sequence[Score]) -> str:
    """Scores over all languages with their intervals, then how each spreads over languages."""
    head = ["Suite", "Task", "Metric", "Value", "95% interval", "Seeds"]
    rows = [
        [s.suite, s.task, s.metric, f"{s.value:.4g}", f"{s.low:.4g} to {s.high:.4g}", len(s.seeds) or ""]
        for s in _overall(scores)
    ]
    told = "Shares are of 1, correlations from -1 to 1; intervals are bootstrapped."
    parts = [told, _table(head, rows)]
    groups: dict[tuple[str, str, str], list[Score]] = {}
    for score in scores:
        if score.language is not None:
            groups.setdefault((score.suite, score.task, score.metric), []).append(score)
    if groups:
        spread = [[*key, len(found), *_spread(found)] for key, found in groups.items()]
        parts.append(_table(["Suite", "Task", "Metric", "Languages", "Smallest", "Median", "Largest"], spread))
    return "\n\n".join(parts)


def _spread(scores: Sequence[Score]) -> list[str]:
    ordered = sorted(scores, key=lambda score: score.value)
    smallest, largest = (f"{s.value:.4g} ({s.language})" for s in (ordered[0], ordered[-1]))
    return [smallest, f"{statistics.median(score.value for score in scores):.4g}", largest]


def _languages(languages: Sequence[str]) -> str:
    listed = ", ".join(f"`{code}`" for code in sorted(languages))
    told = f"{counted(len(languages), 'language')}, as ISO 639-3 code and ISO 15924 script"
    if len(languages) <= _SOME_LANGUAGES:
        return f"{told}: {listed}."
    return f"<details><summary>{told}</summary>\n\n{listed}\n\n</details>"


def _list(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])
