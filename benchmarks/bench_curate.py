"""Peak memory and speed of curation over 30 MB and over 300 MB of text, ten times as much in every file.

Documents of about 2.5 kB are put together from real sentences in twelve languages. All of curation runs on them:
repair, identification, the filters of Gopher and FineWeb, address masking, exact and near duplicates, decontamination.
Memory is the proportional set size of the process and of all that it started, sampled ten times a second. The peer is
the same program on a tenth of the text.

    .venv/bin/python benchmarks/bench_curate.py [--megabytes 30 300] [--workers 2]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from mmbert.data.eld import read_sentences, sentence_file

GOAL = 1.2
SEED, DOCUMENT_BYTES, FILES_A_LANGUAGE = 17, 2_500, 2
LANGUAGES = (
    "eng_Latn", "deu_Latn", "spa_Latn", "rus_Cyrl", "ell_Grek", "arb_Arab", "hin_Deva", "kor_Hang", "cmn_Hani",
    "tha_Thai", "tur_Latn", "vie_Latn",
)  # fmt: skip
CURATION = {
    "language_identification": {},
    "quality": {},
    "personal_data": {},
    "near_duplicates": {},
    "decontamination": {},
    "keep_dropped": True,
}
PROGRAM = """
import json, sys, time
from mmbert.data.curation import Executor, WorkStore, curate
from mmbert.evaluation.suites.texts import evaluation_texts
from mmbert.recipe.loading import load_recipe
from mmbert.recipe.schema import Curation, FilesSource
text, work, workers, curation = sys.argv[1:]
recipe = load_recipe("tiny")
begin = time.monotonic()
done = curate(
    {"web": FilesSource(kind="files", path=text)}, Curation.model_validate_json(curation), [], 0, WorkStore(work),
    Executor("local", int(workers)), evaluation_texts(["demo"], recipe.evaluation, recipe.seed),
)
splits = [split for languages in done.counts["web"].values() for split in languages.values()]
kept, dropped = sum(s["documents"] for s in splits), sum(sum(s["dropped"].values()) for s in splits)
print(json.dumps({"seconds": time.monotonic() - begin, "kept": kept, "dropped": dropped}))
"""


@dataclass(frozen=True)
class Measured:
    megabytes: float
    seconds: float
    peak_mib: float
    kept: int
    dropped: int


def write_text(folder: Path, megabytes: int) -> None:
    """Files of JSON lines, `FILES_A_LANGUAGE` a language; no document is there twice."""
    rng = np.random.default_rng(SEED)
    sentences = defaultdict(list)
    for _, language, text in read_sentences(sentence_file()):
        sentences[language].append(text)
    share = megabytes * 1_000_000 // (len(LANGUAGES) * FILES_A_LANGUAGE)
    for language in LANGUAGES:
        own = sentences[language]
        (folder / language).mkdir(parents=True)
        for number in range(FILES_A_LANGUAGE):
            written = 0
            with (folder / language / f"{number}.jsonl").open("w", encoding="utf-8") as stream:
                while written < share:
                    lines, size = [], 0
                    while size < DOCUMENT_BYTES:
                        lines.append(own[rng.integers(len(own))])
                        size += len(lines[-1].encode())
                    stream.write(json.dumps({"text": "\n".join(lines)}, ensure_ascii=False) + "\n")
                    written += size


def measure(text: Path, work: Path, megabytes: int, workers: int) -> Measured:
    command = [sys.executable, "-c", PROGRAM, str(text), str(work), str(workers), json.dumps(CURATION)]
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, _pss(root))
            time.sleep(0.1)
        assert process.stdout is not None
        printed = process.stdout.read().splitlines()
    if process.returncode:
        raise SystemExit(f"curation ended with exit code {process.returncode}")
    return Measured(megabytes, peak_mib=peak / 2**20, **json.loads(printed[-1]))


def _pss(root: psutil.Process) -> int:
    total = 0
    try:
        for process in [root, *root.children(recursive=True)]:
            total += process.memory_full_info().pss
    except psutil.Error:  # one of them has just ended
        return 0
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs=2, default=(30, 300))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    found = []
    print(f"curation, {options.workers} processes\n   text  seconds   MB/s   peak MiB      kept   dropped")
    for megabytes in options.megabytes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_text(folder / "text", megabytes)
            row = measure(folder / "text", folder / "work", megabytes, options.workers)
        found.append(row)
        print(
            f"{row.megabytes:4} MB {row.seconds:8.1f} {row.megabytes / row.seconds:6.2f} {row.peak_mib:10.0f} "
            f"{row.kept:9,} {row.dropped:9,}",
            flush=True,
        )
    print(f"figure: curate_rss_growth {found[1].peak_mib / found[0].peak_mib:.3f} ratio (goal <= {GOAL})")


if __name__ == "__main__":
    main()
