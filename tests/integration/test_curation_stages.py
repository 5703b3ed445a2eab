"""Curation's units of work: what is done again and what is not, by whom, and after a kill."""

from __future__ import annotations

import errno
import gzip
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import ray

from components.contract import get_component
from components.planning import plan
from mmbert import storage
from mmbert.data.curation import Curated, Executor, WorkStore, duplicates
from mmbert.data.curation import curate as curate_documents
from mmbert.data.curation.parts import Part, Spool
from mmbert.data.documents import TRAIN
from mmbert.errors import InfrastructureError, UserError
from mmbert.recipe import load_recipe, recipe_to_yaml
from mmbert.recipe.schema import Curation, FilesSource, NearDuplicates, Source
from tests.curating import contents, curate, drop_counts, dropped, read_all
from tests.fixtures_stack import ROOT, S3, clean_environment

WORDS = "der die das Haus Baum Fluss Berg geht kommt sieht heute morgen gestern schnell langsam neu alt gross".split()  # noqa: SIM905
NEAR = Curation(near_duplicates=NearDuplicates())


def text(seed: int, words: int = 60) -> str:
    """Words in an order that no other seed gives."""
    return " ".join(random.Random(seed).choices(WORDS, k=words)) + "."


def files(folder: Path, lines: Mapping[str, list[str]], **settings: object) -> FilesSource:
    for name, texts in lines.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in texts))
    options = {"kind": "files", "path": str(folder), "held_out_share": 1e-9} | settings
    return FilesSource.model_validate(options)


def rows(texts: list[str], begin: int = 0) -> list[str]:
    return [json.dumps({"text": line, "id": f"r{begin + n}"}) for n, line in enumerate(texts)]


@pytest.fixture
def source(tmp_path: Path) -> FilesSource:
    return files(
        tmp_path / "mine",
        {
            "deu_Latn/a.txt": [text(n) for n in range(20)],
            "deu_Latn/b.txt": [text(n) for n in range(15, 35)],
            "fra_Latn/a.txt": [text(n) for n in range(40, 60)],
            "fao_Latn/a.txt": [text(n) for n in range(60, 80)],
        },
    )


def run(source: Source, curation: Curation, tmp_path: Path, name: str, executor: Executor | None = None) -> Curated:
    return curate({"mine": source}, curation, [], 0, tmp_path / name, tmp_path / "work", executor)


def done(curated: Curated) -> dict[str, int]:
    return {stage: now for stage, (now, _) in curated.work.items() if now}


def test_nothing_is_done_twice(source: FilesSource, tmp_path: Path) -> None:
    first = run(source, NEAR, tmp_path, "first")
    assert done(first) == {"clean": 4, "signatures": 4, "duplicates": 3, "finish": 4}
    second = run(source, NEAR, tmp_path, "second")
    assert done(second) == {}
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


def test_a_new_file_re_does_itself_and_its_language(source: FilesSource, tmp_path: Path) -> None:
    run(source, NEAR, tmp_path, "first")
    files(tmp_path / "mine", {"deu_Latn/c.txt": [text(100), text(0)]})
    again = run(source, NEAR, tmp_path, "second")
    # a and b lose nothing to c, so their files stay as they are.
    assert done(again) == {"clean": 1, "signatures": 1, "duplicates": 1, "finish": 1}
    assert again.counts["mine"]["deu_Latn"][TRAIN]["documents"] == 36


def test_settings_of_deduplication_leave_cleaning_alone(source: FilesSource, tmp_path: Path) -> None:
    run(source, NEAR, tmp_path, "first")
    other = NEAR.model_copy(update={"near_duplicates": NearDuplicates(rows_per_band=7)})
    assert "clean" not in done(run(source, other, tmp_path, "second"))
    allowed = NEAR.model_copy(update={"exact_deduplication": False})
    # Equal texts are near duplicates too, so nothing changes for the last stage.
    assert done(run(source, allowed, tmp_path, "third")) == {"duplicates": 3, "finish": 1}


def test_a_changed_file_is_cleaned_again(source: FilesSource, tmp_path: Path) -> None:
    run(source, NEAR, tmp_path, "first")
    files(tmp_path / "mine", {"fra_Latn/a.txt": [text(n) for n in range(41, 60)]})
    assert done(run(source, NEAR, tmp_path, "second")) == {"clean": 1, "signatures": 1, "duplicates": 1, "finish": 1}


def test_results_do_not_depend_on_who_does_the_work(source: FilesSource, tmp_path: Path) -> None:
    expected = curate({"mine": source}, NEAR, [], 0, tmp_path / "alone")
    curate({"mine": source}, NEAR, [], 0, tmp_path / "pool", executor=Executor("local", 2))
    assert contents(tmp_path / "alone") == contents(tmp_path / "pool")
    assert drop_counts(expected)["deu_Latn"] == {"duplicate": 5}


@pytest.fixture(scope="module", autouse=True)
def _no_ray_is_left() -> Iterator[None]:
    yield
    ray.shutdown()


@pytest.fixture
def bucket(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    storage.s3_client.cache_clear()
    yield s3_server.make_bucket("curation-test")
    storage.s3_client.cache_clear()


def test_a_ray_cluster_and_s3_give_the_same_result(tmp_path: Path, bucket: str) -> None:
    texts = [text(n) for n in range(10)]
    source = files(tmp_path / "mine", {"deu_Latn/a.txt": texts, "deu_Latn/b.txt": texts[5:]})
    alone = curate({"mine": source}, NEAR, [], 0, tmp_path / "alone")
    on_ray = curate_documents({"mine": source}, NEAR, [], 0, WorkStore(f"{bucket}/work"), Executor("ray", 2))
    assert drop_counts(on_ray) == {"deu_Latn": {"duplicate": 5}}
    assert [(f.path, f.stored.sha256) for f in on_ray.files] == [(f.path, f.stored.sha256) for f in alone.files]
    assert {name.split("/")[0] for name in storage.list_files(f"{bucket}/work")} == {
        "clean", "signatures", "duplicates", "finish",
    }  # fmt: skip


@pytest.mark.parametrize("executor", [Executor("local", 2), Executor("ray", 2)], ids=["pool", "ray"])
def test_errors_come_from_whatever_process(tmp_path: Path, executor: Executor) -> None:
    source = files(tmp_path / "mine", {"deu_Latn/a.txt": [text(1)], "fra_Latn/b.txt": [text(2)]})
    (tmp_path / "mine" / "fra_Latn" / "b.txt").write_bytes(b"\xff\xfe\n")
    with pytest.raises(UserError, match=r"source mine: .*fra_Latn/b\.txt, line 1: not UTF-8"):
        run(source, NEAR, tmp_path, "out", executor)
    assert not (tmp_path / "out").exists()
    assert not [path for path in (tmp_path / "work").rglob("*") if path.parts[-3] in {"failed", "logs", "jobs"}]


def test_a_full_disk_is_said_plainly_and_leaves_nothing(source: FilesSource, tmp_path: Path) -> None:
    # As a disk does that fills up while a unit's documents are written.
    def full(self: Spool, path: Path) -> list[Part]:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Spool, "write", full)
        with pytest.raises(InfrastructureError, match=r"curation, .*documents\.jsonl\.zst: the disk is full; free"):
            run(source, NEAR, tmp_path, "out")
    assert not list((tmp_path / "work").rglob("done.json"))
    assert run(source, NEAR, tmp_path, "again").work["clean"] == (4, 0)


def test_near_duplicates_over_files_and_sources(tmp_path: Path) -> None:
    original = text(1, 200)
    changed = original.replace("Haus", "Heim", 1).upper()
    sources: dict[str, Source] = {
        "web": files(tmp_path / "web", {"deu_Latn/a.txt": [text(2, 200), changed]}),
        "books": files(tmp_path / "books", {"deu_Latn/a.txt": [original, text(3, 200)]}),
    }
    curated = curate(sources, NEAR, [], 0, tmp_path / "out")
    assert drop_counts(curated) == {"deu_Latn": {"near_duplicate": 1}}
    # The recipe's first source keeps its copy.
    assert [(d.source, d.text) for d in dropped(tmp_path / "out")] == [("books", original)]
    without = curate(sources, Curation(), [], 0, tmp_path / "without")
    assert drop_counts(without) == {}


def test_languages_do_not_share_duplicates(tmp_path: Path) -> None:
    source = files(tmp_path / "mine", {"deu_Latn/a.txt": [text(1)], "ltz_Latn/a.txt": [text(1)]})
    curate({"mine": source}, NEAR, [], 0, tmp_path / "out")
    assert len(read_all(tmp_path / "out", TRAIN)) == 2


def test_what_resembles_a_held_out_text_is_dropped_whichever_comes_first(tmp_path: Path) -> None:
    original = text(1, 200)
    changed = original.replace("Haus", "Heim", 1)
    sources: dict[str, Source] = {
        "web": files(tmp_path / "web", {"deu_Latn/a.txt": [changed, text(2, 200)]}),
        "kept": files(tmp_path / "kept", {"deu_Latn/a.txt": [original]}, held_out_share=0.9999),
    }
    curated = curate(sources, NEAR, [], 0, tmp_path / "out")
    assert drop_counts(curated) == {"deu_Latn": {"near_held_out": 1}}
    assert [d.text for d in read_all(tmp_path / "out", TRAIN)] == [text(2, 200)]


def vowels(texts: list[str], language: str) -> list[float]:
    """A scorer: vowels among the first eight letters."""
    return [float(sum(c in "aeiou" for c in text[:8])) for text in texts]


def test_only_the_best_share_of_a_language_is_kept(tmp_path: Path) -> None:
    words = ["aaaaaaaa", "aaaaaaab", "aaaaaabb", "aaaaabbb", "bbbbbbbb", "bbbbbbba", "bbbbbbaa", "bbbbbaaa"]
    texts = [f"{word} {text(n)}" for n, word in enumerate(words)]
    lines = {"deu_Latn/a.txt": texts[::2], "deu_Latn/b.txt": [*texts[1::2], texts[0]], "fra_Latn/a.txt": texts}
    source = files(tmp_path / "mine", lines)
    run(source, NEAR, tmp_path, "first")
    scorer = f"{__name__}:vowels"
    classifier = {"scorer": scorer, "keep_share": 0.25, "keep_share_by_language": {"fra_Latn": 1.0}}
    best = Curation.model_validate({"near_duplicates": {}, "quality_classifier": classifier})
    curated = run(source, best, tmp_path, "best")
    # The copy of the best text is no second place.
    assert drop_counts(curated) == {"deu_Latn": {"duplicate": 1, "low_quality": 6}}
    kept = [d.text.split()[0] for d in read_all(tmp_path / "best", TRAIN) if d.language == "deu_Latn"]
    assert sorted(kept) == ["aaaaaaaa", "aaaaaaab"]
    classifier["keep_share"] = 0.5
    again = run(
        source, Curation.model_validate({"near_duplicates": {}, "quality_classifier": classifier}), tmp_path, "half"
    )
    assert done(again) == {"duplicates": 1, "finish": 2}


def test_a_threshold_of_one_language_re_does_that_language_only(source: FilesSource, tmp_path: Path) -> None:
    def curation(share: float) -> Curation:
        thresholds = {"fao_Latn": {"max_symbol_word_ratio": share}}
        return Curation.model_validate({"quality": {"filters": ["gopher_quality"], "by_language": thresholds}})

    run(source, curation(0.1), tmp_path, "first")
    # The text stays what it was, and so does all that comes after.
    assert done(run(source, curation(0.2), tmp_path, "second")) == {"clean": 1}


def test_repeated_ids_stop_or_are_dropped(tmp_path: Path) -> None:
    lines = {
        "deu_Latn/a.jsonl": rows([text(1), text(2)]),
        # r1 with another text, and a text that only the dropped one had before.
        "deu_Latn/b.jsonl": [*rows([text(3)], begin=1), *rows([text(3)], begin=7)],
    }
    source = files(tmp_path / "mine", lines, id_field="id")
    with pytest.raises(
        UserError, match=r"source mine: deu_Latn/b\.jsonl: the id '.*r1' stands twice, also in deu_Latn/a"
    ):
        run(source, NEAR, tmp_path, "out")
    lenient = source.model_copy(update={"on_error": "drop"})
    curated = run(lenient, NEAR, tmp_path, "lenient")
    assert drop_counts(curated) == {"deu_Latn": {"duplicate_id": 1}}
    assert sorted(d.text for d in read_all(tmp_path / "lenient", TRAIN)) == sorted([text(1), text(2), text(3)])


def test_what_cannot_be_read_is_dropped_with_its_reason(tmp_path: Path) -> None:
    source = files(
        tmp_path / "mine",
        {"deu_Latn/a.jsonl": [*rows([text(1)]), '{"body": "no text"}', '{"text"', *rows([text(2)], begin=1)]},
        on_error="drop",
    )
    (tmp_path / "mine" / "deu_Latn" / "b.txt").write_bytes(f"{text(3)}\n".encode() + b"\xff\xfe broken\n")
    packed = gzip.compress("".join(f"{text(n)}\n" for n in range(4, 2000)).encode())
    (tmp_path / "mine" / "deu_Latn" / "c.txt.gz").write_bytes(packed[: len(packed) // 2])
    curated = run(source, NEAR, tmp_path, "out")
    assert drop_counts(curated) == {
        "deu_Latn": {"missing_field": 1, "not_json": 1, "invalid_utf8": 1, "corrupt_compression": 1}
    }
    kept = {d.text for d in read_all(tmp_path / "out", TRAIN)}
    # What stands before the damage stays.
    assert {text(1), text(2), text(3), text(4)} < kept
    assert sorted(d.metadata["reason"] for d in dropped(tmp_path / "out")) == [
        "corrupt_compression", "invalid_utf8", "missing_field", "not_json",
    ]  # fmt: skip


def test_large_languages_are_done_in_parts_with_the_same_result(
    source: FilesSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curate({"mine": source}, NEAR, [], 0, tmp_path / "whole")
    monkeypatch.setattr(duplicates, "_PAIRS_DOCUMENTS", 30)
    monkeypatch.setattr(duplicates, "_RANGE_DOCUMENTS", 15)
    curated = curate({"mine": source}, NEAR, [], 0, tmp_path / "parts")
    # Two rows for texts and ids and one a band, each in three ranges of hashes: German alone is large.
    assert curated.work["pairs"] == ((2 + 14) * 3, 0)
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")


def test_a_language_of_which_nothing_is_left_warns_or_stops(tmp_path: Path) -> None:
    source = files(tmp_path / "mine", {"deu_Latn/a.txt": [text(1)], "fao_Latn/a.txt": ["1234 5678 90", "kort"]})
    curated = run(source, NEAR, tmp_path, "out")
    assert curated.warnings == ("fao_Latn (Faroese): nothing is left to train on (few_letters 1, too_short 1)",)
    required = NEAR.model_copy(update={"required_languages": ("fao_Latn",)})
    with pytest.raises(UserError, match=r"fao_Latn.*nothing is left.*curation\.required_languages"):
        run(source, required, tmp_path, "required")
    absent = NEAR.model_copy(update={"required_languages": ("deu_Latn", "eng_Latn")})
    with pytest.raises(UserError, match=r"no source has text in eng_Latn, which curation\.required_languages asks for"):
        run(source, absent, tmp_path, "absent")


def test_rows_of_unknown_language_are_told_once(tmp_path: Path) -> None:
    good = [json.dumps({"text": text(n), "lang": code}) for n, code in enumerate(["deu_Latn", "fao_Latn", "tha_Thai"])]
    files(tmp_path / "mine", {"a.jsonl": [*good, "{broken"]})
    settings = {"kind": "files", "path": str(tmp_path / "mine"), "language_field": "lang", "on_error": "drop"}
    source = FilesSource.model_validate(settings | {"held_out_share": 1e-9})
    groups = [
        curate({"mine": source}, Curation(groups=3), [], group, tmp_path / str(group), tmp_path / "work")
        for group in range(3)
    ]
    assert sum(found.get("not_json", 0) for group in groups for found in drop_counts(group).values()) == 1
    assert [warning for group in groups for warning in group.warnings] == []
    assert sorted(d.language for n in range(3) for d in read_all(tmp_path / str(n), TRAIN)) == [
        "deu_Latn", "fao_Latn", "tha_Thai",
    ]  # fmt: skip


def test_a_changed_model_file_is_another_piece_of_work(tmp_path: Path) -> None:
    model = tmp_path / "language.bin"
    model.write_bytes(b"what is in it is read later")
    recipe = load_recipe(
        "tiny", [f"curation={{language_identification: {{model: {model}}}}}", "sources={udhr: {kind: udhr}}"]
    )
    (tmp_path / "recipe.yaml").write_text(recipe_to_yaml(recipe))

    def fingerprint() -> str:
        return plan(get_component("curate"), {"recipe": str(tmp_path / "recipe.yaml")}, str(tmp_path)).fingerprint

    before = fingerprint()
    assert fingerprint() == before
    model.write_bytes(model.read_bytes() + b"x")
    assert fingerprint() != before


def test_damaged_work_is_named(source: FilesSource, tmp_path: Path) -> None:
    run(source, NEAR, tmp_path, "out")
    stored = next((tmp_path / "work" / "clean").glob("*/documents.jsonl.zst"))
    stored.write_bytes(stored.read_bytes()[:-5])
    with pytest.raises(UserError, match=rf"{stored.name}.* altered since curation stored it; delete "):
        run(source, NEAR.model_copy(update={"near_duplicates": None}), tmp_path, "again")


KILLED = """
import sys
from pathlib import Path
from mmbert.recipe.schema import FilesSource
from tests.curating import curate
from tests.integration.test_curation_stages import NEAR
folder = Path(sys.argv[1])
source = FilesSource(kind="files", path=str(folder / "mine"), held_out_share=1e-9)
curated = curate({"mine": source}, NEAR, [], 0, folder / "killed", folder / "work")
print("done again:", curated.work["clean"])
"""


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    names = [f"deu_Latn/{n:02d}.txt" for n in range(12)]
    source = files(tmp_path / "mine", {name: [text(50 * n + k) for k in range(50)] for n, name in enumerate(names)})
    curate({"mine": source}, NEAR, [], 0, tmp_path / "whole")
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=clean_environment(), start_new_session=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(f"cleaned mine/{names[4]}"):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    finished = len(list((tmp_path / "work" / "clean").glob("*/done.json")))
    assert 5 <= finished < 12
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=clean_environment(), check=True)
    assert f"done again: ({12 - finished}, {finished})" in again.stdout
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
