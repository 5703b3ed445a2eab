#!/usr/bin/env bash
# Checks and tests the alert rules with promtool (Debian's package prometheus), as Prometheus reads them: a
# PrometheusRule's spec is a rule file.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v promtool > /dev/null || { echo "promtool is not there: apt-get install prometheus" >&2; exit 3; }
alerts=infra/kubernetes/base/alerts
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
.venv/bin/python -c 'import sys, yaml; print(yaml.safe_dump(yaml.safe_load(sys.stdin)["spec"]))' \
  < $alerts/prometheus-rule.yaml > "$folder/rules.yaml"
cp $alerts/rules_test.yaml "$folder"
promtool check rules "$folder/rules.yaml"
promtool test rules "$folder/rules_test.yaml"
