"""`make audit`: licences and known vulnerabilities of what is installed in the three environments.

    python scripts/audit.py                         licences, and vulnerabilities from OSV over the network
    python scripts/audit.py --advisories FILE       ... from advisories in OSV's format: a JSON file, a folder or a zip
    python scripts/audit.py --licences-only

Exit codes: 0 nothing found, 2 something found, 3 the advisories could not be had. What is allowed stands in
scripts/audit.toml.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
import json
import os
import sys
import tomllib
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = (".venv", ".venv-orchestrator", ".venv-mlflow")
_API = "https://api.osv.dev/v1"
_BATCH = 500
_SECONDS = 30


class OfflineError(Exception):
    """The advisories could not be had."""


@dataclass
class Package:
    name: str
    version: str
    licence: str
    """As the package states it: an SPDX expression, its classifiers, or the old free text."""
    environments: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({', '.join(self.environments)})"


def installed(folders: Iterable[Path]) -> list[Package]:
    """The packages of some environments, each version once."""
    found: dict[tuple[str, str], Package] = {}
    for folder in folders:
        places = [str(place) for place in folder.glob("lib/python3*/site-packages")]
        if not places:
            raise SystemExit(f"error: {folder}: no environment here; run 'make setup' first")
        for one in importlib.metadata.distributions(path=places):
            name = canonicalize_name(one.metadata["Name"])
            package = found.setdefault((name, one.version), Package(name, one.version, licence(one)))
            if folder.name not in package.environments:
                package.environments.append(folder.name)
    return [found[key] for key in sorted(found)]


def licence(one: importlib.metadata.Distribution) -> str:
    """What a package says of its licence; empty where it says nothing."""
    stated = one.metadata
    if expression := stated.get("License-Expression"):
        return expression
    classifiers = [
        text.rpartition(" :: ")[2] for text in stated.get_all("Classifier", []) if text.startswith("License")
    ]
    if classifiers := [text for text in classifiers if text != "OSI Approved"]:
        # Several are a choice where the text says so, which is seldom: all of them have to be allowed.
        return " AND ".join(classifiers)
    return (stated.get("License") or "").strip().partition("\n")[0]


def licence_problems(packages: Iterable[Package], rules: Mapping[str, Any]) -> list[str]:
    """A line for each package whose licence is unknown or not allowed."""
    allowed = {text.lower() for text in rules["allowed"]}
    exceptions: dict[str, str] = dict(rules["exceptions"])
    problems = []
    used = set()
    for package in packages:
        if is_allowed(package.licence, allowed):
            continue
        if rule := next((rule for rule in exceptions if fnmatch.fnmatch(package.name, rule)), None):
            used.add(rule)
            continue
        stated = f"'{package.licence}' is not allowed" if package.licence else "it states no licence"
        problems.append(f"{package}: {stated}; add it to scripts/audit.toml with the reason, or use something else")
    for name in sorted(exceptions.keys() - used):
        print(f"note: no exception is needed for {name} (scripts/audit.toml)")
    return problems


def is_allowed(stated: str, allowed: set[str]) -> bool:
    """Whether a licence may be used: of `A OR B` one has to be allowed, of `A AND B` both."""
    text = stated.strip().lower()
    if text in allowed:
        return True
    for word, enough in ((" or ", any), (" and ", all)):
        parts = _split(text, word)
        if len(parts) > 1:
            # AND binds more tightly than OR.
            return enough(is_allowed(part, allowed) for part in parts)
    if text.startswith("(") and text.endswith(")"):
        return is_allowed(text[1:-1], allowed)
    return False


def _split(text: str, word: str) -> list[str]:
    """The parts between a word that stands outside of parentheses."""
    parts, depth, begin = [], 0, 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and text.startswith(word, place):
            parts.append(text[begin:place])
            begin = place + len(word)
    return [*parts, text[begin:]]


def read_advisories(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file (one, or a list), or of all `.json` files of a folder or a zip."""
    if path.is_dir():
        for file in sorted(path.rglob("*.json")):
            yield from _records(file.read_bytes(), file)
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".json"):
                    yield from _records(archive.read(name), Path(path, name))
    else:
        yield from _records(path.read_bytes(), path)


def _records(data: bytes, where: Path) -> Iterator[dict[str, Any]]:
    found = json.loads(data)
    for record in found if isinstance(found, list) else [found]:
        if not isinstance(record, dict) or "id" not in record:
            raise ValueError(f"{where}: no advisory in OSV's format (it has no 'id')")
        yield record


def matches(
    packages: Iterable[Package], records: Iterable[Mapping[str, Any]]
) -> list[tuple[Package, Mapping[str, Any]]]:
    """The installed packages that advisories are about; withdrawn ones are about none."""
    by_name: dict[str, list[Package]] = defaultdict(list)
    for package in packages:
        by_name[package.name].append(package)
    found = []
    for record in records:
        if record.get("withdrawn"):
            continue
        touched = {
            (package.name, package.version): package
            for affected in record.get("affected", ())
            if affected.get("package", {}).get("ecosystem", "").lower() == "pypi"
            for package in by_name.get(canonicalize_name(affected["package"]["name"]), ())
            if is_affected(package.version, affected)
        }
        found += [(package, record) for package in touched.values()]
    return found


def is_affected(version: str, affected: Mapping[str, Any]) -> bool:
    """By OSV's rules: a listed version, or one between `introduced` and `fixed` (or `last_affected`) of a range."""
    if version in affected.get("versions", ()):
        return True
    ranges = [each for each in affected.get("ranges", ()) if each.get("type") == "ECOSYSTEM"]
    return any(_in_range(Version(version), each["events"]) for each in ranges)


def _in_range(version: Version, events: Iterable[Mapping[str, str]]) -> bool:
    inside = False
    for event in sorted(events, key=_order):
        (kind, text), *_ = event.items()
        if kind == "introduced" and (text == "0" or version >= _version(text)):
            inside = True
        if kind in ("fixed", "limit") and version >= _version(text):
            inside = False
        if kind == "last_affected" and version > _version(text):
            inside = False
    return inside


def _order(event: Mapping[str, str]) -> tuple[Version, bool]:
    (kind, text), *_ = event.items()
    return _version(text), kind != "introduced"


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        # Of before PEP 440; such a bound is below all that is installed today.
        return Version("0")


def ask_osv(packages: list[Package], url: str = _API) -> list[dict[str, Any]]:
    """The advisories about these packages by OSV's API. Raises OfflineError where it cannot be asked."""
    import requests

    try:
        ids: set[str] = set()
        for begin in range(0, len(packages), _BATCH):
            part = packages[begin : begin + _BATCH]
            queries = [{"package": {"name": p.name, "ecosystem": "PyPI"}, "version": p.version} for p in part]
            answer = requests.post(f"{url}/querybatch", json={"queries": queries}, timeout=_SECONDS)
            answer.raise_for_status()
            ids |= {found["id"] for result in answer.json()["results"] for found in result.get("vulns", ())}
        records = []
        for name in sorted(ids):
            answer = requests.get(f"{url}/vulns/{name}", timeout=_SECONDS)
            answer.raise_for_status()
            records.append(answer.json())
        return records
    except (requests.RequestException, ValueError, KeyError) as error:
        raise OfflineError(f"{url} could not be asked ({type(error).__name__})") from error


def vulnerability_lines(
    found: Iterable[tuple[Package, Mapping[str, Any]]], rules: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """(those that count, those that scripts/audit.toml accepts with a reason)."""
    counted, accepted = [], []
    for package, record in found:
        names = [record["id"], *record.get("aliases", ())]
        line = f"{package}: {', '.join(names)}: {record.get('summary') or record.get('details', '')[:100]}"
        reason = next((rules["accepted"][name] for name in names if name in rules["accepted"]), None)
        if reason is None:
            counted.append(line + _fixed_in(package, record))
        else:
            accepted.append(f"{line} (accepted: {reason})")
    return sorted(set(counted)), sorted(set(accepted))


def _fixed_in(package: Package, record: Mapping[str, Any]) -> str:
    fixed = {
        event["fixed"]
        for affected in record.get("affected", ())
        if canonicalize_name(affected.get("package", {}).get("name", "")) == package.name
        for each in affected.get("ranges", ())
        if each.get("type") == "ECOSYSTEM"
        for event in each["events"]
        if "fixed" in event
    }
    later = sorted((_version(text), text) for text in fixed if _version(text) > Version(package.version))
    return f"; fixed in {later[0][1]}" if later else "; not fixed yet"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Licences and known vulnerabilities of what is installed.")
    parser.add_argument("--advisories", type=Path, help="a file, folder or zip of advisories in OSV's format")
    parser.add_argument("--licences-only", action="store_true", help="do not look for vulnerabilities")
    parser.add_argument("--rules", type=Path, default=ROOT / "scripts" / "audit.toml")
    parser.add_argument("environments", nargs="*", type=Path, default=[ROOT / name for name in ENVIRONMENTS])
    given = parser.parse_args(arguments)
    rules = tomllib.loads(given.rules.read_text("utf-8"))
    packages = installed(given.environments)
    problems = licence_problems(packages, rules)
    print(f"licences: {len(packages)} packages, {len(problems)} problems")
    if given.licences_only:
        return _end(problems)
    try:
        records = list(read_advisories(given.advisories)) if given.advisories else _live(packages)
    except (OfflineError, OSError, ValueError) as error:
        _end(problems)
        print(
            f"error: vulnerabilities were NOT looked for: {error}. Give ADVISORIES=FILE (OSV's export of "
            "PyPI), or run it where the network allows",
            file=sys.stderr,
        )
        return 3
    counted, accepted = vulnerability_lines(matches(packages, records), rules)
    print(f"vulnerabilities: {len(records)} advisories read, {len(counted)} apply, {len(accepted)} accepted")
    print("".join(f"  {line}\n" for line in accepted), end="")
    return _end(problems + counted)


def _live(packages: list[Package]) -> list[dict[str, Any]]:
    return ask_osv(packages, os.environ.get("OSV_API", _API))


def _end(problems: list[str]) -> int:
    for line in problems:
        print(f"  {line}")
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
