"""The programs that checks start."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from infra.checks.check import ROOT
from mmbert.errors import InfrastructureError

FOLDER = ROOT / ".venv-infra" / "tools"
"""Where scripts/check-infra.sh puts kubectl, helm and promtool."""


def find(name: str) -> str:
    """A program: ours, else one on PATH. Raises InfrastructureError where there is none."""
    own = FOLDER / name
    found = str(own) if own.is_file() else shutil.which(name)
    if found is None:
        raise InfrastructureError(f"{name} is not there; `make check-infra` fetches it")
    return found


def has(name: str) -> bool:
    return (FOLDER / name).is_file() or shutil.which(name) is not None


def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program that may fail; without the caller's cluster, so that none is asked."""
    environment = {**os.environ, "KUBECONFIG": os.devnull}
    line = [find(name), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, env=environment)
