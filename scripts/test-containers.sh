#!/usr/bin/env bash
# Builds the images (where no registry is reached on a base image made from Debian's packages) and runs every component in
# them. BASE names another base image.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/container-engine.sh
default_base
# Goes into the build's secrets, where it does no harm; a test looks for it in the image's layers.
export MMBERT_CANARY=canary-5d1f0c77a2
NO_PROXY="${NO_PROXY:+$NO_PROXY,}$MMBERT_CANARY" bash scripts/images.sh
serve_docker_api
tests=(tests/containers tests/kubernetes)
command -v podman >/dev/null || {
  echo "docker plays no Kubernetes manifests: the tests of pods do NOT RUN; install podman for them"
  tests=(tests/containers --ignore tests/containers/test_kubernetes.py)
}
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m containers "${tests[@]}" "$@"
