"""Half a year of evaluations of one registered model: three versions, 40 languages, a drop of the data in the last."""

from __future__ import annotations

import datetime
import random

from mmbert.evaluation.results.scorecard import Scorecard
from mmbert.evaluation.scores import Score
from mmbert.evaluation.selection import Release
from mmbert.evaluation.trend import Trend, alerts_of, evaluated_models
from mmbert.recipe.languages import language_table
from mmbert.tracking.registry import CANDIDATE, CHAMPION

START = datetime.datetime(2026, 5, 4, 3, 0, tzinfo=datetime.UTC)
DIGESTS = {version: version * 64 for version in "123"}
LANGUAGES = sorted(language_table())[:40]


def card(version: str, week: int, quality: float, revision: str = "rev-a", drops: tuple[str, ...] = ()) -> Scorecard:
    """An evaluation; `quality` moves all its scores, and the languages in `drops` fall by 0.2."""
    rng = random.Random(f"{version}{week}")
    scores = [
        Score("xtreme", "xnli", "accuracy", quality, quality - 0.01, quality + 0.01, 5010, data_revision=revision),
        Score("demo", "masked_bits_per_byte", "bits_per_byte", 4 - quality, 3.97 - quality, 4.03 - quality, 400),
    ]
    for code in LANGUAGES:
        value = quality + rng.gauss(0, 0.015) - (0.2 if code in drops else 0)
        scores.append(
            Score("xtreme", "xnli", "accuracy", value, value - 0.03, value + 0.03, 5010, code, data_revision=revision)
        )
    when = (START + datetime.timedelta(weeks=week)).isoformat(timespec="seconds")
    return Scorecard(f"version {version}", DIGESTS[version], "release", "", tuple(scores), when, f"{week:040x}")


def sample_history() -> list[Scorecard]:
    return [
        card("1", 0, 0.61),
        card("1", 4, 0.612, "rev-b"),
        card("2", 8, 0.66, "rev-b"),
        card("2", 16, 0.62, "rev-c"),
        card("3", 20, 0.67, "rev-c", drops=(LANGUAGES[3], LANGUAGES[7])),
    ]


def sample_trend() -> Trend:
    history = sample_history()
    models = [("version 2 (champion)", CHAMPION, DIGESTS["2"]), ("version 3 (candidate)", CANDIDATE, DIGESTS["3"])]
    evaluated = evaluated_models(history, models)
    names = {code: language.name for code, language in language_table().items()}
    weeks = {"1": 0, "2": 8, "3": 20}
    releases = tuple(
        Release(
            version=version,
            digest=DIGESTS[version],
            created=(START + datetime.timedelta(weeks=week)).timestamp(),
            aliases={"2": (CHAMPION,), "3": (CANDIDATE,)}.get(version, ()),
            gate={"1": "passed", "2": "passed", "3": "refused"}[version],
        )
        for version, week in weeks.items()
    )
    when = START + datetime.timedelta(weeks=20)
    return Trend(
        "mmbert-small", when, tuple(history), evaluated, releases, tuple(alerts_of(evaluated, names)),
        ("version 3: refused, because two languages fell",), names,
    )  # fmt: skip
