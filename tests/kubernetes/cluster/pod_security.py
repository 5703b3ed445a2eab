"""The profile `restricted` of Kubernetes' Pod Security Standards, in the words of its admission controller."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
}  # fmt: skip
_ADDED = {
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP",
    "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}  # fmt: skip


def violations(spec: dict[str, Any]) -> list[str]:
    """What in a pod's spec the profile does not allow: Pod Security Standards, "Baseline" and "Restricted"."""
    return [*_baseline(spec), *_restricted(spec)]


def _containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [*spec.get("initContainers", ()), *spec.get("containers", ()), *spec.get("ephemeralContainers", ())]


def _context(item: dict[str, Any]) -> dict[str, Any]:
    return item.get("securityContext") or {}


def _baseline(spec: dict[str, Any]) -> Iterator[str]:
    if shared := [key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]:
        yield f"host namespaces ({', '.join(f'{key}=true' for key in shared)})"
    for item in _containers(spec):
        name, context = item["name"], _context(item)
        if context.get("privileged"):
            yield f'privileged (container "{name}" must not set securityContext.privileged=true)'
        if added := sorted(set((context.get("capabilities") or {}).get("add") or ()) - _ADDED):
            yield f'non-default capabilities (container "{name}" must not include {added} in capabilities.add)'
        if any(port.get("hostPort") for port in item.get("ports") or ()):
            yield f'hostPort (container "{name}" uses hostPorts)'
        if context.get("procMount", "Default") != "Default":
            yield f'procMount (container "{name}" must not set securityContext.procMount to "{context["procMount"]}")'
    for sysctl in _context(spec).get("sysctls") or ():
        if sysctl["name"] not in _SYSCTLS:
            yield f"forbidden sysctls ({sysctl['name']})"


def _restricted(spec: dict[str, Any]) -> Iterator[str]:
    for volume in spec.get("volumes") or ():
        if kinds := sorted(set(volume) - {"name"} - _VOLUMES):
            yield f'restricted volume types (volume "{volume["name"]}" uses restricted volume type "{kinds[0]}")'
    for item in _containers(spec):
        name, context = item["name"], _context(item)
        if context.get("allowPrivilegeEscalation") is not False:
            yield (
                f'allowPrivilegeEscalation != false (container "{name}" must set '
                "securityContext.allowPrivilegeEscalation=false)"
            )
        capabilities = context.get("capabilities") or {}
        if "ALL" not in (capabilities.get("drop") or ()):
            yield (f'unrestricted capabilities (container "{name}" must set securityContext.capabilities.drop=["ALL"])')
        if set(capabilities.get("add") or ()) - {"NET_BIND_SERVICE"}:
            yield f'unrestricted capabilities (container "{name}" must not include more than NET_BIND_SERVICE)'
        if context.get("runAsNonRoot", _context(spec).get("runAsNonRoot")) is not True:
            yield (f'runAsNonRoot != true (pod or container "{name}" must set securityContext.runAsNonRoot=true)')
        if context.get("runAsUser", _context(spec).get("runAsUser")) == 0:
            yield f'runAsUser=0 (pod or container "{name}" must not set runAsUser=0)'
        profile = context.get("seccompProfile") or _context(spec).get("seccompProfile") or {}
        if profile.get("type") not in ("RuntimeDefault", "Localhost"):
            yield (
                f'seccompProfile (pod or container "{name}" must set securityContext.seccompProfile.type to '
                '"RuntimeDefault" or "Localhost")'
            )
