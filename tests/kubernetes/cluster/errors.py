"""What the API server answers when it does not do as asked: an object of kind Status.

Kubernetes API Concepts, and API conventions (kubernetes/community, api-conventions.md, "Response Status Kind").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.kubernetes.cluster.resources import Kind


class ApiError(Exception):
    """An answer with this HTTP code, whose body is `status()`."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message
        self.details, self.headers = dict(details or {}), dict(headers or {})

    def status(self) -> dict[str, Any]:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            **({"details": self.details} if self.details else {}),
            "code": self.code,
        }


def _details(kind: Kind, name: str) -> dict[str, Any]:
    return {"name": name, "kind": kind.plural, **({"group": kind.group} if kind.group else {})}


def not_found(kind: Kind, name: str) -> ApiError:
    return ApiError(404, "NotFound", f'{kind.resource} "{name}" not found', _details(kind, name))


def already_exists(kind: Kind, name: str, is_leaving: bool = False) -> ApiError:
    before = "object is being deleted: " if is_leaving else ""
    return ApiError(409, "AlreadyExists", f'{before}{kind.resource} "{name}" already exists', _details(kind, name))


def conflict(kind: Kind, name: str, why: str) -> ApiError:
    message = f'Operation cannot be fulfilled on {kind.resource} "{name}": {why}'
    return ApiError(409, "Conflict", message, _details(kind, name))


def modified(kind: Kind, name: str) -> ApiError:
    why = "the object has been modified; please apply your changes to the latest version and try again"
    return conflict(kind, name, why)


def forbidden(kind: Kind, name: str, why: str) -> ApiError:
    return ApiError(403, "Forbidden", f'{kind.resource} "{name}" is forbidden: {why}', _details(kind, name))


def denied(webhook: str, why: str) -> ApiError:
    """What a validating webhook refuses (Dynamic Admission Control)."""
    return ApiError(403, "Forbidden", f'admission webhook "{webhook}" denied the request: {why}')


def invalid(kind: Kind, name: str, causes: Sequence[tuple[str, str]]) -> ApiError:
    """`causes` are (field, what is wrong)."""
    listed = [{"reason": "FieldValueInvalid", "message": why, "field": field} for field, why in causes]
    told = ", ".join(f"{field}: {why}" for field, why in causes)
    told = f"[{told}]" if len(causes) > 1 else told
    named = f"{kind.kind}.{kind.group}" if kind.group else kind.kind
    details = {"name": name, "group": kind.group, "kind": kind.kind, "causes": listed}
    return ApiError(422, "Invalid", f'{named} "{name}" is invalid: {told}', details)


def undecodable(kind: Kind, why: str) -> ApiError:
    """A field that the kind does not have, or of another type (Kubernetes API Concepts, "Field validation")."""
    message = (
        f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: strict decoding error: {why}'
    )
    return ApiError(400, "BadRequest", message)


def bad_request(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


def expired(version: int, oldest: int) -> ApiError:
    """Kubernetes API Concepts, "410 Gone responses"."""
    return ApiError(410, "Expired", f"too old resource version: {version} ({oldest})")
