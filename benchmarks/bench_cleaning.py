"""Speed of each cleaning step on one core, against datatrove's step for the same where it has one.

Pages of 12 sentences in all of eld's languages, about 2 kB each; ours and datatrove's take turns, the best of several
rounds is told. datatrove's filters get the same thresholds, word splitter, language model and evaluation texts.

    .venv/bin/python benchmarks/bench_cleaning.py [--pages 700] [--rounds 3]
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document as Record
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.formatters import FTFYFormatter, PIIFormatter
from datatrove.utils.hashing import HashConfig
from datatrove.utils.lid import FT176LID
from datatrove.utils.text import ngrams, simplify_text

from mmbert.data import eld
from mmbert.data.documents import Document
from mmbert.data.readers import to_record
from mmbert.data.steps.decontamination import ContaminationIndex, Decontamination, EvaluationText
from mmbert.data.steps.fasttext_model import LID176, model_file
from mmbert.data.steps.language import LanguageAgreement
from mmbert.data.steps.light import Quality
from mmbert.data.steps.personal_data import MaskPersonalData
from mmbert.data.steps.repair import Repair
from mmbert.data.steps.web_quality import WORDS, WebFilters, limits_of
from mmbert.recipe.schema import Curation, LanguageIdentification, PersonalData, WebQuality

Pages = list[tuple[str, str]]


def pages_of_eld(wanted: int) -> tuple[Pages, list[str]]:
    """Pages, and 3,000 sentences that stand in none of them."""
    found: dict[str, list[str]] = defaultdict(list)
    for _, code, text in eld.read_sentences(eld.sentence_file()):
        found[code].append(text)
    held_out = [text for texts in found.values() for text in texts[-50:]]
    pages = [(code, " ".join(texts[i : i + 12])) for i in range(0, 936, 12) for code, texts in found.items()]
    return pages[:wanted], held_out


def run_ours(step: PipelineStep, pages: Pages) -> Any:
    return list(step.run(to_record(Document("", text, code, ""), held_out=False) for code, text in pages))


def run_texts(function: Callable[[str], Any], pages: Pages) -> Any:
    return [function(text) for _, text in pages]


def datatrove_web_filters(pages: Pages) -> Callable[[Pages], Any]:
    """The three filters a language, as a user sets them up."""
    filters: dict[str, tuple[Any, ...]] = {}
    for code in {code for code, _ in pages}:
        limits = limits_of(WebQuality(), code)
        filters[code] = (
            GopherRepetitionFilter(
                limits.dup_line_frac,
                limits.dup_para_frac,
                limits.dup_line_char_frac,
                limits.dup_para_char_frac,
                limits.top_n_grams,
                limits.dup_n_grams,
                language=WORDS,
            ),
            FineWebQualityFilter(
                line_punct_thr=limits.line_punct_thr,
                short_line_thr=limits.short_line_thr,
                char_duplicates_ratio=limits.char_duplicates_ratio,
                new_line_ratio=limits.new_line_ratio,
                language=WORDS,
            ),
            GopherQualityFilter(
                min_avg_word_length=limits.min_avg_word_length,
                max_avg_word_length=limits.max_avg_word_length,
                max_non_alpha_words_ratio=limits.max_non_alpha_words_ratio,
                min_stop_words=limits.min_stop_words,
                stop_words=list(limits.stop_words),
                language=WORDS,
            ),
        )

    def run(pages: Pages) -> Any:
        return [all(step.filter(Record(text=text, id="")) is True for step in filters[code]) for code, text in pages]

    return run


def datatrove_decontamination(folder: Path, texts: Iterable[str]) -> Callable[[Pages], Any]:
    """NGramsDecontFilter over the index that its indexer would write; the indexer itself needs lighteval."""
    # Its xxhash does not take text with xxhash 4.
    config = NGramsDecontConfig(hash_config=HashConfig(hash_fc="sha1"))
    step = NGramsDecontFilter(str(folder), config, language=WORDS)
    hashes = {
        step.hash_func(" ".join(gram))
        for text in texts
        for gram in ngrams(WORDS.word_tokenize(simplify_text(text, config.norm_config)), config.n_grams)
    }
    np.array(list(hashes), np.uint64).tofile(folder / "task.index.hashes")
    return lambda pages: [step.filter(Record(text=text, id="")) for _, text in pages]


def datatrove_language() -> Callable[[Pages], Any]:
    from fasttext.FastText import _FastText

    identification = FT176LID()
    identification._model = _FastText(str(model_file(LID176)))
    return lambda pages: [identification.predict(Record(text=text, id="")) for _, text in pages]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=700)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    pages, evaluation = pages_of_eld(arguments.pages)
    size = sum(len(text.encode()) for _, text in pages)
    index = ContaminationIndex.build((EvaluationText("task", text) for text in evaluation), 12, 4)
    repair, pii = FTFYFormatter(), PIIFormatter()
    with tempfile.TemporaryDirectory() as name:
        steps: dict[str, tuple[PipelineStep, Callable[[Pages], Any] | None]] = {
            "repair": (Repair(), lambda pages: run_texts(repair.format, pages)),
            "personal data": (MaskPersonalData(PersonalData()), lambda pages: run_texts(pii.format, pages)),
            "light filter": (Quality(Curation(), None), None),
            "language agreement": (LanguageAgreement(LanguageIdentification()), datatrove_language()),
            "web filters": (WebFilters(WebQuality()), datatrove_web_filters(pages)),
            "decontamination": (Decontamination(index), datatrove_decontamination(Path(name), evaluation)),
        }
        seconds: dict[tuple[str, str], float] = {}

        def measure(step: str, whose: str, function: Callable[[], Any]) -> None:
            start = time.perf_counter()
            function()
            took = time.perf_counter() - start
            seconds[step, whose] = min(took, seconds.get((step, whose), took))

        for _ in range(arguments.rounds):
            for step, (ours, theirs) in steps.items():
                measure(step, "ours", lambda ours=ours: run_ours(ours, pages))
                if theirs:
                    measure(step, "theirs", lambda theirs=theirs: theirs(pages))
    print(f"{len(pages)} pages, {size / 1e6:.2f} MB, MB/s on one core, best of {arguments.rounds}")
    print(f"{'step':20} {'ours':>8} {'datatrove':>10} {'ratio':>7}")
    for step in steps:
        ours = seconds[step, "ours"]
        theirs = seconds.get((step, "theirs"))
        peer = f"{size / 1e6 / theirs:10.2f} {theirs / ours:6.1f}x" if theirs else ""
        print(f"{step:20} {size / 1e6 / ours:8.2f} {peer}")
    total = sum(value for (_, whose), value in seconds.items() if whose == "ours")
    print(f"{'all':20} {size / 1e6 / total:8.2f}")


if __name__ == "__main__":
    main()
