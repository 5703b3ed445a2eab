#!/usr/bin/env bash
# Resolves pyproject.toml's extras into requirements/*.txt: names, versions and hashes, no registry address.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$(command -v uv || echo .uv/bin/uv)
compile() {
  "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
    --no-annotate "$@" pyproject.toml
}
compile --override requirements/overrides.txt --extra ml --extra test -o requirements/ml.txt
compile --extra orchestrator -o requirements/orchestrator.txt
compile --extra mlflow-server -o requirements/mlflow-server.txt
