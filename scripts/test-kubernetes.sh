#!/usr/bin/env bash
# Tests the launcher `kubernetes`: against a stand-in cluster; and, where docker or podman is there or can be installed, in pods
# that podman plays (the images are built first). With MMBERT_KUBECONFIG, a kubeconfig, the pods are that cluster's
# (docs/kubernetes.md says what it has to have).
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
.venv/bin/python -m pytest -m "not containers" tests/kubernetes "$@"
if [ -z "${MMBERT_KUBECONFIG:-}" ]; then
  . scripts/container-engine.sh
  [ "$engine" = podman ] || command -v podman >/dev/null || {
    echo "error: the stand-in's pods are played by podman, and only $engine is there; install podman, or set MMBERT_KUBECONFIG" >&2
    exit 3
  }
  default_base
  bash scripts/images.sh data train eval
fi
.venv/bin/python -m pytest -m containers tests/kubernetes tests/containers/test_kubernetes.py "$@"
