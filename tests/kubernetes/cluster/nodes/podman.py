"""Pods as containers: each is played for real with `podman kube play`, from images that are here.

Where podman falls short of Kubernetes, this makes up for it: variables come with their values (podman knows neither a
cluster's secrets nor most of the Downward API), the names of the cluster's pods are host aliases of loopback, since all
pods share the host's network (S3 and MLflow on loopback are reached, and ranks find each other), volumes that begin
empty are folders that anyone may write (podman's are root's), and resources are left out (not every machine lets
containers have limits; a pod that ran out of memory is played with Cluster.oom).
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

import yaml

from tests.kubernetes.cluster.nodes import CannotStartError, Ended, Play

_EMPTY = {"emptyDir", "ephemeral", "persistentVolumeClaim"}
_LAST_WORDS = 5.0
"""Seconds that are waited for the output after the container's end; what is missing then is asked for again."""


class Podman:
    """Plays pods with podman."""

    def __init__(self, engine: str = "podman") -> None:
        self.engine = engine
        self._folder = Path(tempfile.mkdtemp(prefix="pods-"))
        self._folder.chmod(0o755)
        self._names: set[str] = set()

    def play(self, play: Play) -> Ended:
        name = f"stand-in-{play.pod['metadata']['uid'][:8]}-{play.pod['metadata']['name']}"[:63].rstrip("-")
        folder = self._folder / name
        folder.mkdir()
        manifest = folder / "pod.yaml"
        manifest.write_text(yaml.safe_dump(self._manifest(play, name, folder)), "utf-8")
        self._names.add(name)
        try:
            made = self._podman("kube", "play", "--quiet", "--network", "host", str(manifest))
            if made.returncode:
                raise CannotStartError("CreateContainerError", made.stderr.strip())
            play.started()
            return self._followed(play, f"{name}-{play.pod['spec']['containers'][0]['name']}")
        finally:
            self._remove(name)

    def close(self) -> None:
        for name in list(self._names):
            self._remove(name)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _followed(self, play: Play, container: str) -> Ended:
        """Pass on what the container writes until it ends, and end it when asked to."""
        is_over = threading.Event()
        stopper = threading.Thread(target=self._stop_when_asked, args=(play, container, is_over), daemon=True)
        stopper.start()
        reader = _Reader(play)
        with subprocess.Popen(
            [self.engine, "logs", "--follow", container], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as following:
            thread = threading.Thread(target=reader.read, args=(following.stdout,), daemon=True)
            thread.start()
            code = int(self._podman("wait", container).stdout.split()[-1])
            is_over.set()
            play.stop.asked.set()
            thread.join(_LAST_WORDS)
            following.terminate()
            thread.join()
        reader.read(self._podman("logs", container, merge=True).stdout.splitlines(keepends=True), again=True)
        stopper.join()
        return Ended(code, "Error" if code else "Completed")

    def _stop_when_asked(self, play: Play, container: str, is_over: threading.Event) -> None:
        play.stop.asked.wait()
        if not is_over.is_set():
            self._podman("stop", "--time", str(int(play.stop.grace)), container)

    def _manifest(self, play: Play, name: str, folder: Path) -> dict[str, Any]:
        spec = play.pod["spec"]
        container = spec["containers"][0]
        kept = ("name", "command", "args", "workingDir", "volumeMounts", "securityContext")
        made = {key: container[key] for key in kept if key in container}
        made |= {
            "image": self._image(container["image"]),
            "imagePullPolicy": "Never",
            "env": [{"name": key, "value": value} for key, value in play.environment.items()],
        }
        pod: dict[str, Any] = {
            "restartPolicy": "Never",
            "hostNetwork": True,
            "securityContext": spec.get("securityContext") or {},
            "volumes": [self._volume(volume, folder) for volume in spec.get("volumes") or ()],
            "containers": [made],
        }
        if play.hosts:
            pod["hostAliases"] = [{"ip": "127.0.0.1", "hostnames": play.hosts}]
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod}

    def _image(self, name: str) -> str:
        found = self._podman("image", "inspect", "--format", "{{.Id}}", name)
        if found.returncode:
            why = f'failed to pull and unpack image "{name}": failed to resolve reference "{name}": not found'
            raise CannotStartError("ErrImagePull", why)
        return found.stdout.strip()

    @staticmethod
    def _volume(volume: dict[str, Any], folder: Path) -> dict[str, Any]:
        if not _EMPTY & volume.keys():
            why = f"the stand-in plays no volume of the kind of {volume}"
            raise CannotStartError("CreateContainerConfigError", why)
        place = folder / volume["name"]
        place.mkdir()
        place.chmod(0o777)
        return {"name": volume["name"], "hostPath": {"path": str(place), "type": "Directory"}}

    def _remove(self, name: str) -> None:
        self._podman("pod", "rm", "--force", "--time", "0", name)
        shutil.rmtree(self._folder / name, ignore_errors=True)
        self._names.discard(name)

    def _podman(self, *arguments: str, merge: bool = False) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.engine, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merge else subprocess.PIPE,
            text=True,
            check=False,
        )


class _Reader:
    """Counts the lines that were passed on, so that none is when all are read again."""

    def __init__(self, play: Play) -> None:
        self.play, self.count = play, 0

    def read(self, lines: Any, again: bool = False) -> None:
        for number, line in enumerate(lines):
            if again and number < self.count:
                continue
            self.play.log(line.rstrip("\n"))
            self.count += 1
