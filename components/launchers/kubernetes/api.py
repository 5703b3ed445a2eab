"""The conversation with a cluster: what is asked of it, again where it is worth it, and its refusals as our errors."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any

import urllib3
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException

from components.launchers.kubernetes.manifests import WAITER, WORK_LABEL, Kind, Object
from mmbert.errors import InfrastructureError, MmbertError, UserError

PATIENCE_SECONDS = 120.0
"""How long a cluster that does not answer, or is too busy, is asked again."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
_TIMEOUT = (10, 60)
"""Seconds to connect, and to read."""
_AGAIN = (429, 500, 502, 503, 504)
_GONE = 410
_DENIED = (401, 403)
BROKEN = (urllib3.exceptions.HTTPError, HTTPException, OSError)
_FORBIDDEN = re.compile(
    r'cannot (?P<verb>\S+) resource "(?P<resource>[^"]*)" in API group "(?P<group>[^"]*)"'
    r'(?: in the namespace "(?P<namespace>[^"]*)")?'
)
_WORKLOADS = ("v1beta2", "v1beta1")
RIGHTS: dict[tuple[str, str], tuple[str, ...]] = {
    ("batch", "jobs"): ("create", "get", "list", "watch", "patch", "delete"),
    ("trainer.kubeflow.org", "trainjobs"): ("create", "get", "list", "watch", "patch", "delete"),
    ("ray.io", "rayjobs"): ("create", "get", "list", "watch", "patch", "delete"),
    ("jobset.x-k8s.io", "jobsets"): ("get",),
    ("", "pods"): ("list", "watch"),
    ("", "pods/log"): ("get",),
    ("", "services"): ("create",),
    ("", "events"): ("list",),
    ("kueue.x-k8s.io", "workloads"): ("list",),
}
"""By API group and resource: the verbs that the launcher needs."""


class AlreadyThereError(Exception):
    """There is an object of that name."""


class ChangedError(Exception):
    """The object is another one than was asked for."""


class OverQuotaError(Exception):
    """The namespace's quota does not allow the object now; says the cluster's words."""


class DeniedError(UserError):
    """Credentials or a permission are missing."""


class Cluster:
    """One namespace of a cluster. Objects are dicts, as the API writes them."""

    def __init__(self, api_client: client.ApiClient, namespace: str, tell: Callable[[str], None]) -> None:
        self.namespace = namespace
        self._tell = tell
        self.address = str(api_client.configuration.host)
        self.is_at_work = False
        """Set once work runs. From then on what may be read is asked for again where it is denied: credentials and
        permissions that it began with are renewed, or given back, and hours of training are not worth less."""
        self._watch_denied_since: float | None = None
        self._core = client.CoreV1Api(api_client)
        self._objects = client.CustomObjectsApi(api_client)

    def create(self, kind: Kind, body: Object) -> Object:
        """Raises AlreadyThereError, and OverQuotaError."""
        make = self._objects.create_namespaced_custom_object
        made: Object = self._json(
            lambda: make(
                kind.group, kind.version, self.namespace, kind.plural, body, field_validation="Strict", **_ASKED
            ),
            f"{kind.kind} {body['metadata']['name']}",
            kind,
        )
        return made

    def create_service(self, body: Object) -> None:
        """Where there is one already, that one is as good."""
        with contextlib.suppress(AlreadyThereError):
            self._json(
                lambda: self._core.create_namespaced_service(self.namespace, body, field_validation="Strict", **_ASKED),
                f"Service {body['metadata']['name']}",
            )

    def get(self, kind: Kind, name: str) -> Object | None:
        ask = self._objects.get_namespaced_custom_object
        with _missing_is_none():
            found: Object = self._json(
                lambda: ask(kind.group, kind.version, self.namespace, kind.plural, name, **_ASKED),
                f"{kind.kind} {name}",
                is_needed=True,
            )
            return found
        return None

    def take(self, kind: Kind, name: str, waiter: str) -> Object | None:
        """Make an object this waiter's, and return it; None where it is gone."""
        body = {"metadata": {"annotations": {WAITER: waiter}}}
        change = self._objects.patch_namespaced_custom_object
        with _missing_is_none():
            taken: Object = self._json(
                lambda: change(kind.group, kind.version, self.namespace, kind.plural, name, body, **_ASKED),
                f"{kind.kind} {name}",
            )
            return taken
        return None

    def delete(self, kind: Kind, name: str, uid: str, version: str | None = None) -> None:
        """Delete an object after all that it owns; nothing happens where it is gone.

        Raises ChangedError where another one has its name now, or with `version` where it has changed since.
        """
        same = {"uid": uid, **({"resourceVersion": version} if version else {})}
        body = {"propagationPolicy": "Foreground", "preconditions": same}
        remove = self._objects.delete_namespaced_custom_object
        with _missing_is_none():
            self._json(
                lambda: remove(kind.group, kind.version, self.namespace, kind.plural, name, body=body, **_ASKED),
                f"{kind.kind} {name}",
            )

    def pods(self, digest: str) -> tuple[list[Object], str]:
        """The pods of a piece of work, and the version of the list for `changed`."""
        listed = self._json(
            lambda: self._core.list_namespaced_pod(self.namespace, label_selector=f"{WORK_LABEL}={digest}", **_ASKED),
            "pods",
            is_needed=True,
        )
        return list(listed["items"]), str(listed["metadata"]["resourceVersion"])

    def workloads(self, uid: str) -> list[Object]:
        """Kueue's Workloads of an object; none where there is no Kueue. Raises DeniedError."""
        listing = self._objects.list_namespaced_custom_object
        for version in _WORKLOADS:
            with _missing_is_none():
                listed = self._json(
                    lambda version=version: listing(  # type: ignore[misc]
                        "kueue.x-k8s.io", version, self.namespace, "workloads",
                        label_selector=f"kueue.x-k8s.io/job-uid={uid}", **_ASKED,
                    ),
                    "workloads",
                )  # fmt: skip
                return list(listed["items"])
        return []

    def events(self, *names: str) -> list[Object]:
        """What the cluster's controllers said of objects of these names. Raises DeniedError."""
        found: list[Object] = []
        for one in names:
            selector = f"involvedObject.name={one}"
            listed = self._json(
                lambda selector=selector: self._core.list_namespaced_event(  # type: ignore[misc]
                    self.namespace, field_selector=selector, **_ASKED
                ),
                "events",
            )
            found += listed["items"]
        return found

    def changed_pods(self, digest: str, version: str, seconds: float) -> list[Object]:
        """Wait until a pod of this work changes, for so many seconds at most: the pods as they were seen then."""
        return self._changed(
            lambda **more: self._core.list_namespaced_pod(
                self.namespace, label_selector=f"{WORK_LABEL}={digest}", **more
            ),
            version,
            seconds,
        )

    def changed(self, kind: Kind, thing: Object, seconds: float) -> None:
        """Wait until an object changes, for so many seconds at most."""
        listing, meta = self._objects.list_namespaced_custom_object, thing["metadata"]
        self._changed(
            lambda **more: listing(
                kind.group, kind.version, self.namespace, kind.plural,
                field_selector=f"metadata.name={meta['name']}", **more,
            ),
            str(meta["resourceVersion"]),
            seconds,
        )  # fmt: skip

    def _changed(self, listing: Callable[..., Any], version: str, seconds: float) -> list[Object]:
        """The objects of the first events of a watch.

        A watch that is cut, or whose version is too old, ends like one without events: who waits lists anew anyway.
        """
        whole = max(1, int(seconds))
        began = time.monotonic()
        seen: list[Object] = []
        try:
            response = listing(
                watch=True, resource_version=version, timeout_seconds=whole, _preload_content=False,
                _request_timeout=(_TIMEOUT[0], whole + 30),
            )  # fmt: skip
            self._watch_denied_since = None
            with contextlib.closing(response):
                for line in _lines(response):
                    event = json.loads(line)
                    if event["type"] not in ("BOOKMARK", "ERROR"):
                        seen.append(event["object"])
                    break
        except ApiException as error:
            if error.status in _DENIED:
                self._watch_is_denied(error)
            elif error.status not in (*_AGAIN, _GONE):
                raise self._refused(error, "watch") from error
        except BROKEN:
            pass
        if not seen and time.monotonic() - began < _FIRST_PAUSE:
            time.sleep(min(seconds, _FIRST_PAUSE))
        return seen

    def _watch_is_denied(self, error: ApiException) -> None:
        now = time.monotonic()
        if self._watch_denied_since is None:
            self._watch_denied_since = now
        if now - self._watch_denied_since > PATIENCE_SECONDS:
            raise self._denied_at_work(error, "watch") from error

    def _denied_at_work(self, error: ApiException, what: str) -> InfrastructureError:
        return InfrastructureError(f"{self._refused(error, what)}; the work goes on, and running this again meets it")

    def log(self, pod: str, container: str, since_seconds: int | None, follow: bool) -> Iterator[bytes]:
        """A pod's log in chunks, each line with its time. Raises ApiException or what a broken connection raises."""
        since = {} if since_seconds is None else {"since_seconds": since_seconds}
        response = self._core.read_namespaced_pod_log(
            pod, self.namespace, container=container, follow=follow, timestamps=True, _preload_content=False,
            _request_timeout=_TIMEOUT, **since,
        )  # fmt: skip
        with contextlib.closing(response):
            yield from response.stream(amt=None, decode_content=False)

    def refused_log(self, error: ApiException) -> MmbertError | None:
        """What to say of a log that may not be read."""
        return self._refused(error, "log") if error.status in _DENIED else None

    def _json(self, call: Callable[[], Any], what: str, kind: Kind | None = None, is_needed: bool = False) -> Any:
        """What a call answers. Raises AlreadyThereError, ChangedError or _MissingError, and our errors."""
        end, pause, told = time.monotonic() + PATIENCE_SECONDS, _FIRST_PAUSE, False
        while True:
            try:
                return json.loads(call().data)
            except ApiException as error:
                status = _status(error)
                self._expected(error, status, kind)
                is_denied = is_needed and self.is_at_work and error.status in _DENIED
                if not is_denied and not _is_passing(error, status):
                    raise self._refused(error, what) from error
                wait = _retry_after(error, pause)
                if is_denied and time.monotonic() + wait > end:
                    raise self._denied_at_work(error, what) from error
                if time.monotonic() + wait > end:
                    raise InfrastructureError(f"{self.address} answers {_said(error)} ({what})") from error
            except (*BROKEN, ValueError) as error:
                wait = pause
                if time.monotonic() + wait > end:
                    raise InfrastructureError(
                        f"{self.address}: no cluster answers there ({error}); check the network, and the kubeconfig "
                        "(KUBECONFIG)"
                    ) from error
                if not told:
                    told = True
                    self._tell(
                        f"{self.address}: no answer ({error}); asked again for {PATIENCE_SECONDS / 60:g} minutes"
                    )
            time.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _expected(self, error: ApiException, status: Mapping[str, Any], kind: Kind | None) -> None:
        """Raise what a caller asks for."""
        if error.status == 403 and kind is not None and "exceeded quota" in str(status.get("message", "")):
            raise OverQuotaError(status["message"])
        if error.status == 409 and status.get("reason") == "AlreadyExists":
            raise AlreadyThereError
        if error.status == 409 and "Precondition failed" in str(status.get("message", "")):
            raise ChangedError
        if error.status == 404:
            missing = (status.get("details") or {}).get("kind") == "namespaces"
            if missing:
                raise UserError(
                    f"the cluster at {self.address} has no namespace {self.namespace}; kubernetes.namespace of the "
                    "profile names it"
                )
            if kind is None:
                raise _MissingError
            raise UserError(
                f"the cluster at {self.address} does not know {kind.kind} ({kind.api_version}); install "
                f"{kind.comes_with or 'Kubernetes 1.31 or newer'}{_INSTEAD.get(kind.kind, '')}"
            )

    def _refused(self, error: ApiException, what: str) -> MmbertError:
        """A refusal for good as our error."""
        message = str(_status(error).get("message") or error.reason)
        if not error.status:
            return InfrastructureError(f"{self.address}: no connection can be made to the cluster ({message})")
        if error.status == 401:
            return DeniedError(
                f"{self.address} does not know who asks (401: {message}); renew the kubeconfig's credentials"
            )
        if error.status == 403 and (found := _FORBIDDEN.search(message)):
            resource = found["resource"] + (f".{found['group']}" if found["group"] else "")
            where = f" in the namespace {found['namespace']}" if found["namespace"] else ""
            return DeniedError(
                f"no permission to {found['verb']} {resource}{where}; give the account this verb in a role "
                f'(API group "{found["group"]}", resource {found["resource"]}): {message}'
            )
        refused = DeniedError if error.status == 403 else UserError
        # Kubernetes' API server says why in a Status, whatever it refuses.
        other = (
            ""
            if _status(error).get("kind") == "Status"
            else (f"; {self.address} is perhaps no Kubernetes API: check `server` of the kubeconfig (KUBECONFIG)")
        )
        return refused(f"the cluster refuses {what}: {message} ({error.status}){other}")


_ASKED: dict[str, Any] = {"_preload_content": False, "_request_timeout": _TIMEOUT}
_INSTEAD = {
    "TrainJob": ", or set kubernetes.training of the profile to job",
    "RayJob": ", or take `ray` out of the profile's class",
}


class _MissingError(Exception):
    """There is no such object."""


@contextlib.contextmanager
def _missing_is_none() -> Iterator[None]:
    with contextlib.suppress(_MissingError):
        yield


def _kubeconfig() -> str:
    return os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")


def _is_there(place: str) -> bool:
    return any(Path(path).exists() for path in place.split(os.pathsep))


def check_kubeconfig() -> None:
    """Raise UserError where there is no kubeconfig (KUBECONFIG, or ~/.kube/config) and this is no pod of a cluster."""
    place = _kubeconfig()
    if not _is_there(place) and "KUBERNETES_SERVICE_HOST" not in os.environ:
        raise UserError(
            f"there is no kubeconfig at {place}, and this is no pod of a cluster; set KUBECONFIG to the cluster's "
            "kubeconfig"
        )


@contextlib.contextmanager
def connected(namespace: str, tell: Callable[[str], None] = print) -> Iterator[Cluster]:
    """The cluster of the kubeconfig (KUBECONFIG, or ~/.kube/config), or the one that this process runs in; `tell`
    hears that it does not answer.

    Raises UserError where there is neither.
    """
    check_kubeconfig()
    settings = client.Configuration()
    settings.retries = False
    place = _kubeconfig()
    try:
        with _logged() as said:
            if _is_there(place):
                config.load_kube_config(place, client_configuration=settings, persist_config=False)
            else:
                config.load_incluster_config(client_configuration=settings)
        if said and not settings.api_key and not settings.cert_file:
            user = config.list_kube_config_contexts(place)[1]["context"]["user"]
            raise UserError(
                f"{place}: the credential plugin of its user {user} failed ({said[0]}); install it and log in with it"
            )
    except (ConfigException, OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        # The client takes for granted that the file is YAML, and a mapping.
        raise UserError(f"{place}: this kubeconfig cannot be used ({error})") from error
    with client.ApiClient(settings) as api_client:
        yield Cluster(api_client, namespace, tell)


@contextlib.contextmanager
def _logged() -> Iterator[list[str]]:
    """What is logged without a logger's name meanwhile, in place of the log: the client says so that a credential
    plugin failed, and goes on without credentials."""
    said: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        said.append(record.getMessage())
        return False

    root, nothing = logging.getLogger(), logging.NullHandler()
    # Where there is no handler, the first message would make one.
    root.addHandler(nothing)
    root.addFilter(keep)
    try:
        yield said
    finally:
        root.removeFilter(keep)
        root.removeHandler(nothing)


def _lines(response: Any) -> Iterator[bytes]:
    begun = b""
    for chunk in response.stream(amt=None, decode_content=False):
        *whole, begun = (begun + chunk).split(b"\n")
        yield from (line for line in whole if line.strip())


def _status(error: ApiException) -> dict[str, Any]:
    """The Status object of a refusal; empty where what answered is no API server."""
    try:
        found = json.loads(error.body or "{}")
    except ValueError:
        return {}
    return dict(found) if isinstance(found, dict) else {}


def _retry_after(error: ApiException, otherwise: float) -> float:
    """Seconds of the header Retry-After, which gives them or an HTTP date (RFC 9110, 10.2.3)."""
    given = str((error.headers or {}).get("Retry-After") or "")
    with contextlib.suppress(ValueError):
        if given.isascii() and given.isdigit():
            return float(given)
        return max(0.0, parsedate_to_datetime(given).timestamp() - time.time())
    return otherwise


def _said(error: ApiException) -> str:
    return f"{error.status} ({_status(error).get('message') or error.reason})"


def _is_passing(error: ApiException, status: Mapping[str, Any]) -> bool:
    """Whether the same may be answered otherwise a little later. A conflict is somebody else's change."""
    return error.status in _AGAIN or (error.status == 409 and status.get("reason") == "Conflict")
