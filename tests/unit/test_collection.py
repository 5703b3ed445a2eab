"""What a collection keeps, what goes, what makes it refuse; and that each thing that keeps something is needed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from components.cli import cli
from mmbert import artifacts, marks, storage
from mmbert.collection import collect as collecting
from mmbert.collection import survey as surveying
from mmbert.collection import tickets
from mmbert.collection.collect import Collected, collect, planned
from mmbert.collection.needs import Need, asked_for, releases
from mmbert.collection.survey import Survey, survey
from mmbert.errors import InfrastructureError
from mmbert.lineage import Input, Store
from tests import lineage_stores
from tests.collecting import DAY, GRACE, HOUR, World

LONG = GRACE + DAY


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        yield World(tmp_path / "store", patch)


def put(world: World, path: str, data: str = "12345") -> Path:
    file = Path(world.root, path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(data, "utf-8")
    os.utime(file, (world.now, world.now))
    return file


def begun(world: World, name: str, *made_of: artifacts.Artifact, resumable: bool = True) -> str:
    """Work that was killed."""
    uri = world.place(name)
    writer = artifacts.ArtifactWriter(uri, "documents", uri.rpartition("/")[2], {}, {})
    writer.begin({artifact.uri for artifact in made_of})
    writer.add_bytes("text", b"half")
    if resumable:
        storage.write_bytes(storage.join(writer.kept_uri, "shard"), b"shard")
    return uri


def looked(world: World, **options: Any) -> Survey:
    return survey(world.root, world.needs, GRACE, **options)


def states(found: Survey) -> dict[tuple[str, str], int]:
    """Files by state and place (or top-level folder)."""
    return {(group.state, group.place.rpartition("/")[2] or group.kind): len(group.files) for group in found.groups}


def tail(uri: str) -> str:
    return uri.rpartition("/")[2]


def test_every_file_is_counted_once_under_what_it_is(world: World) -> None:
    base = world.make("base")
    model = world.make("model", [base])
    superseded = put(world, f"documents/{tail(base.uri)}/attempts/{'0' * 12}/text")
    put(world, f"documents/{tail(model.uri)}/resume/{'0' * 12}/{'1'.zfill(12)}/composer.pt")
    put(world, f"documents/{tail(model.uri)}/mine.txt")
    half = begun(world, "half")
    dead = begun(world, "dead", resumable=False)
    world.make("nobody's")
    for path in ("spool/1.jsonl", "results/d/s/1.parquet", "work/curation/clean/1/done.json", "work/alerts/m/told.json",
                 "mine/notes.txt", "README"):  # fmt: skip
        put(world, path)
    world.now += LONG
    running = world.make("running")
    world.registry["3 (champion)"] = model.uri
    world.running["train"] = {running.uri}
    world.now += LONG
    world.make("young")

    found = looked(world)
    assert states(found) == {
        ("registered", tail(base.uri)): 3,
        ("superseded", tail(base.uri)): 1,
        ("registered", tail(model.uri)): 3,
        ("left over", tail(model.uri)): 1,
        ("unknown", tail(model.uri)): 1,
        ("resumable", tail(half)): 2,
        ("superseded", tail(half)): 1,
        ("superseded", tail(dead)): 2,
        ("unreachable", tail(world.place("nobody's"))): 3,
        ("running", tail(running.uri)): 3,
        ("recent", tail(world.place("young"))): 3,
        ("unsent", "spool"): 1,
        ("record", "results"): 1,
        ("record", "work"): 1,
        ("cache", "work"): 1,
        ("unknown", "-"): 2,
    }
    assert sum(len(group.files) for group in found.groups) == len(storage.list_files(world.root))
    assert {g.why for g in found.of("registered")} == {"model version 3 (champion)"}
    assert [g.why for g in found.of("resumable")] == ["can go on"]

    stay = {f.path for g in found.groups if g.state not in ("superseded", "left over") for f in g.files}
    world.collect()
    assert stay <= set(storage.list_files(world.root))
    assert not superseded.exists()
    assert storage.list_files(dead) == []


def test_a_dry_run_changes_nothing(world: World) -> None:
    world.make("a")
    world.now += LONG
    world.collect()
    world.now += LONG
    before = storage.list_versions(world.root)
    plan = planned(looked(world), caches=True)
    assert [group.place for group in plan.gone] == [f"documents/{tail(world.place('a'))}"]
    assert storage.list_versions(world.root) == before


def test_what_is_needed_again_loses_its_mark_and_starts_anew(world: World) -> None:
    made = world.make("a")
    world.now += LONG
    world.collect()
    world.registry["1"] = made.uri
    world.now += LONG
    world.collect()
    assert marks.read(made.uri) is None
    world.registry.clear()
    assert [group.place for group in world.collect().marked] == [f"documents/{tail(made.uri)}"]
    world.now += GRACE - HOUR
    world.collect()
    assert world.complete(made.uri)
    world.now += 2 * HOUR
    world.collect()
    assert not world.complete(made.uri)


def test_caches_go_when_asked_for_and_nothing_runs(world: World) -> None:
    old = put(world, "work/curation/clean/old/done.json")
    told = put(world, "work/alerts/m/told.json")
    world.now += LONG
    young = put(world, "work/curation/clean/young/done.json")
    running = world.make("a")
    world.running["curate"] = {running.uri}
    collect(world.root, world.needs, GRACE, caches=True)
    assert old.exists()
    world.running.clear()
    world.collect()
    assert old.exists()
    collect(world.root, world.needs, GRACE, caches=True)
    assert (old.exists(), young.exists(), told.exists()) == (False, True, True)


def test_another_runs_report_does_not_stand_for_one_that_was_moved_away(world: World, tmp_path: Path) -> None:
    """Pages have no digested file, so all of them have one content digest."""
    needed, other = (lineage_stores.put(world.root, "report", run, digested=False) for run in ("needed", "other"))
    files = {"release.json": {"name": "m", "version": 1}}
    world.registry["1"] = lineage_stores.put(world.root, "release", "m", {"report": [needed]}, files=files).uri
    Path(needed.uri).rename(tmp_path / "away")
    world.now += LONG
    with pytest.raises(InfrastructureError, match=f"{needed.uri}: no artifact is there.*--lost {needed.uri}") as error:
        world.collect()
    assert error.value.exit_code == 3
    collect(world.root, world.needs, GRACE, lost=[needed.uri])
    assert marks.read(other.uri) is not None


def test_of_what_was_collected_no_folder_is_left(world: World) -> None:
    made = world.make("a")
    for _ in range(2):
        world.now += LONG
        world.collect()
    assert storage.list_files(made.uri) == []
    world.now += LONG
    fresh = Path(world.root, "documents", "f" * 32)
    fresh.mkdir()
    os.utime(fresh, (world.now, world.now))
    world.collect()
    assert not Path(made.uri).exists()
    assert fresh.exists()


def test_ancestors_are_walked_once_however_many_need_them(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [world.make("0")]
    for number in range(1, 20):
        made.append(world.make(str(number), made[-1:]))
        world.registry[str(number)] = made[-1].uri
    asked: list[str] = []
    real = Store.inputs

    def inputs(self: Store, uri: str) -> list[Input]:
        asked.append(uri)
        return real(self, uri)

    monkeypatch.setattr(Store, "inputs", inputs)
    assert len(looked(world).kept) == 20
    assert len(asked) < 10 * len(made)


def test_caches_stay_while_anything_runs_whatever_else_needs_it(world: World) -> None:
    old = put(world, "work/curation/clean/old/done.json")
    model = world.make("model")
    rest = put(world, f"documents/{tail(model.uri)}/attempts/{'0' * 12}/text")
    world.registry["1"] = model.uri
    world.now += LONG
    for running in (model.uri, "/elsewhere/artifacts/documents/1", ""):
        world.running["curate"] = {running}
        collect(world.root, world.needs, GRACE, caches=True)
        assert (old.exists(), rest.exists()) == (True, running == model.uri), running
        put(world, str(rest.relative_to(world.root)))
        world.now += LONG


def test_caches_stay_where_work_begins_while_the_store_is_collected(world: World) -> None:
    old = put(world, "work/curation/clean/old/done.json")
    world.make("a")
    world.now += LONG

    def begins(store: Store) -> list[Need]:
        found = world.needs(store)
        world.running["curate"] = {world.place("a")}
        return found

    collect(world.root, begins, GRACE, caches=True)
    assert old.exists()


def test_only_old_uploads_of_artifacts_that_nobody_makes_are_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = begun(world, "running")
    world.running["train"] = {running}
    nobodys = f"{world.place('nobody')}/attempts/1/big"
    others = [f"{running}/resume/1/big", f"{running}/permanent/{'7'.zfill(12)}/attempts/1/big",
              storage.join(world.root, "mine/big"), storage.join(world.root, "spool/big")]  # fmt: skip
    world.now += LONG
    young = storage.UnfinishedUpload(f"{nobodys}2", "y", world.now - DAY + HOUR, 1)
    uploads = [storage.UnfinishedUpload(uri, "u", world.now - LONG, 1) for uri in (nobodys, *others)]
    monkeypatch.setattr(storage, "unfinished_uploads", lambda root: [*uploads, young])
    assert [upload.uri for upload in planned(survey(world.root, world.needs, HOUR), caches=False).uploads] == [nobodys]


def test_the_note_of_work_that_runs_is_followed(world: World) -> None:
    """A recipe, and all that MLflow has not got yet, are named there alone."""
    base = world.make("base")
    world.running["evaluate"] = {begun(world, "scores", base, resumable=False)}
    two_collections(world)
    assert world.complete(base.uri)


def test_work_that_can_go_on_and_has_no_note_stops_everything(world: World) -> None:
    base = world.make("base")
    half = begun(world, "half", base)
    Path(half, artifacts.WORK).unlink()
    world.now += LONG
    with pytest.raises(InfrastructureError, match=f"no work.json says.*--lost {half}"):
        world.collect()
    collect(world.root, lambda store: asked_for([base.uri]), GRACE, lost=[half])
    world.now += LONG
    collect(world.root, lambda store: asked_for([base.uri]), GRACE, lost=[half])
    assert world.complete(base.uri)
    assert Path(half, artifacts.KEPT, "shard").exists()


@pytest.mark.parametrize("target", ["there", "away"])
def test_a_linked_folder_stops_everything(world: World, tmp_path: Path, target: str) -> None:
    made = world.make("a")
    (tmp_path / "there").mkdir()
    Path(world.root, "checkpoint").symlink_to(tmp_path / target)
    world.now += LONG
    with pytest.raises(InfrastructureError, match=r"checkpoint: a link, to .*give their own folder"):
        world.collect()
    assert marks.read(made.uri) is None


def two_collections(world: World, between: float = LONG) -> None:
    for _ in range(2):
        world.now += between
        world.collect()


def an_hour_after_it_was_marked(world: World, patch: pytest.MonkeyPatch) -> list[str]:
    made = world.make("a")
    world.now += LONG
    world.collect()
    world.now += HOUR
    world.needed_at.clear()
    world.collect()
    return [made.uri]


def by_running_work(world: World, patch: pytest.MonkeyPatch) -> list[str]:
    base = world.make("base")
    made = world.make("made", [base])
    world.running["pretrain"] = {made.uri}
    two_collections(world)
    return [base.uri, made.uri]


def by_what_is_made_from_it(world: World, patch: pytest.MonkeyPatch) -> list[str]:
    """Marked long before what was made from it, which a run may still find done."""
    base = world.make("base")
    world.now += LONG
    world.collect()
    world.now += LONG - 2 * HOUR
    writer = artifacts.ArtifactWriter(
        world.place("made"), "documents", tail(world.place("made")), {},
        {"documents": [{"uri": base.uri, "digest": base.digest, "kind": "documents"}]},
    )  # fmt: skip
    writer.add_bytes("text", b"text")
    made = writer.commit({})
    for file in (Path(made.uri, artifacts.MANIFEST), *Path(made.uri).rglob("text")):
        os.utime(file, (world.now - LONG, world.now - LONG))
    world.now += 4 * HOUR
    world.collect()
    return [base.uri]


def by_work_that_is_not_done(world: World, patch: pytest.MonkeyPatch) -> list[str]:
    base = world.make("base")
    begun(world, "half", base)
    two_collections(world)
    return [base.uri]


def by_a_release_in_no_registry(world: World, patch: pytest.MonkeyPatch) -> list[str]:
    model = world.make("model")
    uri = storage.join(world.root, "release", "f" * 32)
    entry = {"uri": model.uri, "digest": model.digest, "kind": "documents"}
    writer = artifacts.ArtifactWriter(uri, "release", "f" * 32, {}, {"model": [entry]})
    writer.add_json("release.json", {"name": "m", "version": None})
    writer.commit({})
    two_collections(world)
    return [model.uri, uri]


def telling(world: World, kind: str, *made_of: artifacts.Artifact, files: Any = None) -> artifacts.Artifact:
    """An artifact that nothing is made from, as the gate and the reports write it: with no file that is digested."""
    fingerprint = artifacts.digest_json([kind, *(a.uri for a in made_of)])[:32]
    inputs: dict[str, list[dict[str, str]]] = {}
    for a in made_of:
        inputs.setdefault(a.manifest.kind, []).append({"uri": a.uri, "digest": a.digest, "kind": a.manifest.kind})
    writer = artifacts.ArtifactWriter(storage.join(world.root, kind, fingerprint), kind, fingerprint, {}, inputs)
    for path, value in (files or {}).items():
        writer.add_json(path, value)
    writer.add_json("told.json", {"of": [a.uri for a in made_of]}, digested=False)
    made = writer.commit({})
    os.utime(Path(made.uri, artifacts.MANIFEST), (world.now, world.now))
    return made


def by_the_registered_model_that_it_tells_of(world: World, patch: pytest.MonkeyPatch) -> list[str]:
    text = world.make("text")
    mixture, scores = world.make("m", [text]), world.make("scores")
    released = {"release.json": {"name": "m", "version": "1"}}
    release = telling(world, "release", world.make("model", [mixture]), files=released)
    promotion, report = telling(world, "promotion", release, scores), telling(world, "data_report", text, mixture)
    world.registry["1"] = release.uri
    two_collections(world)
    return [promotion.uri, scores.uri, report.uri]


def by_a_run_that_found_it_marked(world: World, patch: pytest.MonkeyPatch) -> list[str]:
    made = world.make("a")
    world.now += LONG
    world.collect()
    world.now += LONG
    assert artifacts.find(made.uri)
    world.now += HOUR
    world.collect()
    return [made.uri]


def by_training_that_is_not_done(world: World, patch: pytest.MonkeyPatch) -> list[str]:
    """Its permanent checkpoints."""
    training = storage.join(world.root, "checkpoint", "c" * 32)
    begun_at = artifacts.ArtifactWriter(f"{training}/permanent/{'7'.zfill(12)}", "checkpoint", "d" * 32, {}, {})
    begun_at.add_bytes("weights", b"w")
    made = begun_at.commit({})
    two_collections(world)
    return [made.uri]


def no_grace(patch: pytest.MonkeyPatch) -> None:
    at_once = lambda root, outside, grace, *more: survey(root, outside, 0.0, *more)  # noqa: E731
    patch.setattr(collecting, "survey", at_once)


def nothing_runs(patch: pytest.MonkeyPatch) -> None:
    def needs(self: World, store: object) -> list[object]:
        return []

    patch.setattr(World, "needs", needs)


def any_order(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(collecting, "_gone", lambda consumer, there, going: True)


def no_notes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(surveying._Places, "_noted", lambda self, place: [])


def no_releases(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(surveying, "releases", lambda store: [])


def nothing_tells(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(surveying, "_TOLD_OF", {})


def no_wanted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(surveying._Places, "_wanted", lambda self, place: [])
    patch.setattr(marks, "wanted", lambda uri: False)


def no_recent(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(surveying._Places, "_recent", lambda self: [])


KEEPERS: list[tuple[Callable[[World, pytest.MonkeyPatch], list[str]], Callable[[pytest.MonkeyPatch], None]]] = [
    (an_hour_after_it_was_marked, no_grace),
    (by_running_work, nothing_runs),
    (by_what_is_made_from_it, any_order),
    (by_work_that_is_not_done, no_notes),
    (by_a_release_in_no_registry, no_releases),
    (by_the_registered_model_that_it_tells_of, nothing_tells),
    (by_a_run_that_found_it_marked, no_wanted),
    (by_training_that_is_not_done, no_recent),
]


@pytest.mark.parametrize(("kept", "removed"), KEEPERS, ids=[kept.__name__ for kept, _ in KEEPERS])
def test_it_is_kept_and_would_not_be_otherwise(
    world: World, monkeypatch: pytest.MonkeyPatch,
    kept: Callable[[World, pytest.MonkeyPatch], list[str]], removed: Callable[[pytest.MonkeyPatch], None],
) -> None:  # fmt: skip
    assert all(world.complete(uri) for uri in kept(world, monkeypatch))
    for uri in storage.list_files(world.root):
        Path(world.root, uri).unlink()
    # What the test itself would say of a deletion is not what is asked here.
    monkeypatch.setattr(world, "_check_deletion", lambda uri: None)
    removed(monkeypatch)
    assert not all(world.complete(uri) for uri in kept(world, monkeypatch))


def test_what_tells_of_more_than_what_is_registered_goes(world: World) -> None:
    text = world.make("text")
    kept, other = world.make("m", [text]), telling(world, "mixture", text)
    release = telling(world, "release", text, files={"release.json": {"name": "m", "version": "1"}})
    of_both, of_nobodys = telling(world, "data_report", kept, other), telling(world, "promotion", release)
    of_text = telling(world, "data_report", text)
    world.registry["1"] = kept.uri
    world.now += LONG
    found = looked(world)
    going = {storage.join(world.root, group.place) for group in found.of("unreachable")}
    assert going == {other.uri, release.uri, of_both.uri, of_nobodys.uri, of_text.uri}


def test_an_attempt_that_is_committed_meanwhile_is_not_deleted(world: World) -> None:
    """A dry attempt's files look superseded until its manifest is written."""
    made = world.make("a")
    world.registry["1"] = made.uri
    late = artifacts.ArtifactWriter(made.uri, "documents", tail(made.uri), {}, {})
    late.add_bytes("text", b"text a")
    world.now += LONG
    collector = world.collector()
    while collector.at != "mlflow":
        collector.step()
    late.commit({})
    collector.finish()
    assert world.complete(made.uri)


def test_an_unreadable_manifest_stops_everything_and_is_named(world: World) -> None:
    made = world.make("a")
    world.now += LONG
    Path(made.uri, artifacts.MANIFEST).write_text("{", "utf-8")
    with pytest.raises(InfrastructureError, match=rf"{tail(made.uri)}.*manifest.json cannot be read.*delete it"):
        world.collect()
    with pytest.raises(InfrastructureError, match="nothing is deleted"):
        planned(looked(world), caches=False)


def test_a_release_that_cannot_be_read_stops_everything_and_is_asked_for_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    [_, uri] = by_a_release_in_no_registry(world, monkeypatch)
    (file,) = Path(uri, "attempts").rglob("release.json")
    kept = file.read_bytes()
    file.unlink()
    with pytest.raises(InfrastructureError, match=f"bring release.json back, or.*delete the folder {uri}"):
        world.collect()
    file.write_bytes(kept)
    release = artifacts.look(uri)
    assert release
    read: list[str] = []

    def reads(self: artifacts.Artifact, path: str) -> dict[str, object]:
        read.append(path)
        return {}

    monkeypatch.setattr(artifacts.Artifact, "read_json", reads)
    for _ in range(2):
        assert releases(Store(world.root, {uri: release}))
    assert read == ["release.json"]


def test_a_bad_manifest_in_another_store_stops_everything(world: World, tmp_path: Path) -> None:
    world.make("a")
    elsewhere = put(world, str(tmp_path / "other" / "model" / ("b" * 32) / artifacts.MANIFEST), "{").parent
    world.registry["1"] = str(elsewhere)
    with pytest.raises(InfrastructureError, match=r"manifest.json cannot be read.*model version 1"):
        world.collect()


def test_a_lost_input_of_something_needed_stops_everything_until_it_is_said_to_be_lost(world: World) -> None:
    first = world.make("first")
    base = world.make("base", [first])
    model = world.make("model", [base])
    world.registry["1"] = model.uri
    Path(base.uri, artifacts.MANIFEST).unlink()
    world.now += LONG
    with pytest.raises(InfrastructureError, match=f"--lost {base.uri}"):
        world.collect()
    found = collect(world.root, world.needs, GRACE, lost=[base.uri])
    assert [group.place for group in found.marked] == [f"documents/{tail(first.uri)}"]


def test_what_is_missing_is_told_once_with_who_needs_it(world: World) -> None:
    base = world.make("base")
    for number in "1234":
        world.registry[number] = world.make(f"model {number}", [base]).uri
    world.registry["5"] = world.registry["6"] = world.place("gone")
    Path(base.uri, artifacts.MANIFEST).write_text("{", "utf-8")
    problems = looked(world).problems
    assert [problem.count(base.uri) for problem in problems if problem.startswith(base.uri)] == [1, 2]
    (told,) = [problem for problem in problems if "--lost" in problem and problem.startswith(base.uri)]
    assert re.search(r"and \S+ was made from it \(model version 1\); .*; and 1 more\. What it was", told)
    (gone,) = [problem for problem in problems if problem.startswith(world.place("gone"))]
    assert "and model version 5 needs it; model version 6 needs it. What" in gone


@pytest.fixture
def no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    storage.s3_client.cache_clear()
    yield
    storage.s3_client.cache_clear()


def test_another_store_that_is_away_stops_collections_alone(world: World, no_keys: None) -> None:
    nobodys = world.make("a")
    away = [f"s3://cold/{kind}/{'b' * 32}" for kind in ("model", "scores")]
    world.registry = {"1": away[0], "1 again": away[0], "2": away[1]}
    world.now += LONG
    first, second = looked(world).problems
    assert re.fullmatch(rf"{away[0]}: no S3 credentials.*\(model version 1 needs it; model version 1 again.*\)", first)
    assert re.fullmatch(rf"{away[1]}: no S3 credentials.*\(model version 2 needs it\)", second)
    with pytest.raises(InfrastructureError, match="nothing is deleted"):
        world.collect()
    marked = collect(world.root, world.needs, GRACE, lost=away).marked
    assert [group.place for group in marked] == [f"documents/{tail(nobodys.uri)}"]


def test_a_registered_model_that_is_gone_stops_everything(world: World) -> None:
    world.make("a")
    world.registry["1"] = world.place("gone")
    world.now += LONG
    with pytest.raises(InfrastructureError, match="there is no artifact, and model version 1 needs it"):
        world.collect()


def test_a_folder_that_cannot_be_listed_stops_everything(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made = world.make("a")
    world.now += LONG
    scandir = os.scandir

    def refuses(path: Any) -> Any:
        if str(path).endswith("attempts"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuses)
    with pytest.raises(InfrastructureError, match="Permission denied"):
        world.collect()
    assert world.complete(made.uri)


def test_a_wrong_clock_stops_everything(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made = world.make("a")
    monkeypatch.setattr(marks, "now", lambda: world.now + 10 * 365 * DAY)
    with pytest.raises(InfrastructureError, match="set the clock right"):
        world.collect()
    monkeypatch.setattr(tickets, "_LARGEST_SKEW_SECONDS", 1e12)
    assert collect(world.root, world.needs, GRACE).marked
    assert world.complete(made.uri)


def test_a_wrong_clock_takes_no_other_collection_for_dead(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.make("a")
    other = tickets.Ticket(world.root)
    monkeypatch.setattr(marks, "now", lambda: world.now + DAY)
    for look in (15, 1e12):
        monkeypatch.setattr(tickets, "_LARGEST_SKEW_SECONDS", look)
        with pytest.raises(InfrastructureError, match=r"set the clock right|another collection is at work"):
            world.collect()
    other.end()
    assert world.collect()


def test_another_collection_is_told_with_its_ticket_and_until_when_it_counts(world: World) -> None:
    world.make("a")
    other = tickets.Ticket(world.root)
    (ticket,) = Path(world.root, "collection").iterdir()
    world.now += 40 * 60
    other.go_on()
    told = rf"on \S+ since 2027-01-15 08:00 UTC; .* counts until 2027-01-15 10:00 UTC, by its ticket {ticket}"
    with pytest.raises(InfrastructureError, match=told):
        world.collect()


def test_a_ticket_is_renewed_while_the_store_is_read(world: World) -> None:
    made = world.make("a")
    marks.put(made.uri)
    world.now += LONG
    collector = world.collector()
    passed = 0
    while not collector.ended:
        if collector.at.startswith(("list_stored ", "mlflow")) and "/collection" not in collector.at:
            world.now += HOUR - 60
            passed += 1
        collector.step()
    assert passed > 1
    assert collector.error is None


def test_a_collection_that_lost_its_ticket_takes_off_no_mark(world: World) -> None:
    made = world.make("a")
    world.registry["1"] = made.uri
    marks.put(made.uri)
    ticket = tickets.Ticket(world.root)
    found = looked(world)
    world.now += 2 * HOUR
    with pytest.raises(marks.LostError):
        collecting._take_off_marks(found, ticket.go_on)
    assert marks.read(made.uri)


def test_what_is_asked_to_be_kept_is_kept_with_what_it_is_made_from(world: World) -> None:
    base = world.make("base")
    made = world.make("made", [base])
    nobodys = world.make("nobody's", [made])
    world.now += LONG
    found: Collected = collect(world.root, lambda store: asked_for([f"{made.uri}/"]), GRACE)
    assert [group.place for group in found.marked] == [f"documents/{tail(nobodys.uri)}"]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MLFLOW_TRACKING_URI", "MMBERT_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MMBERT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "files").mkdir(parents=True)
    (tmp_path / "cache" / "files" / "a").write_text("123", "utf-8")
    root = tmp_path / "store"
    uri = storage.join(str(root), "documents", "a" * 32)
    writer = artifacts.ArtifactWriter(uri, "documents", "a" * 32, {}, {})
    writer.add_bytes("text", b"text")
    writer.commit({})
    old = 1_700_000_000
    for path in root.rglob("*"):
        os.utime(path, (old, old))
    return root


def said(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["storage", *arguments])
    if isinstance(result.exception, Exception) and hasattr(result.exception, "exit_code"):
        return result.exception.exit_code, str(result.exception)
    return result.exit_code, result.output


def test_the_command_shows_and_collects(store: Path) -> None:
    code, text = said("--root", str(store))
    assert code == 0
    for words in ("unreachable  documents  artifact", str(store / "documents" / ("a" * 32)), "MMBERT_CACHE", "3 B"):
        assert words in text
    code, shown = said("--root", str(store), "--json")
    assert json.loads(shown[shown.index("{") :])["groups"][0]["state"] == "unreachable"

    code, text = said("collect", "--root", str(store))
    assert (code, "--without-registry" in text) == (2, True)
    code, text = said("collect", "--root", str(store), "--without-registry")
    assert code == 0
    assert "would be marked as needed by nothing: 1 artifact in 2 files" in text
    assert "nothing was changed" in text
    assert not (store / "collection").exists()
    code, text = said("collect", "--root", str(store), "--without-registry", "--delete", "--json")
    assert len(json.loads(text)["marked"]) == 1
    assert (store / "documents" / ("a" * 32) / marks.MARK).exists()


def test_a_folder_that_is_no_store_is_told(store: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for words in ((), ("collect", "--without-registry", "--delete")):
        assert said(*words, "--root", str(tmp_path / "empty")) == (
            2, f"below {tmp_path / 'empty'} there is no artifact; is this the store?"
        )  # fmt: skip
        assert said(*words, "--root", str(tmp_path)) == (
            2, f"below {tmp_path} there is no artifact; the store seems to be {store}"
        )  # fmt: skip
    assert list((tmp_path / "empty").iterdir()) == []


def test_what_is_asked_for_and_what_is_lost_are_looked_at(store: Path) -> None:
    made, wrong = str(store / "documents" / ("a" * 32)), str(store / "documents" / ("b" * 32))
    for asked in (wrong, str(store), "http://h/x"):
        for words in ((), ("collect", "--without-registry"), ("collect", "--without-registry", "--delete")):
            assert said(*words, "--root", str(store), "--keep", asked) == (2, f"--keep {asked}: no artifact is there")
    user = artifacts.ArtifactWriter(
        storage.join(str(store), "documents", "c" * 32), "documents", "c" * 32, {},
        {"documents": [{"uri": wrong, "digest": "d" * 64, "kind": "documents"}]},
    )  # fmt: skip
    user.add_bytes("text", b"more")
    user.commit({})
    lost = [word for one in (made, wrong, "/nowhere", "e" * 32) for word in ("--lost", one)]
    code, text = said("collect", "--root", str(store), "--without-registry", *lost)
    assert code == 0
    assert [line for line in text.splitlines() if "--lost" in line] == [
        f"warning: --lost {'e' * 32}: none of the last runs that made artifacts here",
        "warning: --lost /nowhere: nothing that is needed was made from it",
        f"warning: --lost {made}: an artifact is there",
    ]


def test_a_look_goes_on_without_mlflow(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr("mmbert.tracking.api._FIRST_WAIT_SECONDS", 0.0)
    code, text = said("--root", str(store))
    assert (code, "unreachable  documents  artifact" in text) == (0, True)
    assert re.search("warning: no answer from MLflow.* is not known", text)


def test_the_command_refuses_what_it_cannot_know(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert said("collect", "--root", str(store / "nowhere"), "--without-registry")[0] == 2
    assert said("--root", str(store), "collect", "--without-registry") == (
        2, "give the options behind `mmbert storage collect`"
    )  # fmt: skip
    code, text = said("collect", "--root", str(store), "--without-registry", "--older-than", "0")
    assert (code, "an hour" in text) == (2, True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr("mmbert.tracking.api._FIRST_WAIT_SECONDS", 0.0)
    code, text = said("collect", "--root", str(store), "--delete")
    assert (code, "no answer from MLflow" in text) == (3, True)
    assert not (store / "documents" / ("a" * 32) / marks.MARK).exists()
