"""What commands say while they work: a live line on a terminal, lines elsewhere, nothing with --quiet; and --json."""

from __future__ import annotations

import functools
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from components import workflows
from components.cli import _exit_code, cli
from components.local import count_steps
from mmbert import progress
from mmbert.evaluation.results import store
from mmbert.evaluation.results.scorecard import Scorecard
from mmbert.evaluation.scores import Score
from mmbert.recipe import load_recipe
from mmbert.workers import Workers
from tests.fixtures_stack import clean_environment

ROOT = Path(__file__).resolve().parents[2]
WORK = """
import sys, time
from mmbert import logs, progress
progress.LINE_SECONDS = {lines}
logs.set_up(results=False)
with logs.results_apart(), progress.shown("copying", 8, "files") as advance:
    for number in range(1, 9):
        time.sleep({pause})
        advance(1)
        if number == 4:
            print("half of it")
            print("warning: the disk is slow")
print("the result")
"""
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def environment(**more: str) -> dict[str, str]:
    own = {name: value for name, value in clean_environment().items() if name not in {"NO_COLOR", "MMBERT_QUIET"}}
    return {**own, "PYTHONPATH": str(ROOT), **more}


def piped(lines: float = 0, **variables: str) -> tuple[str, str]:
    """The two outputs of WORK."""
    done = subprocess.run(
        [sys.executable, "-c", WORK.format(lines=lines, pause=0.03)],
        env=environment(**variables), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout, done.stderr


def on_a_terminal(code: str, **variables: str) -> tuple[str, str]:
    """Standard output, which is a pipe, and what a terminal got as standard error."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment(TERM="xterm-256color", **{"COLUMNS": "100", **variables}),
        stdout=subprocess.PIPE, stderr=theirs, text=True,
    ) as process:  # fmt: skip
        os.close(theirs)
        got = b""
        while chunk := _read(ours):
            got += chunk
        os.close(ours)
        assert process.stdout is not None
        out = process.stdout.read()
    assert process.returncode == 0, got
    return out, got.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says that the other side was closed
        return b""


def screen(text: str) -> list[str]:
    """The lines that are left to see: what was written over an erased line is all there is of it."""
    lines = [line.rpartition("\x1b[2K")[2] for line in text.replace("\r\n", "\n").split("\n")]
    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).strip("\r") for line in lines]


def test_a_terminal_shows_rate_and_time_left_on_one_line() -> None:
    out, got = on_a_terminal(WORK.format(lines=30, pause=0.12))
    assert out == "the result\n"
    assert re.search(r"copying: [1-7] of 8 files \(\d+%\), [\d.]+ files/s, \d s left", got)
    left = [line for line in screen(got) if line]
    assert left[:2] == ["half of it", "warning: the disk is slow"]
    assert len(left) == 3
    assert "copying: 8 of 8 files (100%), " in left[2]
    assert COLOUR.search(got)
    assert got.rstrip().endswith("\x1b[?25h")  # the cursor is shown again


def test_a_narrow_terminal_keeps_the_time_left_and_lets_the_bar_go() -> None:
    _, got = on_a_terminal(WORK.format(lines=30, pause=0.12), COLUMNS="56")
    assert re.search(r"copying: [1-7] of 8 files \(\d+%\), [\d.]+ files/s, \d s left", got)
    assert "…" not in got
    assert "━" not in got


def test_no_color_leaves_colours_out() -> None:
    _, got = on_a_terminal(WORK.format(lines=30, pause=0.12), NO_COLOR="1")
    assert "copying: 8 of 8 files" in got
    assert not [found for found in COLOUR.findall(got) if re.search(r"[349]\d", found)]


def test_what_other_processes_print_stands_above_the_line() -> None:
    code = """
import time
from mmbert import logs, progress
from mmbert.workers import Workers
if __name__ == "__main__":
    logs.set_up(results=False)
    with logs.results_apart(), Workers(1, "a test") as workers, progress.shown("copying", 1, "files"):
        workers.each(print, ["from a worker"])
        time.sleep(0.3)
"""
    out, got = on_a_terminal(code)
    assert out == ""
    assert "from a worker" in screen(got)
    assert got.endswith("\x1b[?25h")  # nothing is erased afterwards: the shell's prompt may stand there


def test_piped_it_is_whole_lines() -> None:
    out, errors = piped()
    assert out == "the result\n"
    assert "\r" not in errors
    assert "\x1b" not in errors
    lines = errors.splitlines()
    assert re.fullmatch(r"copying: 1 of 8 files \(12%\), [\d.]+ files/s, \d s left", lines[0])
    assert re.fullmatch(r"copying: 8 of 8 files \(100%\), [\d.]+ files/s, took \d s", lines[-1])
    assert {"half of it", "warning: the disk is slow"} < set(lines)
    assert len(lines) == 10


def test_a_line_comes_at_most_every_so_often() -> None:
    assert piped(lines=30)[1].splitlines() == ["half of it", "warning: the disk is slow"]
    lines = [line for line in piped(lines=0.1)[1].splitlines() if line.startswith("copying: ")]
    assert 2 <= len(lines) <= 4
    assert lines[-1].startswith("copying: 8 of 8 files")


def test_as_json_each_is_a_record() -> None:
    out, errors = piped(MMBERT_LOG_FORMAT="json")
    assert out == "the result\n"
    told = [json.loads(line) for line in errors.splitlines()]
    assert told[0]["message"].startswith("copying: 1 of 8 files")
    assert ("warning", "the disk is slow") in [(one["level"], one["message"]) for one in told]


def test_only_the_first_rank_shows_it() -> None:
    assert "copying" not in piped(RANK="1", LOCAL_RANK="1")[1]


@pytest.mark.parametrize("form", ["text", "json"])
def test_quiet_leaves_warnings_and_the_result(form: str) -> None:
    out, errors = piped(MMBERT_QUIET="1", MMBERT_LOG_FORMAT=form)
    assert out == "the result\n"
    (line,) = errors.splitlines()
    assert line == "warning: the disk is slow" or json.loads(line)["message"] == "the disk is slow"


def test_quiet_holds_for_workers_and_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setenv("MMBERT_QUIET", "1")
    with Workers(1, "a test") as workers:
        workers.each(print, ["at work", "warning: slow"])
    assert capfd.readouterr().out == "warning: slow\n"
    assert on_a_terminal(WORK.format(lines=0, pause=0), MMBERT_QUIET="1")[1] == "warning: the disk is slow\r\n"


def test_numbers_are_for_people() -> None:
    assert [progress.duration(s) for s in (0.4, 59.7, 200, 3720, 97_200)] == [
        "0 s", "1 min 00 s", "3 min 20 s", "1 h 02 min", "1 d 03 h",
    ]  # fmt: skip
    assert [progress.rate(r, "steps") for r in (1234.5, 3.14, 0.2, 0.001)] == [
        "1,234 steps/s", "3.1 steps/s", "12.0 steps/min", "3.6 steps/h",
    ]  # fmt: skip
    assert [progress.amount(n, progress.BYTES) for n in (999, 1.25e6, 3e9, 5e15)] == [
        "999 B", "1.2 MB", "3.0 GB", "5,000.0 TB",
    ]  # fmt: skip


def test_the_steps_of_a_workflow_are_counted_before() -> None:
    def counted(name: str, *overrides: str) -> int | None:
        return count_steps(name, load_recipe("tiny", overrides), list(overrides))

    recipe = load_recipe("tiny", ["curation.groups=3"])
    variants, suites = len(recipe.phases.decay.variants), len(recipe.evaluation.measured())
    assert counted("pretrain", "curation.groups=3") == 13 + 2 * 3 + 3 * variants + suites
    assert counted("add_languages") is not None
    assert counted("reevaluate") is None


def test_a_workflow_names_the_option_that_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given in ((), ("--model", "")):
        assert called("workflow", "add_languages", "--root", str(tmp_path / "root"), *given) == 2
        assert "the workflow 'add_languages' needs --model" in capsys.readouterr().err
    assert not (tmp_path / "root").exists()


def called(*words: str) -> int:
    return _exit_code(functools.partial(cli, list(words), standalone_mode=False))


@pytest.fixture
def one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workflow `pretrain` is its first step, done by a program that says something; the root."""
    program = tmp_path / "mmbert"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nfrom mmbert import logs\nlogs.set_up(results=False)\n"
        "print('at work', file=sys.stderr)\nprint('warning: two\\nlines', file=sys.stderr)\n"
        "from components.cli import main\nmain()\n"
    )
    program.chmod(0o755)

    def first(runner: workflows.Runner, preset: str, overrides: list[str]) -> list[Any]:
        return [runner.run("recipe", preset=preset, overrides=overrides)]

    monkeypatch.setitem(workflows.WORKFLOWS, "pretrain", first)
    monkeypatch.setenv("MMBERT_COMMAND", str(program))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("MMBERT_LAUNCHER", "MLFLOW_TRACKING_URI", "MMBERT_QUIET", "MMBERT_LOG_FORMAT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "root"


def test_a_workflow_s_output_is_its_result(one_step: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    assert called("workflow", "pretrain", "--root", str(one_step), "--json") == 0
    out, errors = capfd.readouterr()
    found = json.loads(out)
    assert (found["workflow"], found["root"]) == ("pretrain", str(one_step))
    assert [(step["task"], step["reused"]) for step in found["steps"]] == [("recipe", False)]
    assert found["steps"][0]["outputs"]["suites"] == ["demo"]
    assert errors.startswith("at work\nwarning: two\nlines\n")
    assert "workflow pretrain: 1 of 1 steps (100%), " in errors


def test_a_quiet_workflow_says_warnings_and_results(
    one_step: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    monkeypatch.setattr(sys, "stderr", sys.stderr)  # is put back
    monkeypatch.setenv("MMBERT_QUIET", "0")
    assert called("--quiet", "workflow", "pretrain", "--root", str(one_step)) == 0
    out, errors = capfd.readouterr()
    assert re.fullmatch(rf"made +recipe +recipe +{one_step}/recipe/\w+\n", out)
    assert errors == "warning: two\nlines\n"
    assert called("-q", "workflow", "pretrain", "--root", str(one_step), "--set", "nonsense=1") == 2
    out, errors = capfd.readouterr()
    assert (out, errors.startswith("error: ")) == ("", True)
    assert called("-q", "workflow", "--nosuch") == 2
    assert "No such option" in capfd.readouterr().err


def card(value: float) -> Scorecard:
    score = Score("demo", "intents", "accuracy", value, value - 0.1, value + 0.1, 20)
    by_language = Score("demo", "intents", "accuracy", value, value - 0.1, value + 0.1, 20, language="deu_Latn")
    return Scorecard(f"model-{value}", "", "encoder", "demo", (score, by_language))


def printed(capfd: Any, *words: str) -> Any:
    assert called(*words) == 0
    return json.loads(capfd.readouterr().out)


def test_json_of_commands_that_print_for_people(tmp_path: Path, capfd: Any) -> None:
    assert printed(capfd, "recipe", "show", "tiny", "--json")["name"] == load_recipe("tiny").name
    assert printed(capfd, "recipe", "validate", "tiny", "--json")["tokens"] > 0
    files = [tmp_path / f"{value}.json" for value in (0.4, 0.6)]
    for file, value in zip(files, (0.4, 0.6), strict=True):
        file.write_text(json.dumps(card(value).to_json()), "utf-8")
    page = tmp_path / "page.html"
    found = printed(capfd, "compare", *map(str, files), "--json", "--out", str(page))
    assert [one["name"] for one in found["scores"]] == ["demo/intents/accuracy", "demo/intents/accuracy/deu_Latn"]
    assert found["scores"][0]["change"] == pytest.approx(0.2)
    assert page.is_file()
    counts, out = tmp_path / "counts.csv", tmp_path / "mixture.json"
    counts.write_text("language,tokens\ndeu,1M\nfao,100\n", "utf-8")
    words = ("--counts", str(counts), "--temperature", "0.5", "--tokens", "1M", "--out", str(out), "--json")
    assert printed(capfd, "mixture", *words) == json.loads(out.read_text("utf-8"))


def test_json_of_the_results(tmp_path: Path, capfd: Any) -> None:
    for value in (0.4, 0.6):
        store.record(str(tmp_path), card(value))
    found = printed(capfd, "results", "--root", str(tmp_path), "--json")
    assert [(c["model"], len(c["scores"])) for c in found] == [("model-0.4", 1), ("model-0.6", 1)]
    assert len(printed(capfd, "results", "--root", str(tmp_path), "--json", "--languages")[0]["scores"]) == 2
