"""Metrics in Prometheus' text form: what a component counts, and the page that shows it.

Off unless MMBERT_METRICS_PORT names a port. Then the first process of a component on a machine serves `/metrics` there.
It and the processes that it starts (ranks, loader and tokenization processes) count into files of one folder, and the
page adds these up (prometheus_client's multiprocess mode). A rank that another launcher has started serves a page of
its own, at the port plus its LOCAL_RANK. Ray's workers are not counted.

Nothing is imported and nothing is counted where it is off.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mmbert.errors import UserError
from mmbert.places import scratch_folder

PORT = "MMBERT_METRICS_PORT"
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client reads it as it is imported."""
_STEPS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
_REQUESTS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_SCRAPE_SECONDS = 90.0
"""Prometheus looks at least once a minute by default."""


@dataclass(frozen=True)
class Metric:
    kind: Literal["counter", "gauge", "histogram"]
    name: str
    """In what is scraped; histograms have _bucket, _sum and _count behind it."""
    about: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


COMPONENT = Metric(
    "gauge", "mmbert_component_info", "What runs here; 1.",
    ("component", "fingerprint", "task", "workflow_run", "version"),
)  # fmt: skip
STARTED = Metric("gauge", "mmbert_component_start_timestamp_seconds", "When the component started (Unix time).")

TRAINING = Metric("gauge", "mmbert_training_active", "1 while batches are trained, 0 before and after.")
STEP = Metric("gauge", "mmbert_training_step", "Batches of the phase that are done.")
STEP_TIME = Metric("gauge", "mmbert_training_last_step_timestamp_seconds", "When the last batch ended (Unix time).")
STEP_SECONDS = Metric(
    "histogram", "mmbert_training_step_seconds", "From the end of a batch to the end of the next.", (), _STEPS
)
TOKENS = Metric("counter", "mmbert_training_tokens_total", "Real tokens trained since this process started.")
LOSS = Metric("gauge", "mmbert_training_loss", "Mean -ln p of the last batch's masked tokens (nats).")
TOKENS_PER_SECOND = Metric(
    "gauge", "mmbert_training_tokens_per_second", "Real tokens a second, of the history's last point."
)
LOADER_WAIT = Metric(
    "counter", "mmbert_training_loader_wait_seconds_total", "Time in which a rank waited for batches.", ("rank",)
)
CHECKPOINT_SAVED = Metric(
    "gauge", "mmbert_training_checkpoint_last_saved_timestamp_seconds",
    "When a resume checkpoint was last complete in the store (Unix time).",
)  # fmt: skip
CHECKPOINT_TOKENS = Metric(
    "gauge", "mmbert_training_checkpoint_interval_tokens", "Tokens between two resume checkpoints."
)

STORE_REQUESTS = Metric(
    "counter", "mmbert_store_requests_total", "Calls to the artifact store; outcome is ok, missing, refused or error.",
    ("operation", "outcome"),
)  # fmt: skip
STORE_SECONDS = Metric(
    "histogram", "mmbert_store_request_seconds", "Duration of calls to the artifact store, retries included.",
    ("operation",), _REQUESTS,
)  # fmt: skip
MLFLOW_BUFFERED = Metric("gauge", "mmbert_mlflow_buffered_entries", "Entries that MLflow has not got yet.")

DOCUMENTS = Metric(
    "counter", "mmbert_documents_total", "Documents that a stage is done with; outcome is kept or dropped.",
    ("stage", "outcome"),
)  # fmt: skip
BYTES = Metric("counter", "mmbert_written_bytes_total", "Bytes that a stage wrote to the store.", ("stage",))
REFUSED = Metric("gauge", "mmbert_promotion_refused", "1 where the release gate refused the model.", ("model",))

ALL = (
    COMPONENT, STARTED, TRAINING, STEP, STEP_TIME, STEP_SECONDS, TOKENS, LOSS, TOKENS_PER_SECOND, LOADER_WAIT,
    CHECKPOINT_SAVED, CHECKPOINT_TOKENS, STORE_REQUESTS, STORE_SECONDS, MLFLOW_BUFFERED, DOCUMENTS, BYTES, REFUSED,
)  # fmt: skip

# Held while anything is counted, and while this process forks: the library's own lock would stay locked in a child that
# was forked while another thread counts.
_lock = threading.Lock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def active() -> bool:
    """Whether this process counts."""
    return _FOLDER in os.environ and PORT in os.environ


def set_to(metric: Metric, value: float, *labels: str) -> None:
    if active():
        with _lock:
            _child(metric, labels).set(value)


def add(metric: Metric, amount: float, *labels: str) -> None:
    if active():
        with _lock:
            _child(metric, labels).inc(amount)


def observe(metric: Metric, value: float, *labels: str) -> None:
    if active():
        with _lock:
            _child(metric, labels).observe(value)


_serving, _looked = threading.Event(), threading.Event()


class _Looks:
    """A collector without metrics: it sees that somebody asks for the page."""

    def collect(self) -> Sequence[Any]:
        _looked.set()
        return ()


def wait_until_seen() -> None:
    """Wait until what is counted now has been looked at, where this process serves the page; 90 s at most.

    For what a component that ends at once has to tell.
    """
    if _serving.is_set():
        _looked.clear()
        if _looked.wait(_SCRAPE_SECONDS):
            time.sleep(0.5)  # the answer is still being written


@contextlib.contextmanager
def served() -> Iterator[None]:
    """Serve what this process and those it starts count within, unless who started this does so. Once a process.

    Raises UserError for a port that is none. One that is taken is a warning: the work does not depend on it.
    """
    port = _port()
    if port is None or _FOLDER in os.environ:
        yield
        return
    with scratch_folder() as folder:
        os.environ[_FOLDER] = str(folder)
        server = None
        try:
            server = _serve(port, str(folder))
            yield
        finally:
            del os.environ[_FOLDER]
            if server is not None:
                _serving.clear()
                server.shutdown()
                server.server_close()


def _port() -> int | None:
    text = os.environ.get(PORT, "")
    if not text:
        return None
    if not text.isdigit() or not 0 < int(text) < 65_536:
        raise UserError(f"{PORT}={text}: it must be a port's number, from 1 to 65535 (unset it for no metrics)")
    return int(text) + int(os.environ.get("LOCAL_RANK", "0"))


def _serve(port: int, folder: str) -> Any:
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
    registry.register(_Looks())
    try:
        server, _ = start_http_server(port, registry=registry)
    except OSError as error:
        print(f"warning: no metrics at port {port} ({PORT}): {error.strerror or error}", flush=True)
        return None
    _serving.set()
    return server


def _child(metric: Metric, labels: tuple[str, ...]) -> Any:
    made = _made(metric)
    return made.labels(*labels) if labels else made


@functools.cache
def _made(metric: Metric) -> Any:
    from prometheus_client import Counter, Gauge, Histogram

    given: Any = {"labelnames": metric.labels, "registry": None}
    if metric.kind == "counter":
        return Counter(metric.name, metric.about, **given)
    if metric.kind == "histogram":
        return Histogram(metric.name, metric.about, buckets=metric.buckets, **given)
    return Gauge(metric.name, metric.about, multiprocess_mode="mostrecent", **given)
