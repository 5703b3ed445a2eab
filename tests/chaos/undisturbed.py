"""The whole workflow where nothing disturbs it, in one process: what disturbed DAG runs are held against."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from components.contract import get_component
from components.local import LocalRunner
from components.runtime import run_component
from components.steps import Step
from components.workflows import pretrain


class _Here(LocalRunner):
    """Each component in this process: the ML libraries are imported once."""

    def run(self, component: str, *, task: str = "", **arguments: Any) -> str:
        found = run_component(get_component(component), arguments, self.root, task)
        step = Step(found.uri, task or component, found.reused, found.outputs)
        self.steps.append((task or component, step))
        self._outputs[step.uri] = step
        return step.uri


def main(folder: Path, overrides: list[str]) -> None:
    os.environ["MMBERT_CACHE"] = str(folder / "cache")
    pretrain(_Here(str(folder / "root"), ""), "tiny", overrides)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
