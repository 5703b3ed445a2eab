"""Writes an image's bill of materials (CycloneDX, JSON): Python, its packages, the init process, npm's and Debian's.

Run while the image is built, by the building tools' Python: `sbom.py NAME ENVIRONMENT OUT`. The same packages give the
same file: it holds no time and no random number.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from email.parser import HeaderParser
from importlib.metadata import Distribution, distributions
from importlib.metadata import version as version_of
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

_TEXTS = Path("/opt/mmbert/node_modules")
_DPKG_STATUS = Path("/var/lib/dpkg/status")


def main(name: str, environment: Path, out: Path) -> None:
    bom = Bom(components=[*_python(environment), *_init(), *_npm_packages(), *_debian_packages()])
    bom.metadata.component = Component(name=name, type=ComponentType.CONTAINER, bom_ref=name)
    bom.register_dependency(bom.metadata.component, list(bom.components))
    # Both are made anew for each object; a fixed one keeps the file the same for the same packages.
    bom.metadata.timestamp = None  # type: ignore[assignment]
    bom.serial_number = None  # type: ignore[assignment]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(JsonV1Dot6(bom).output_as_string(indent=1), "utf-8")


def _python(environment: Path) -> Iterator[Component]:
    version = ".".join(str(part) for part in sys.version_info[:3])  # both environments are of the base's Python
    yield _component("cpython", version, "generic", "PSF-2.0")
    folders = [str(folder) for folder in environment.glob("lib/python*/site-packages")]
    for found in sorted(distributions(path=folders), key=lambda d: d.name.lower()):
        yield _component(found.name, found.version, "pypi", _licence(found))


def _licence(found: Distribution) -> str:
    """What the package says of itself, short: an expression, its old field if that is one line, or its classifiers."""
    said = found.metadata.get("License-Expression") or found.metadata.get("License") or ""
    if said and "\n" not in said:
        return said
    named = [c.rsplit(" :: ", 1)[1] for c in found.metadata.get_all("Classifier") or [] if c.startswith("License ::")]
    return " AND ".join(sorted(named))


def _init() -> Iterator[Component]:
    yield _component("dumb-init", version_of("dumb-init"), "pypi", "MIT")


def _npm_packages() -> Iterator[Component]:
    for path in sorted(_TEXTS.glob("*/package.json")):
        described = json.loads(path.read_text("utf-8"))
        yield _component(described["name"], described["version"], "npm", str(described.get("license", "")))


def _debian_packages() -> Iterator[Component]:
    if not _DPKG_STATUS.exists():
        return
    for block in _DPKG_STATUS.read_text("utf-8").split("\n\n"):
        fields = HeaderParser().parsestr(block)
        if "installed" in (fields.get("Status") or "").split():
            yield _component(fields["Package"], fields["Version"], "deb", "")


def _component(name: str, version: str, kind: str, licence: str) -> Component:
    url = PackageURL(type=kind, namespace="debian" if kind == "deb" else None, name=name, version=version)
    licences = [LicenseFactory().make_from_string(licence)] if licence else []
    return Component(name=name, version=version, purl=url, bom_ref=str(url), licenses=licences)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
