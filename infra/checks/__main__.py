"""Runs every check; exit codes: 0 all passed, 2 something is wrong in the files, 3 a tool is missing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from infra.checks import agreement, alerts, costs, helm, manifests, policy, profiles, terraform, tools
from infra.checks.check import OVERLAYS, ROOT, Check
from mmbert.errors import MmbertError

KUBERNETES = ROOT / "infra" / "kubernetes"
TERRAFORM = ROOT / "infra" / "terraform"
LAUNCHER = ROOT / "components" / "launchers" / "kubernetes" / "api.py"
PROFILES = ROOT / "components" / "profiles"


def main() -> int:
    passed, failed = 0, 0
    try:
        for one in all_checks():
            passed, failed = passed + (not one.faults), failed + bool(one.faults)
            for fault in one.faults:
                print(f"FAULT {one.kind}: {one.subject}: {fault}", flush=True)
    except MmbertError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if failed:
        print(f"{failed} checks failed, {passed} passed", file=sys.stderr)
        return 2
    print(f"{passed} checks passed")
    return 0


def all_checks() -> Iterator[Check]:
    for name in ("base", *(f"overlays/{overlay}" for overlay in OVERLAYS)):
        objects, built = manifests.build(KUBERNETES / name)
        yield built
        yield from manifests.schema_checks(name, objects)
        if name == "base":
            continue
        yield from policy.policy_checks(name, objects)
        overlay = name.rpartition("/")[2]
        yield profiles.profile_check(PROFILES / f"{overlay}.yaml", objects)
        yield profiles.quota_check(helm.values_files(overlay)[0], objects)
        yield from helm.values_checks(overlay)
        chart = os.environ.get("AIRFLOW_CHART")
        if chart:
            yield from helm.chart_checks(Path(chart), overlay)
        yield agreement.rights_check(LAUNCHER, objects)
        if overlay == "prod":
            yield from agreement.agreement_checks(TERRAFORM, objects)
    if not os.environ.get("AIRFLOW_CHART"):
        print(
            "Airflow's chart is not here: our values were held to a list of its keys (AIRFLOW_CHART=FOLDER: templated)"
        )
    yield from terraform.terraform_checks(TERRAFORM)
    if tools.has("promtool"):
        yield from alerts.alert_checks(KUBERNETES / "base" / "alerts")
    else:
        print("promtool could not be had (it comes from Debian's package prometheus): alert rules were not checked")
    yield costs.document_check()


if __name__ == "__main__":
    sys.exit(main())
