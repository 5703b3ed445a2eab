"""What containers cost: the demo's workflow with either launcher, the start of a component, the images' sizes.

`make bench-containers` builds the images first. Both demos run on stacks of their own with the same recipe, one after
the other; the workflow's time is the DAG run's, from its trigger to its end.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import docker

from components import launchers, planning
from components.contract import get_component
from components.launchers import containers
from components.launchers.docker import image_name
from mmbert import artifacts

PROJECT = Path(__file__).resolve().parents[1]
TARGETS = ("orchestrator", "data", "train", "eval")
STARTS = 5


def demo_seconds(launcher: str, folder: Path, first_port: int) -> float:
    """A whole demo on a fresh stack; seconds of its DAG run."""
    ports = {name: str(first_port + i) for i, name in enumerate(("S3", "MLFLOW", "AIRFLOW"))}
    environment = {
        **os.environ,
        **{f"MMBERT_{name}_PORT": port for name, port in ports.items()},
        "MMBERT_LOCAL_HOME": str(folder / launcher),
        "MMBERT_LAUNCHER": launcher,
    }
    command = [str(PROJECT / ".venv-orchestrator" / "bin" / "python"), "-m", "infra.local"]
    try:
        ended = subprocess.run(
            [*command, "demo"], cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
        )
        if ended.returncode:
            sys.exit(f"the demo with the launcher {launcher} failed:\n{ended.stdout[-3000:]}{ended.stderr[-3000:]}")
    finally:
        subprocess.run([*command, "down"], cwd=PROJECT, env=environment, capture_output=True, check=False)
    (found,) = re.findall(r"^Done in (\d+) s", ended.stdout, re.MULTILINE)
    return float(found)


def start_seconds(folder: Path) -> list[float]:
    """From the launcher's call, which creates and starts the container, until `curate` begins its work, several times.

    Its manifest says how many seconds the work took; what lies between the work and the manifest's time counts too.
    """
    os.environ |= {"MMBERT_LAUNCHER": "docker", "MMBERT_WORKFLOW_RUN": "benchmark"}
    text = folder / "text" / "deu_Latn"
    text.mkdir(parents=True)
    folder.chmod(0o755)
    (text / "a.txt").write_text("Ein Satz, der lang genug ist, um zu bleiben.\n" * 20)
    took = []
    for turn in range(STARTS):
        root = str(folder / f"root-{turn}")
        source = f"sources={{own: {{kind: files, path: {text.parent}, held_out_share: 0.1}}}}"
        recipe = planning.plan(
            get_component("recipe"), {"preset": "tiny", "overrides": [source, "curation.groups=1"]}, root
        )
        made = launchers.launch(recipe, root, "recipe")
        plan = planning.plan(get_component("curate"), {"recipe": made.uri, "group": "0"}, root)
        began = time.time()
        launchers.launch(plan, root, "curate")
        manifest = Path(plan.uri) / artifacts.MANIFEST
        seconds = json.loads(manifest.read_text("utf-8"))["producer"]["seconds"]
        took.append(manifest.stat().st_mtime - seconds - began)
    return took


def parts(client: docker.DockerClient, target: str) -> str:
    """The largest packages of an image."""
    script = "du -sm /opt/venv/lib/python3.11/site-packages/* /opt/mmbert/* | sort -rn | head -n 7"
    container = client.containers.create(image_name(target), ["sh", "-c", script], network_mode="host")
    container.start()
    printed = b"".join(containers.output(container)).decode()
    containers.remove(container)
    return ", ".join(f"{Path(name).name} {size}" for size, name in (line.split("\t") for line in printed.splitlines()))


def main() -> None:
    client = docker.from_env(timeout=300)
    print("image size in MB, and the largest packages in MiB", flush=True)
    sizes = {target: client.images.get(image_name(target)).attrs["Size"] / 1e6 for target in TARGETS}
    for target, size in sizes.items():
        print(f"  {target:13} {size:6.0f}   {parts(client, target)}", flush=True)
    print(f"figure: orchestrator_image_mb {sizes['orchestrator']:.0f} MB (goal <= 1300)", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        took = start_seconds(Path(folder))
        print("curate's work begins after " + ", ".join(f"{seconds:.2f}" for seconds in took) + " s")
        print(f"figure: container_start_seconds {statistics.median(took):.2f} s (goal <= 5)", flush=True)
        demos = {name: demo_seconds(name, Path(folder), port) for name, port in (("process", 19500), ("docker", 19600))}
        print(f"the demo's DAG run: {demos['process']:.0f} s with processes, {demos['docker']:.0f} s with containers")
        print(f"figure: docker_overhead {demos['docker'] / demos['process']:.2f} x (goal <= 1.25)", flush=True)


if __name__ == "__main__":
    main()
