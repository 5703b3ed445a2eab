"""XQuAD, MLQA, TyDiQA and the suite low-resource, end to end on small data sets in the hub's schemas.

Answers are the numbers of the contexts, so that a tiny model learns in seconds to find them. The schemas are those of
the cards of rajpurkar/squad, google/xquad, google/xtreme (MLQA.*), google-research-datasets/tydiqa (secondary_task),
fgaim/tiquad and alexandrainst/foqa.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, List, Value
from torchmetrics.functional.text import squad

from mmbert.errors import UserError
from mmbert.evaluation.scores import Score
from mmbert.evaluation.suites import question_answering
from mmbert.evaluation.suites.base import ModelFolder, Suite
from mmbert.evaluation.suites.data import DataAccess
from mmbert.evaluation.suites.low_resource import SUITE as LOW_RESOURCE
from mmbert.evaluation.suites.question_answering import MLQA_LANGUAGES, TASKS, TYDIQA_NAMES, XQUAD_LANGUAGES
from mmbert.evaluation.suites.runner import Options, run_tasks
from tests.suite_data import tiny_model, write_data_set

XTREME = Suite("xtreme", "Questions of XTREME", TASKS)
NUMBERS = ("17", "1991", "360", "42", "8", "77")
WORDS = ("river", "stone", "house", "blue", "tree", "lamp", "street", "the", "market", "old")
LEARNING = {"learning_rate": 5e-3, "epochs": 12, "batch_size": 16, "max_length": 48, "stride": 8}
SCHEMA = Features(
    {
        "id": Value("string"),
        "title": Value("string"),
        "context": Value("string"),
        "question": Value("string"),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int32"))},
    }
)


def rows(count: int, prefix: str, seed: int = 0, length: int = 8) -> Dataset:
    """Contexts with one number among words; of every second one, the number with the next word is accepted too."""
    rng = random.Random(f"{prefix}{seed}")
    made = []
    for number in range(count):
        words = rng.choices(WORDS, k=length)
        at = rng.randrange(length - 1)
        words[at] = rng.choice(NUMBERS)
        start = len(" ".join(words[:at])) + bool(at)
        texts = [words[at], f"{words[at]} {words[at + 1]}"] if number % 2 else [words[at]]
        answers = {"text": texts, "answer_start": [start] * len(texts)}
        made.append(
            {
                "id": f"{prefix}-{number}",
                "title": "t",
                "context": " ".join(words),
                "question": "how many",
                "answers": answers,
            }
        )
    return Dataset.from_list(made, features=SCHEMA)


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mirror")
    write_data_set(root, "rajpurkar/squad", {"plain_text": {"train": rows(96, "squad"), "validation": rows(4, "v")}})
    xquad = {f"xquad.{code}": {"validation": rows(4, code)} for code in XQUAD_LANGUAGES}
    # Longer than the window, so that answers come from several.
    xquad["xquad.de"] = {"validation": rows(6, "de", length=60)}
    write_data_set(root, "google/xquad", xquad)
    mlqa = {f"MLQA.{code}.{code}": {"test": rows(4, code), "validation": rows(2, "v")} for code in MLQA_LANGUAGES}
    write_data_set(root, "google/xtreme", mlqa)
    names = TYDIQA_NAMES.values()
    both = {
        split: Dataset.from_list([row for name in names for row in rows(n, name, seed)], features=SCHEMA)
        for split, n, seed in (("train", 8, 1), ("validation", 3, 2))
    }
    write_data_set(root, "google-research-datasets/tydiqa", {"secondary_task": both})
    write_data_set(root, "fgaim/tiquad", {"default": {"train": rows(48, "ti"), "validation": rows(5, "tv")}})
    splits = {"train": rows(8, "fo"), "val": rows(2, "fv"), "test": rows(5, "ft")}
    write_data_set(root, "alexandrainst/foqa", {"default": splits})
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    texts = [" ".join(row["context"]) for row in [*rows(30, "a")]] + [row["context"] for row in rows(60, "b")]
    return tiny_model(tmp_path_factory.mktemp("model"), [*texts, "how many"])


Run = Callable[..., list[Score]]


@pytest.fixture(scope="module")
def run(model: ModelFolder, mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    shared = tmp_path_factory.mktemp("cache")

    def evaluate(suite: Suite, *tasks: str, cache: Path = shared, root: Path = mirror, **changes: Any) -> list[Score]:
        options = Options(
            tasks=tasks, seeds=(3, 4), bootstrap_samples=50, changes={**LEARNING, **changes}, device="cpu"
        )
        return run_tasks(model, suite, data=DataAccess(root), cache=cache, options=options, say=lambda _: None)

    evaluate.cache = shared  # type: ignore[attr-defined]
    return evaluate


def of(scores: list[Score], metric: str, language: str | None) -> Score:
    (score,) = [s for s in scores if (s.metric, s.language) == (metric, language)]
    return score


def kept(cache: Path, task: str, language: str) -> dict[int, list[dict[str, Any]]]:
    """The kept predictions by seed."""
    files = cache.glob(f"*/*{task}-*/seed-*/{language}.json")
    return {int(path.parent.name.removeprefix("seed-")): json.loads(path.read_text("utf-8")) for path in files}


def test_a_model_trained_on_english_answers_every_language(run: Run) -> None:
    scores = run(XTREME, "xquad")
    assert {s.language for s in scores} == {None, *XQUAD_LANGUAGES}
    overall = of(scores, "f1", None)
    # The contexts are of the same words in all "languages": what was learnt holds in each of them.
    assert overall.value > 0.8
    assert of(scores, "f1", "de").value > 0.6
    assert overall.low <= overall.value <= overall.high
    assert (overall.seeds, overall.n) == ((3, 4), 4 * 10 + 6)
    assert overall.deviation is not None
    assert overall.settings["trained_on"] == "squad"
    assert overall.data_revision.count("@") == 2
    means = [of(scores, "f1", code).value for code in XQUAD_LANGUAGES]
    assert overall.value == pytest.approx(sum(means) / len(means))


def test_scores_are_those_of_torchmetrics_on_the_kept_answers(run: Run, mirror: Path) -> None:
    scores = run(XTREME, "xquad")
    for code in ("de", "th"):
        truth = Dataset.from_parquet(str(mirror / f"google/xquad/xquad.{code}/validation-00000-of-00001.parquet"))
        values = []
        for answers in kept(run.cache, "xquad", code).values():  # type: ignore[attr-defined]
            predictions = [{"prediction_text": a["text"], "id": a["id"]} for a in answers]
            values.append(squad(predictions, [{"answers": row["answers"], "id": row["id"]} for row in truth]))
        assert len(values) == 2
        for ours, theirs in (("f1", "f1"), ("exact_match", "exact_match")):
            mean = sum(float(v[theirs]) for v in values) / 200
            assert of(scores, ours, code).value == pytest.approx(mean, abs=1e-6)


def test_mlqa_takes_the_same_model_and_its_own_normalisation(run: Run) -> None:
    run(XTREME, "xquad")
    models = {path: path.stat().st_mtime_ns for path in run.cache.glob("*/shared/span-*/model.safetensors")}  # type: ignore[attr-defined]
    scores = run(XTREME, "mlqa")
    now = {path: path.stat().st_mtime_ns for path in run.cache.glob("*/shared/span-*/model.safetensors")}  # type: ignore[attr-defined]
    assert models == {path: now[path] for path in models}
    assert sum("span-squad" in str(path) for path in now) == 2
    assert {s.metric for s in scores} == {"f1", "exact_match", "squad_f1"}
    assert {s.language for s in scores} == {None, *MLQA_LANGUAGES}
    # "the" is no article in German: there the two normalisations part where an answer holds it.
    assert of(scores, "f1", "en").value == of(scores, "squad_f1", "en").value


def test_tydiqa_learns_from_its_english_part_alone(run: Run) -> None:
    scores = run(XTREME, "tydiqa", epochs=1)
    assert {s.language for s in scores} == {None, *TYDIQA_NAMES}
    assert of(scores, "f1", "sw").n == 3
    ids = {a["id"] for a in kept(run.cache, "tydiqa", "sw")[3]}  # type: ignore[attr-defined]
    assert ids == {f"swahili-{n}" for n in range(3)}
    assert of(scores, "f1", None).settings["trained_on"] == "tydiqa-en"


def test_low_resource_languages_from_english_or_from_their_own(run: Run) -> None:
    scores = run(LOW_RESOURCE)
    assert {(s.task, s.language) for s in scores} == {(t, c) for t, c in (("tiquad", "ti"), ("foqa", "fo"))} | {
        ("tiquad", None),
        ("foqa", None),
    }
    assert all(s.value > 0.6 for s in scores if s.metric == "f1")
    own = run(LOW_RESOURCE, "tiquad", train_on="own", epochs=1)
    assert of(own, "f1", "ti").settings["trained_on"] == "tiquad"
    with pytest.raises(UserError, match=r"train_on is 'mine'.*squad, own"):
        run(LOW_RESOURCE, "foqa", train_on="mine")


def test_a_killed_evaluation_goes_on_where_it_ended(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"epochs": 1, "cache": tmp_path}
    calls = []
    predict = question_answering.predict

    def dying(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return predict(*arguments, **named)

    monkeypatch.setattr(question_answering, "predict", dying)
    with pytest.raises(KeyboardInterrupt):
        run(XTREME, "mlqa", **changes)
    kept_before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/seed-3/*.json")}
    assert len(kept_before) == 3
    scores = run(XTREME, "mlqa", **changes)
    assert len(calls) == 4 + len(MLQA_LANGUAGES) * 2 - 3
    assert kept_before == {path: path.stat().st_mtime_ns for path in kept_before}
    whole = run(XTREME, "mlqa", epochs=1, cache=tmp_path / "anew")
    assert [s.to_json() for s in scores] == [s.to_json() for s in whole]


def test_another_schema_is_the_users_error(run: Run, mirror: Path, tmp_path: Path) -> None:
    for repo in ("rajpurkar/squad", "google/xquad"):
        (tmp_path / repo).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / repo).symlink_to(mirror / repo)
    wrong = Dataset.from_list([{"id": "1", "text": "no question here"}])
    subsets = {f"MLQA.{code}.{code}": {"test": wrong} for code in MLQA_LANGUAGES}
    write_data_set(tmp_path, "google/xtreme", subsets)
    with pytest.raises(UserError, match=r"subset MLQA.ar.ar, split test: no column question.*datasets/google/xtreme"):
        run(XTREME, "mlqa", root=tmp_path)
