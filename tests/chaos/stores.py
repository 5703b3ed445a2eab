"""What the trials on S3 share: a real server of their own with a proxy before it, and a small run's artifacts in it."""

from __future__ import annotations

import functools
import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from mmbert import storage
from tests.chaos.proxy import Proxy, proxied
from tests.fixtures_stack import RCLONE, S3, Server, answers, clean_environment, free_port
from tests.small_run import SmallRun, make_small_run

BUCKET = "chaos"


@functools.cache
def small_run(folder: Path) -> SmallRun:
    """Made once for all faults of a matrix, whose folder this is."""
    return make_small_run(folder / "small-run")


@dataclass(frozen=True)
class Store:
    """`run` is the small run with its artifacts in S3; `environment` leads clients through the proxy."""

    s3: S3
    proxy: Proxy
    run: SmallRun

    @property
    def environment(self) -> dict[str, str]:
        return replace(self.s3, endpoint=self.proxy.endpoint).environment

    def root(self, name: str) -> str:
        return f"s3://{BUCKET}/{name}"


def start_store(folder: Path, local: SmallRun, stack: ExitStack) -> Store:
    """Start both; what they need is gone with `stack`."""
    buckets = folder / "buckets"
    # Before the server starts: it remembers which folders there are.
    shutil.copytree(local.root, buckets / BUCKET / "inputs")
    port, key, secret = free_port(), "key", "secret"
    endpoint = f"http://127.0.0.1:{port}"
    command = [str(RCLONE), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{key},{secret}", str(buckets)]
    environment = clean_environment() | {"RCLONE_CONFIG": str(folder / "rclone.conf")}
    server = Server(command, environment, folder / "s3.log", lambda: answers(endpoint))
    stack.callback(server.kill)
    server.start()
    proxy = stack.enter_context(proxied(endpoint))
    places = {name: value for name, value in vars(local).items() if isinstance(value, str)}
    moved = {name: value.replace(local.root, f"s3://{BUCKET}/inputs") for name, value in places.items()}
    return Store(S3(endpoint, key, secret, buckets, server), proxy, SmallRun(**moved))


def in_this_process(environment: dict[str, str], stack: ExitStack) -> None:
    """Have this process's clients use a store, until `stack` ends. They wait less between two tries."""
    from botocore.retries.standard import ExponentialBackoff

    before = {name: os.environ.get(name) for name in environment}
    delay = ExponentialBackoff.delay_amount

    def back() -> None:
        ExponentialBackoff.delay_amount = delay
        storage.s3_client.cache_clear()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    stack.callback(back)
    os.environ.update(environment)
    ExponentialBackoff.delay_amount = lambda self, context: 0.05
    storage.s3_client.cache_clear()
