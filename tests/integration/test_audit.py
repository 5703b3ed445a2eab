"""`make audit` over the true environments, with advisories as OSV writes them."""

from __future__ import annotations

import http.server
import importlib.metadata
import json
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures_stack import ROOT, clean_environment, free_port

SITE = "lib/python3.11/site-packages"
JINJA = importlib.metadata.version("jinja2")


def audit(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "audit.py"), *arguments]
    environment = clean_environment() | {"NO_PROXY": "127.0.0.1"} | variables
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def advisory(*events: dict[str, str], name: str = "Jinja2", **changes: Any) -> dict[str, Any]:
    affected = {
        "package": {"ecosystem": "PyPI", "name": name},
        "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, *events]}],
    }
    known = {"id": "GHSA-aaaa-bbbb-cccc", "aliases": ["CVE-2026-99999"], "summary": "templates escape their sandbox"}
    return {"schema_version": "1.7.0", "modified": "2026-11-01T00:00:00Z", **known, "affected": [affected], **changes}


def environment(tmp_path: Path, **versions: str) -> Path:
    """A small environment with these packages."""
    folder = tmp_path / "environment"
    for name, version in versions.items():
        place = folder / SITE / f"{name}-{version}.dist-info"
        place.mkdir(parents=True)
        licence = "License-Expression: MIT\n" if name == "jinja2" else ""
        (place / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{licence}")
    return folder


def test_licences_of_all_that_is_installed_are_allowed() -> None:
    ended = audit("--licences-only")
    assert ended.returncode == 0, ended.stdout
    assert ", 0 problems" in ended.stdout


def test_a_licence_that_is_not_allowed_or_not_stated_is_a_problem(tmp_path: Path) -> None:
    stated = {
        "strong": "License-Expression: AGPL-3.0-only",
        "silent": "Summary: says nothing",
        "choice": "License-Expression: (GPL-3.0-only OR MIT) AND Apache-2.0",
        "both": "License-Expression: MIT AND GPL-3.0-only OR GPL-2.0-only",
        "excepted": "License-Expression: AGPL-3.0-only",
    }
    folder = environment(tmp_path, **dict.fromkeys(stated, "1.0"))
    for name, line in stated.items():
        with (folder / SITE / f"{name}-1.0.dist-info" / "METADATA").open("a") as metadata:
            metadata.write(f"{line}\n")
    rules = tmp_path / "rules.toml"
    rules.write_text('allowed = ["MIT", "Apache-2.0"]\n[exceptions]\nexcepted = "ours"\nunused = "gone"\n[accepted]\n')
    ended = audit("--licences-only", "--rules", str(rules), str(folder))
    assert ended.returncode == 2
    problems = [line.split()[0] for line in ended.stdout.splitlines() if line.startswith("  ")]
    assert problems == ["both", "silent", "strong"]
    assert "no exception is needed for unused" in ended.stdout


@pytest.mark.parametrize(
    ("record", "applies"),
    [
        (advisory(), True),
        (advisory({"fixed": "9999.1"}), True),
        (advisory({"fixed": JINJA}), False),
        (advisory({"fixed": "2.4"}), False),
        (advisory({"last_affected": JINJA}), True),
        (advisory({"last_affected": "2.4"}), False),
        (advisory({"fixed": "2.4"}, {"introduced": "3.0"}, {"fixed": "9999.1"}), True),
        (advisory({"fixed": "9999.1"}, withdrawn="2026-11-02T00:00:00Z"), False),
        (advisory({"fixed": "2.4"}, affected=[{"package": {"ecosystem": "npm", "name": "jinja2"}}]), False),
        (advisory(affected=[{"package": {"ecosystem": "PyPI", "name": "jinja2"}, "versions": [JINJA]}]), True),
        (advisory(name="no-such-package"), False),
    ],
)
def test_advisories_apply_by_their_ranges(tmp_path: Path, record: dict[str, Any], applies: bool) -> None:
    file = tmp_path / "advisory.json"
    file.write_text(json.dumps(record))
    ended = audit("--advisories", str(file), str(environment(tmp_path, jinja2=JINJA)))
    found = [line for line in ended.stdout.splitlines() if line.startswith("  jinja2")]
    assert ended.returncode == (2 if applies else 0), ended.stdout + ended.stderr
    assert len(found) == applies
    assert not applies or ("GHSA-aaaa-bbbb-cccc, CVE-2026-99999: templates escape" in found[0] and JINJA in found[0])


def test_a_zip_and_a_folder_are_read_and_accepted_advisories_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "advisories"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(advisory({"fixed": "9999.1"})))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(folder / "a.json", "PYSEC-1.json")
    for place in (folder, tmp_path / "all.zip"):
        ended = audit("--advisories", str(place), str(ROOT / ".venv"))
        assert ended.returncode == 2
        assert "fixed in 9999.1" in ended.stdout
    rules = tmp_path / "rules.toml"
    rules.write_text((ROOT / "scripts" / "audit.toml").read_text() + '\nCVE-2026-99999 = "no template is a user\'s"\n')
    ended = audit("--rules", str(rules), "--advisories", str(folder), str(ROOT / ".venv"))
    assert "0 apply, 1 accepted" in ended.stdout
    assert "(accepted: no template is a user's)" in ended.stdout


def test_without_advisories_it_does_not_say_that_all_is_well(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    few = str(environment(tmp_path, jinja2=JINJA))
    for ended in (
        audit(few, OSV_API=f"http://127.0.0.1:{free_port()}"),
        audit(few, "--advisories", str(tmp_path / "missing.json")),
        audit(few, "--advisories", str(broken)),
    ):
        assert ended.returncode == 3
        assert "vulnerabilities were NOT looked for" in ended.stderr
        assert "apply" not in ended.stdout


def test_over_the_network_osv_is_asked_for_each_version() -> None:
    asked: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"])
            hit = {"package": {"name": "jinja2", "ecosystem": "PyPI"}, "version": JINJA}
            self.answer({"results": [{"vulns": [{"id": "GHSA-a"}]} if query == hit else {} for query in asked]})

        def do_GET(self) -> None:
            self.answer(advisory({"fixed": "9999.1"}, id=self.path.rpartition("/")[2]))

        def answer(self, value: Any) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def log_message(self, *_: Any) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        ended = audit(str(ROOT / ".venv"), OSV_API=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()
    assert ended.returncode == 2
    assert "GHSA-a" in ended.stdout
    assert len(asked) > 150
