"""A component's output as JSON objects: one a message, with what it works on, and without secrets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from components.contract import get_component
from components.launchers import launch
from components.planning import Plan
from mmbert import logs
from mmbert.errors import UserError
from tests.fixtures_stack import clean_environment

SECRET = "a-secret-of-many-letters"
CODE = """
import logging, sys, threading, warnings
from components.cli import _exit_code
from mmbert import logs

logs.set_up()
logs.set_up()
logs.about(component="train", task="train extend", fingerprint="")
logs.about(fingerprint="c0ffee")
print("batch", 1, flush=True)
print("two lines\\nof one message")
print("warning: the loss is nan")
print("a bar 10%\\ra bar 100%")
print("the key is", "a-secret-of-many-letters")
logging.getLogger("library").warning("it is %s", "slow")
warnings.warn("an old way", stacklevel=1)
sys.stderr.write("begun, ")
threading.Thread(target=lambda: print("beside", file=sys.stderr)).start()
sys.stderr.write("ended\\n")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
sys.stdout.write('{"time": "now", "level": "info", "message": "from a component"}\\n')
sys.exit(_exit_code(lambda: {}["a bug"]))
"""


def run(code: str, **variables: str) -> tuple[int, str]:
    environment = {**clean_environment(), "MMBERT_WORKFLOW_RUN": "run 7", "AWS_SECRET_ACCESS_KEY": SECRET, **variables}
    done = subprocess.run(
        [sys.executable, "-u", "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_each_message_is_one_json_object() -> None:
    code, output = run(CODE, MMBERT_LOG_FORMAT="json", RANK="3")
    assert code == 1
    records: list[dict[str, Any]] = [json.loads(line) for line in output.splitlines()]
    told = [(r["level"], r["message"]) for r in records]
    assert told[:5] == [
        ("info", "batch 1"), ("info", "two lines\nof one message"), ("warning", "the loss is nan"),
        ("info", "a bar 100%"), ("info", "the key is ***"),
    ]  # fmt: skip
    assert ("warning", "it is slow") in told
    assert any(level == "warning" and "an old way" in message for level, message in told)
    assert ("info", "begun, ended") in told
    assert ("info", "beside") in told
    traces = [message for level, message in told if level == "error" and message.startswith("Traceback")]
    assert [trace.splitlines()[-1] for trace in traces] == ["ZeroDivisionError: division by zero", "KeyError: 'a bug'"]
    assert told[-1][0] == "error"
    assert told[-1][1].startswith("this is a bug in mmbert")
    assert ("info", "from a component") in told
    known = {"component": "train", "task": "train extend", "fingerprint": "c0ffee", "workflow_run": "run 7", "rank": 3}
    assert all(r.items() >= known.items() for r in records if r["message"] != "from a component")
    assert list(records[0])[:3] == ["time", "level", "message"]


def test_text_is_as_it_was() -> None:
    code, output = run('from mmbert import logs\nlogs.set_up()\nprint("warning: x")', MMBERT_LOG_FORMAT="text")
    assert (code, output) == (0, "warning: x\n")


def command(*arguments: str) -> str:
    return f"import sys\nsys.argv[1:] = {list(arguments)}\nfrom components.cli import main\nmain()"


def test_another_format_is_the_user_s_error() -> None:
    assert run(command("run", "recipe", "--preset", "tiny"), MMBERT_LOG_FORMAT="xml") == (
        2,
        "error: MMBERT_LOG_FORMAT=xml: it must be text or json\n",
    )


def test_a_component_s_errors_are_records_from_the_first_line_on(tmp_path: Path) -> None:
    line = command("run", "recipe", "--root", str(tmp_path), "--preset", "tiny", "--overrides", "nonsense=1")
    code, output = run(line, MMBERT_LOG_FORMAT="json")
    assert code == 2
    (record,) = [json.loads(one) for one in output.splitlines()]
    assert (record["level"], record["component"], record["task"]) == ("error", "recipe", "recipe")
    assert "nonsense" in record["message"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_launchers_tell_people_the_error_in_plain_words(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "mmbert"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nfrom mmbert import logs\nlogs.set_up()\nprint('at work')\n"
        "print('error: the recipe\\'s \"x\" is wrong', file=sys.stderr)\nsys.exit(2)\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("MMBERT_COMMAND", str(program))
    monkeypatch.setenv("MMBERT_LOG_FORMAT", form)
    monkeypatch.delenv("MMBERT_LAUNCHER", raising=False)
    plan = Plan(get_component("select"), {"recipe": "tiny", "model": ""}, {}, {}, "fingerprint", str(tmp_path / "x"))
    with pytest.raises(UserError, match=r"""^component 'select' ended with exit code 2: the recipe's "x" is wrong$"""):
        launch(plan, str(tmp_path), "select")
    shown = capsys.readouterr().out
    assert logs.plain(shown) == "at work\n"


@pytest.mark.parametrize(
    "line", ['{"uri": "s3://b/a"}\n', '{"time": "now"}\n', '{"time": "now", broken\n', "at work\n"]
)
def test_lines_that_are_no_messages_stay(line: str) -> None:
    assert logs.plain(line) == line
