#!/usr/bin/env bash
# What containers cost. The images are brought up to date first, which is not timed.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/container-engine.sh
default_base
bash scripts/images.sh
serve_docker_api
.venv/bin/python benchmarks/containers.py
