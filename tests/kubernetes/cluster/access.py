"""Who may do what: everyone everything, but for what was forbidden (Using RBAC Authorization)."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.kubernetes.cluster.errors import ApiError
from tests.kubernetes.cluster.resources import Kind

USER = "system:serviceaccount:mmbert:mmbert-launcher"


@dataclass
class Access:
    """Pairs of verb and resource (`pods`, `pods/log`, `jobs`; `*` for any) that are forbidden."""

    forbidden: set[tuple[str, str]] = field(default_factory=set)

    def allows(self, verb: str, resource: str) -> bool:
        return not self.forbidden & {(verb, resource), (verb, "*"), ("*", resource), ("*", "*")}

    def check(self, verb: str, kind: Kind, part: str, namespace: str, name: str) -> None:
        """Raises ApiError (403) in Kubernetes' own words."""
        resource = f"{kind.plural}/{part}" if part else kind.plural
        if self.allows(verb, resource):
            return
        place = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
        named = f' "{name}"' if name else ""
        message = (
            f'{kind.resource}{named} is forbidden: User "{USER}" cannot {verb} resource "{resource}" in API group '
            f'"{kind.group}" {place}'
        )
        details = {"kind": kind.plural, "group": kind.group, "name": name}
        raise ApiError(403, "Forbidden", message, {key: value for key, value in details.items() if value})

    def review(self, document: dict) -> dict:  # type: ignore[type-arg]
        """Authorization Overview, "Checking API access": the answer to a SelfSubjectAccessReview."""
        wanted = document["spec"]["resourceAttributes"]
        part = f"/{wanted['subresource']}" if wanted.get("subresource") else ""
        return {**document, "status": {"allowed": self.allows(wanted["verb"], wanted["resource"] + part)}}
